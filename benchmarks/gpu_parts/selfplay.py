"""AlphaZero's self-play of Connect Four with the network on the device: games a second."""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace

from ai.examples.alphazero.main import PRESETS, run
from ai.examples.alphazero.model import ResNet
from ai.game import ConnectFour, NetEvaluator, Play, SelfPlay
from gpu_parts.machine import Machine, Row


def rows(machine: Machine) -> Iterator[Row]:
    """One process, and as many games side by side as fill the device."""
    game = ConnectFour()
    settings = ((4, 2),) if machine.quick else ((256, 64), (1024, 64), (4096, 64))
    for games, simulations in settings:
        if not machine.time_left(5 if machine.quick else 16):
            yield {"row": f"{games} games", "left out": "no time"}
            continue
        net = ResNet(game.observation_shape, game.num_actions, nc=64, n_blocks=5).init(seed=0).to(machine.device)
        source = SelfPlay(game, net, Play(games=games, simulations=simulations), wrap=NetEvaluator)
        source.start(0, 0)
        end, start, n, moves = 0.0, 0.0, -1, 0
        while n < 1 or time.perf_counter() < end:
            episode = next(source)
            if n < 0:  # the first game has compiled the kernels
                start = machine.now()
                end, n = start + (0.2 if machine.quick else 10.0), 0
                continue
            n += 1
            moves += len(episode["action"])
        seconds = machine.now() - start
        yield {"row": f"{games} games, {simulations} simulations", "games/s": n / seconds, "moves/s": moves / seconds}


def recipe(machine: Machine) -> Iterator[Row]:
    """The hour's recipe of `ai.examples.alphazero`, for a few minutes: how far it gets."""
    minutes = 0.02 if machine.quick else 5.0
    config = PRESETS["tiny"] if machine.quick else PRESETS["connect4"]
    with tempfile.TemporaryDirectory() as folder:
        found = run(replace(config, device=str(machine.device), minutes=minutes, trial=f"{folder}/trial"))
    yield {"row": f"{config.game}, {minutes:g} minutes", **{k: v for k, v in found.items() if isinstance(v, float)}}
