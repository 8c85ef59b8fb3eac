"""Learns tic-tac-toe or Connect Four from self-play alone, and measures the player against perfect play.

Command: `ai-examples alphazero tictactoe`, or `python -m ai.examples.alphazero --help` for presets and options.
"""

import os
import time
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import nn

from ai.data import Datagen, ReplayBuffer
from ai.examples.alphazero.loss import AlphaZero
from ai.examples.alphazero.model import MLP, ResNet
from ai.examples.alphazero.truth import Judge, lost_lines, wrong_moves
from ai.examples.cli import read_config
from ai.game import Augment, ConnectFour, NetEvaluator, Play, Puct, SelfPlay, Solution, TicTacToe, solve
from ai.lab import Trial
from ai.train import RLTrainer, opt, schedule

RULE = Puct(normalize=False)


@dataclass(frozen=True)
class Config:
    """What a run needs; every field is an option of the command line."""

    game: Literal["tictactoe", "connect4"] = "tictactoe"
    """What to learn."""
    trial: str = "alphazero"
    """The trial's folder, relative to $AI_LAB_PATH (else ./ai-lab) unless absolute."""
    resume: bool = False
    """Go on from the trial's last snapshot instead of starting anew."""
    play: Play = field(default_factory=Play)
    """How self-play games are played."""
    workers: int = 0
    """Processes that play; 0 plays in this one, and makes the run a function of its seed."""
    channels: int = 64
    """Channels of the residual network (Connect Four)."""
    blocks: int = 3
    """Residual blocks (Connect Four)."""
    steps: int = 3000
    """Number of updates."""
    minutes: float | None = None
    """Stop earlier, after this time; the learning rate falls with the steps."""
    batch_size: int = 256
    """Positions in a batch."""
    replay_ratio: float = 4.0
    """How often a position is learnt from on average."""
    buffer: int = 100_000
    """Positions kept."""
    learning_rate: float = 2e-3
    """Peak learning rate; cosine to a fiftieth."""
    weight_decay: float = 1e-4
    """Decay of the weights."""
    value_weight: float = 1.0
    """Weight of the value's error."""
    search_share: float = 0.0
    """Share of the search's value in the value's target; the rest is the outcome."""
    fast_weight: float = 1.0
    """Weight of the policy's error at moves made by a fast search."""
    precision: Literal["bf16"] | None = None
    """Of the network, while training and playing; None is float32."""
    push_interval: int = 25
    """Updates between two sets of parameters for self-play."""
    task_interval: int = 500
    """Updates between two measurements."""
    save_interval: int = 500
    """Updates between two snapshots."""
    seed: int = 0
    """Seeds the weights, the games and the order of the data."""


PRESETS = {
    "tiny": Config(
        play=Play(games=8, simulations=8, rule=RULE), steps=4, batch_size=16, task_interval=2, save_interval=2
    ),
    "tictactoe": Config(
        play=Play(games=64, simulations=32, rule=RULE, opening_share=0.8, opening_moves=8, cache=1 << 14),
        steps=8000,
        replay_ratio=6.0,
        task_interval=1000,
        save_interval=2000,
    ),
    "connect4": Config(
        game="connect4",
        play=Play(
            games=256,
            simulations=96,
            fast_simulations=24,
            full_share=0.33,
            rule=Puct(c_init=1.6, normalize=False),
            temperature_moves=10,
            late_temperature=0.4,
            opening_share=0.4,
            opening_moves=16,
            cache=1 << 20,
        ),
        workers=1,
        steps=14_000,
        minutes=60,
        buffer=600_000,
        weight_decay=1e-3,
        value_weight=1.5,
        search_share=0.5,
        fast_weight=0.25,
        precision="bf16",
        push_interval=100,
        task_interval=1000,
        save_interval=1000,
    ),
}
DESCRIPTIONS = {
    "tiny": "seconds; for tests",
    "tictactoe": "a minute; no lost line and every position right",
    "connect4": "an hour on two cores",
}


