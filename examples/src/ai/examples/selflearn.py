"""What AlphaZero and MuZero share: how a run that plays against itself is configured, trained and measured."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ai.data.datagen import DatagenLoader
from ai.examples.saved import load_averaged
from ai.game import Play
from ai.lab import Trial
from ai.lab.files.folder import resolve
from ai.train import RLTrainer, Snapshots, opt, schedule

Task = Callable[[Any, int], Mapping[str, float]]


@dataclass(frozen=True)
class LearnConfig:
    """What every such run needs; every field is an option of the command line."""

    trial: str = "selflearn"
    """The trial's folder, relative to $AI_LAB_PATH (else ./ai-lab) unless absolute."""
    resume: bool = False
    """Go on from the trial's last snapshot instead of starting anew."""
    play: Play = field(default_factory=Play)
    """How self-play games are played."""
    workers: int = 0
    """Processes that play; 0 plays in this one, and makes the run a function of its seed."""
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
    clip_norm: float | None = None
    """Largest norm of a gradient."""
    ema: float = 0.99
    """Decay of the moving average of the weights, which plays, is measured and is kept."""
    push_interval: int = 25
    """Updates between two sets of parameters for self-play."""
    task_interval: int = 500
    """Updates between two measurements."""
    save_interval: int = 500
    """Updates between two snapshots."""
    keep_snapshots: int | None = 3
    """How many of the newest snapshots are kept besides the best; None keeps all."""
    seed: int = 0
    """Seeds the weights, the games and the order of the data."""


def learn(
    config: LearnConfig,
    model: nn.Module,
    loader: DatagenLoader,
    loss: Callable[..., Any],
    *,
    task: Task,
    best_by: str,
    mode: str,
    precision: str | None = None,
) -> tuple[Trial, dict[str, float]]:
    """Trains `model`, which then carries the averaged weights of the best snapshot, in evaluation mode.

    Args:
        config: How.
        model: Learns.
        loader: Its games; closed at the end.
        loss: Of a model and a batch.
        task: Measures along the way.
        best_by: The number of the task's by which the best snapshot is told; of equals the later is better.
        mode: Whether `'min'` or `'max'` is best.
        precision: As of `RLTrainer`.

    Returns:
        The trial, and the `seconds` and `environment_steps` of this process.
    """
    sign = 1e-9 if mode == "max" else -1e-9

    def scored(model: nn.Module, step: int) -> dict[str, float]:
        found = dict(task(model, step))
        return found | {"score": found[best_by] + sign * step}  # of equals the later

    snapshots = Snapshots(
        resolve(config.trial) / "snapshots", keep_last=config.keep_snapshots, best_by="score", mode=mode
    )
    optimiser = opt.adamw(model, lr=config.learning_rate, weight_decay=config.weight_decay, clip_norm=config.clip_norm)
    trial = Trial(
        config.trial,
        clean=not config.resume,
        config=config,
        task=scored,
        save_snapshots=snapshots,
        log_interval=50,
        task_interval=config.task_interval,
        save_interval=config.save_interval,
    )
    started = time.monotonic()
    with loader:
        step = trial.resume(model, optimiser, loader) if config.resume else 0
        trainer = RLTrainer(
            loss, loader, push_interval=config.push_interval, push_ema=True, ema=config.ema, precision=precision
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
        environment_steps = loader.stats()["steps"]
    load_averaged(model, trial, snapshots.best())
    return trial, {"seconds": round(time.monotonic() - started, 1), "environment_steps": environment_steps}


def report(trial: Trial, found: Mapping[str, float], curves: Sequence[str]) -> None:
    """Prints what was found, and where it is recorded; draws the named metrics over the updates."""
    print(", ".join(f"{name} {value:g}" for name, value in found.items()))
    trial.plot(curves)
    print(f"recorded in {os.path.relpath(trial.path)}: metrics.jsonl, metrics.png, snapshots")
