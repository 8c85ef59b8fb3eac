"""`find_lr`: the learning rate at which the loss falls fastest, from one short run of rising rates."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ai.model.arguments import check_real, check_whole
from ai.train.engine.argument_checks import check_loader, check_model_and_optimizer
from ai.train.engine.update import Loss
from ai.train.hook import HookInterface
from ai.train.state.random_state import random_state, set_random_state
from ai.train.trainer import Trainer


@dataclass
class LrCurve:
    """The losses seen at rising learning rates.

    Attributes:
        lrs: the rates tried.
        losses: the loss at each, smoothed.
        suggestion: the rate of the steepest fall.
    """

    lrs: list[float]
    losses: list[float]
    suggestion: float

    def plot(self, path: str | None = None) -> Any:
        """A matplotlib figure of the curve with the suggestion marked; also written to `path` if given.

        Raises:
            ImportError: matplotlib is not installed.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("the plot of find_lr needs matplotlib: pip install matplotlib") from error
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        axes.plot(self.lrs, self.losses)
        axes.axvline(self.suggestion, color="tab:red", linestyle="--", label=f"suggestion {self.suggestion:.2g}")
        axes.set(xscale="log", xlabel="learning rate", ylabel="loss (smoothed)", title="Learning-rate search")
        axes.grid(alpha=0.3)
        axes.legend(loc="upper left")
        fall = self.losses[0] - min(self.losses) if self.losses else 0.0
        if fall > 0:  # the losses that diverge at the end would press the rest flat
            axes.set_ylim(min(self.losses) - 0.1 * fall, self.losses[0] + 0.4 * fall)
        if path is not None:
            figure.savefig(path, dpi=120)
        return figure


def find_lr(
    env: Callable[..., Loss],
    data: Iterable[Any],
    model: nn.Module,
    opt: Optimizer,
    *,
    start: float = 1e-6,
    end: float = 10.0,
    steps: int = 100,
    smoothing: float = 0.8,
) -> LrCurve:
    """Raise the learning rate from `start` to `end` and watch the loss; everything is put back as it was.

    The run ends early where the loss is four times its best. Model, optimiser, global random states and the data's
    position are restored.

    Args:
        env: as for `Trainer`.
        data: as for `Trainer`; repeated if it ends.
        model: to be trained.
        opt: its optimiser; several groups keep their ratios.
        start: the first rate.
        end: the last rate.
        steps: how many rates, evenly spaced in the logarithm.
        smoothing: share of the past in the averaged loss.

    Source: Smith 2017, Cyclical learning rates for training neural networks, section 3.3.

    Raises:
        ValueError: the bounds or the number of steps make no range.

    >>> import torch
    >>> from ai.train import Regress, opt
    >>> model = nn.Linear(1, 1)
    >>> batch = (torch.linspace(-1, 1, 64)[:, None], torch.linspace(-3, 3, 64)[:, None])
    >>> curve = find_lr(Regress(), [batch], model, opt.sgd(model))
    >>> 1e-2 < curve.suggestion < 2
    True
    """
    check_whole(steps=steps)
    check_real(start=start, end=end, smoothing=smoothing)
    if not 0 < start < end:
        raise ValueError(f"start ({start}) must be positive and below end ({end})")
    check_loader("data", data)
    check_model_and_optimizer("model", model, opt)
    if steps < 10:
        raise ValueError(f"steps must be at least 10, not {steps}")
    saved = copy.deepcopy((model.state_dict(), opt.state_dict()))
    training = model.training
    position = copy.deepcopy(data.state_dict()) if hasattr(data, "state_dict") else None
    state = random_state()
    # What a schedule scales is the rate that each group began with, which a schedule before may have left far behind.
    top = max(float(group.get("initial_lr", group["lr"])) for group in opt.param_groups)
    watch = _Watch(smoothing)
    try:
        Trainer(env, _endless(data), on_nan="stop").train(
            model,
            opt,
            watch,
            steplimit=steps,
            schedule=lambda step: start * (end / start) ** (step / (steps - 1)) / top,
        )
    finally:
        model.load_state_dict(saved[0])
        opt.load_state_dict(saved[1])
        model.train(training)
        set_random_state(state)
        if position is not None:
            data.load_state_dict(position)  # type: ignore[attr-defined]
    lrs = [start * (end / start) ** (step / (steps - 1)) for step in range(len(watch.losses))]
    return LrCurve(lrs, watch.losses, _steepest(lrs, watch.losses))


class _Watch(HookInterface):
    log_interval = 1

    def __init__(self, smoothing: float) -> None:
        self.losses: list[float] = []
        self._smoothing, self._average, self._best = smoothing, 0.0, math.inf

    def step(self, step: int) -> bool:
        return bool(self.losses) and not self.losses[-1] <= 4 * self._best

    def log(self, key: str, value: float) -> None:
        if key != "loss" or not math.isfinite(value):
            return
        self._average = self._smoothing * self._average + (1 - self._smoothing) * value
        # The average begins at 0; dividing takes that out.
        self.losses.append(self._average / (1 - self._smoothing ** (len(self.losses) + 1)))
        self._best = min(self._best, self.losses[-1])


def _endless(data: Iterable[Any]) -> Iterator[Any]:
    while True:
        found = False
        for batch in data:
            found = True
            yield batch
        if not found:
            raise ValueError("there is no batch to search a learning rate with: the data is empty")


def _steepest(lrs: list[float], losses: list[float]) -> float:
    # The slope over a tenth of the curve, since neighbouring points are mostly noise; beyond the best loss it diverges.
    width = max(2, len(losses) // 10)
    lowest = losses.index(min(losses)) if losses else 0
    slopes = [losses[i + width] - losses[i] for i in range(max(0, lowest - width + 1))]
    if not slopes:
        return lrs[0]
    steepest = slopes.index(min(slopes))
    return math.sqrt(lrs[steepest] * lrs[steepest + width])