def run(config: Config) -> dict[str, float]:
    """Trains and measures; returns what `measure` finds at the end, and the `seconds` of training."""
    game = TicTacToe() if config.game == "tictactoe" else ConnectFour()
    solution = solve(game) if isinstance(game, TicTacToe) else None
    model = network(config).init(seed=config.seed)
    play_model = network(config).init(seed=config.seed)
    source = SelfPlay(game, play_model, config.play, wrap=Wrap(config.precision))
    loader = Datagen(source, postprocess=Augment(game)).loader(
        config.batch_size,
        n_workers=config.workers,
        buffer=ReplayBuffer(config.buffer, n_step=float("inf"), seed=config.seed),
        replay_ratio=config.replay_ratio,
        min_steps=min(8 * config.batch_size, config.buffer // 2),
        seed=config.seed,
    )
    optimiser = opt.adamw(model, lr=config.learning_rate, weight_decay=config.weight_decay)
    loss = AlphaZero(value_weight=config.value_weight, search_share=config.search_share, fast_weight=config.fast_weight)
    trial = Trial(
        config.trial,
        clean=not config.resume,
        config=config,
        task=lambda model, step: measure(game, model, solution, (0, 8)),
        save_snapshots=True,
        log_interval=50,
        task_interval=config.task_interval,
        save_interval=config.save_interval,
    )
    started = time.monotonic()
    with loader:
        step = trial.resume(model, optimiser, loader) if config.resume else 0
        trainer = RLTrainer(
            loss, loader, push_interval=config.push_interval, push_ema=True, ema=0.99, precision=config.precision
        )
        trainer.train(
            model,
            optimiser,
            trial.hook(),
            step=step,
            steplimit=config.steps,
            timelimit=None if config.minutes is None else 60 * config.minutes,
            schedule=schedule.cosine(config.steps, end=0.02),
        )
    seconds = time.monotonic() - started
    model.eval()
    found = measure(game, model, solution, (0, 8, 32)) | {"seconds": round(seconds, 1)}
    print(", ".join(f"{name} {value:g}" for name, value in found.items()))
    print(f"recorded in {os.path.relpath(trial.path)}: metrics.jsonl, snapshots")
    return found


def network(config: Config) -> Any:
    """Returns the network that a configuration names."""
    return MLP() if config.game == "tictactoe" else ResNet(nc=config.channels, n_blocks=config.blocks)


@dataclass(frozen=True)
class Wrap:
    """How a self-play worker runs its network.

    Args:
        precision: as of `Config`.
    """

    precision: str | None = None

    def __call__(self, model: nn.Module) -> NetEvaluator:
        """Returns the evaluator."""
        if self.precision is None:
            return NetEvaluator(model)
        return NetEvaluator(model, chunk=128, channels_last=True, dtype=torch.bfloat16)


def measure(
    game: TicTacToe | ConnectFour, model: nn.Module, solution: Solution | None, simulations: tuple[int, ...]
) -> dict[str, float]:
    """Returns, for each number of simulations, the wrong moves in all positions and the lines that can be lost."""
    found: dict[str, float] = {}
    if solution is not None:
        for count in simulations:
            judge = Judge(game, model, count, RULE)
            found[f"wrong_{count}"] = wrong_moves(solution, judge)
            found[f"lost_{count}"] = lost_lines(game, judge)
    return found


def reproduce(*, seed: int = 0) -> dict[str, float]:
    """Trains the `tictactoe` preset; `lost_8`, `lost_32`, `wrong_8` and `wrong_32` should be 0."""
    return run(replace(PRESETS["tictactoe"], seed=seed, trial=f"reproduce/tictactoe-{seed}"))


def main() -> None:
    """Runs the example with a typed command line."""
    torch.set_num_threads(1)
    run(read_config(PRESETS, DESCRIPTIONS, __doc__))
