"""AlphaZero's self-play of Connect Four with the network on the device: games a second."""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

from gpu_parts.machine import Job, Machine, Row


def rows(machine: Machine) -> Iterator[Job]:
    """One process, and as many games side by side as fill the device; those that were never measured come first."""
    for games, simulations in ((4, 2),) if machine.quick else ((1024, 64), (4096, 64), (256, 64)):
        name = f"{games} games, {simulations} simulations"
        yield Job(name, partial(played, machine, games, simulations), 5 if machine.quick else 18)


def played(machine: Machine, games: int, simulations: int) -> Row:
    """Games and moves a second, over some ten seconds."""
    from ai.examples.alphazero.model import ResNet
    from ai.game import ConnectFour, NetEvaluator, Play, SelfPlay

    game = ConnectFour()
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
    return {"games/s": n / seconds, "moves/s": moves / seconds}


def recipe(machine: Machine) -> Iterator[Job]:
    """The hour's recipe of `ai.examples.alphazero`, for a few minutes: how far it gets."""
    minutes = 0.02 if machine.quick else 5.0
    yield Job(f"Connect Four, {minutes:g} minutes", partial(learnt, machine, minutes), 60 * minutes + 60)


def learnt(machine: Machine, minutes: float) -> Row:
    """What the recipe says at its end."""
    from ai.examples.alphazero.main import PRESETS, run

    config = PRESETS["tiny"] if machine.quick else PRESETS["connect4"]
    with tempfile.TemporaryDirectory() as folder:
        found = run(replace(config, device=str(machine.device), minutes=minutes, trial=f"{folder}/trial"))
    return {key: value for key, value in found.items() if isinstance(value, float)}
