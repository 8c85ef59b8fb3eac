"""What AlphaZero and MuZero share: how a run that plays against itself is configured, trained and measured."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer

from ai.data import Ray
from ai.data.datagen import DatagenLoader
from ai.examples.run_config import open_trial
from ai.examples.saved import load_averaged
from ai.game import Game, Play
from ai.game.arguments import check_amount
from ai.infer import NodeInferencer
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
    clean: bool = False
    """Delete what an earlier run left in the trial's folder, which is else kept beside it."""
    play: Play = field(default_factory=Play)
    """How self-play games are played."""
    device: str = "cpu"
    """Where the network learns and plays, such as cuda."""
    workers: int = 0
    """Processes that play; 0 plays in this one, and makes the run a function of its seed."""
    engine: Literal["local", "ray"] = "local"
    """Where they play: on this machine, or on those of the Ray cluster that runs here or is at $RAY_ADDRESS."""
    inferencer: bool = False
    """Whether those of one machine ask one process for all evaluations, and have no network of their own; with more
    games side by side (play.games), each question is about more positions, and costs hardly more."""
    gpus: float = 0.0
    """Share of a GPU that the cluster keeps free for each of them; above 0 a machine's inferencer runs on it."""
    steps: int = 3000
    """Number of updates."""
    minutes: float | None = None
    """Stop earlier, after this time; the learning rate falls with the steps, or with the time where that is further."""
    batch_size: int = 256
    """Positions in a batch."""
    replay_ratio: float = 4.0
    """How often a position is learnt from on average."""
    buffer: int = 100_000
    """Positions kept."""
    learning_rate: float = 2e-3
    """Peak learning rate; falls by a cosine."""
    least_rate: float = 0.02
    """Share of it that is left at the end."""
    kernel_rate: float | None = None
    """Peak learning rate of Muon, by which the kernels of inner convolutions learn; None is AdamW for all."""
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

    def __post_init__(self) -> None:
        check_amount(0, 1, least_rate=self.least_rate)
        if self.minutes is not None:
            check_amount(0, above=True, minutes=self.minutes)


GAMES = {
    "tictactoe": "ai.game:TicTacToe",
    "connect4": "ai.game:ConnectFour",
    "cartpole": "ai.game:GymnasiumGame('CartPole-v1')",
    "hog": "ai.game:Hog(goal=25, dice=5)",
}


def make_game(name: str) -> Game:
    """Returns a game by a name of `GAMES` or by import path, `'package.module:Class'` or any call that makes one there.

    Raises:
        ValueError: there is no such thing, or it is no game.

    >>> make_game("ai.game:SlidingTiles(size=2)").num_actions
    4
    """
    module, _, expression = GAMES.get(name, name).partition(":")
    try:
        made = eval(expression, dict(vars(import_module(module))))
        game: Game = made() if isinstance(made, type) else made
    except (ImportError, SyntaxError, NameError, ValueError) as error:
        raise ValueError(
            f"game must be one of {', '.join(GAMES)}, or such as 'my_package.my_game:MyGame', got {name!r}: {error}"
        ) from error
    if not isinstance(game, Game):
        raise ValueError(f"game must have the members of ai.game.Game, {name!r} is {type(game).__name__}")
    return game


def make_engine(config: LearnConfig) -> Ray | None:
    """Returns what starts the processes that play; None for those of this machine.

    Raises:
        ValueError: no process would play there, or a GPU is asked for that nothing would use.
    """
    if config.gpus and not (config.engine == "ray" and config.inferencer):
        raise ValueError(
            f"gpus ({config.gpus:g}) must be 0 without engine 'ray' and inferencer: nothing else uses them"
        )
    if config.engine == "local":
        return None
    if config.workers < 1:
        raise ValueError(f"workers ({config.workers}) must be at least 1 with engine 'ray': it starts them")
    return Ray(num_gpus=config.gpus)


def asked(config: LearnConfig, model: nn.Module) -> NodeInferencer | None:
    """Returns what the processes that play ask on each machine; None where each has the network itself."""
    if not config.inferencer:
        return None
    device = config.device if config.engine == "local" else "cuda" if config.gpus else "cpu"
    return NodeInferencer(model, device, batch_size=config.play.games)


def make_optimiser(config: LearnConfig, model: nn.Module) -> Optimizer:
    """Returns what updates a network: AdamW, or with it Muon for all kernels of convolutions but the first."""
    how: dict[str, Any] = {"weight_decay": config.weight_decay, "clip_norm": config.clip_norm}
    if config.kernel_rate is None:
        return opt.adamw(model, lr=config.learning_rate, **how)
    first = next((parameter for parameter in model.parameters() if parameter.ndim == 4), None)

    def skip(name: str, parameter: nn.Parameter) -> bool:
        return parameter.ndim != 4 or parameter is first

    return opt.muon(model, adamw_lr=config.learning_rate, kernel_lr=config.kernel_rate, skip=skip, **how)


def make_schedule(config: LearnConfig, step: int) -> schedule.Schedule:
    """Returns the factor of the learning rate at each update of a run that begins, or goes on, with `step` now.

    Half a cosine over the updates; a run that its `minutes` will end before is at the end of it by then, too.
    """
    fall, began = schedule.cosine(config.steps, end=config.least_rate), time.monotonic()
    if (minutes := config.minutes) is None:
        return fall

    def by_clock(at: int) -> float:
        spent = (time.monotonic() - began) / (60 * minutes)
        return fall(max(at, round(step + spent * (config.steps - step))))

    return by_clock


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
    optimiser = make_optimiser(config, model)
    trial = open_trial(
        config,
        config,
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
            schedule=make_schedule(config, step),
        )
        environment_steps = loader.stats()["steps"]
    load_averaged(model, trial, snapshots.best())
    return trial, {"seconds": round(time.monotonic() - started, 1), "environment_steps": environment_steps}


def report(trial: Trial, found: Mapping[str, float], curves: Sequence[str]) -> None:
    """Prints what was found, and where it is recorded; draws the named metrics over the updates."""
    print(", ".join(f"{name} {value:g}" for name, value in found.items()))
    trial.plot(curves)
    print(f"recorded in {os.path.relpath(trial.path)}: metrics.jsonl, metrics.png, snapshots")
