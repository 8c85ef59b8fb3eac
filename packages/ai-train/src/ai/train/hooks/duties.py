"""What a hook does at its steps, each thing by itself: validate, run a task, draw samples."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from ai.train.engine.evaluate import refuse_endless
from ai.train.engine.log import Apart, Record, recording
from ai.train.engine.run import Run
from ai.train.hooks.interval import Interval, as_interval
from ai.train.state.stateful import Stateful

Metrics = dict[str, float]
Every = Interval | int | str | None


class Duty(Protocol):
    """One thing that is due now and then.

    Attributes:
        name: by which a snapshot remembers what was still to be done.
        measures: whether a stopper is asked about what it finds.
        interval: when it is due; None for never.
    """

    name: str
    measures: bool
    interval: Interval | None

    def do(self, run: Run) -> Metrics:
        """Do it at `run.step`; what was measured."""

    def try_out(self, run: Run) -> Metrics | None:
        """Do as little of it as shows that it works; what it measures, or None where that cannot be told."""


class Validate:
    """The losses over `data`, as `val_*`.

    >>> import torch
    >>> run = Run({'model': torch.nn.Linear(1, 1)}, {}, [], validate=lambda data: {'loss': float(len(list(data)))})
    >>> Validate([1, 2, 3], 10).do(run)
    {'val_loss': 3.0}
    """

    name, measures = "validate", True

    def __init__(self, data: Iterable[Any], interval: Every) -> None:
        refuse_endless(data)
        if type(data).__module__ in ("builtins", "itertools") and iter(data) is data:
            raise TypeError(
                f"val_data must be there for each validation, and a {type(data).__name__} is run through once: "
                "pass a loader, or the list of its batches"
            )
        self.data, self.interval = data, as_interval(interval, "val_interval")

    def do(self, run: Run) -> Metrics:
        """Over all of the data."""
        return _as_validation(run.validate(self.data))

    def try_out(self, run: Run) -> Metrics | None:
        """Over its first batch, unless that would use up the data."""
        data: Any = self.data
        if iter(data) is data:
            return None
        position = data.state_dict() if isinstance(data, Stateful) else None
        with run.evaluating():  # a loader may draw an order from the global random state
            batches = iter(data)
            first = next(batches, None)
            close = getattr(batches, "close", None)
            if callable(close):
                close()
        if position is not None:
            data.load_state_dict(position)
        if first is None:
            raise ValueError("there is no batch to validate on: val_data is empty")
        with warnings.catch_warnings():  # of one batch a metric may wonder at classes that it has no row of
            warnings.simplefilter("ignore")
            return _as_validation(run.validate([first]))


class RunTask:
    """The numbers that `task(model, step)` finds; the model is a dict where there are several."""

    name, measures = "task", True

    def __init__(self, task: Callable[[Any, int], Mapping[str, float]], interval: Every) -> None:
        self.task, self.interval = task, as_interval(interval, "task_interval")

    def do(self, run: Run) -> Metrics:
        """In evaluation mode, with moving averages."""
        record = Record()
        with run.evaluating(), recording(Apart(record, "task_")):
            found = self.task(model_of(run), run.step)
        if not isinstance(found, Mapping):
            raise TypeError(f"task must return a dict of numbers, not {type(found).__name__}")
        logged = record.means()
        for key in logged.keys() & found.keys():
            raise ValueError(f"the task returns {key!r}, as which it also logs {key[len('task_') :]!r}: rename one")
        return logged | {key: float(value) for key, value in found.items()}

    def try_out(self, run: Run) -> Metrics | None:
        """All of it: only the task knows what its parts are."""
        return self.do(run)


class Sample:
    """Images, or whatever `sampler(model, step)` makes, handed to `take(step, images)` on rank 0."""

    name, measures = "sample", False

    def __init__(self, sampler: Callable[[Any, int], Any], take: Callable[[int, Any], object], interval: Every) -> None:
        self.sampler, self.take, self.interval = sampler, take, as_interval(interval, "sample_interval")

    def do(self, run: Run) -> Metrics:
        """In evaluation mode, with moving averages."""
        images, logged = self._draw(run)
        if run.ranks.rank == 0:
            self.take(run.step, images)
        return logged

    def try_out(self, run: Run) -> Metrics | None:
        """Draw them, and hand them to nobody."""
        return self._draw(run)[1]

    def _draw(self, run: Run) -> tuple[Any, Metrics]:
        record = Record()
        with run.evaluating(), recording(Apart(record, "sample_")):
            images = self.sampler(model_of(run), run.step)
        return images, record.means()


def model_of(run: Run) -> Any:
    """The run's model, or the dict of them."""
    return next(iter(run.models.values())) if len(run.models) == 1 else run.models


def _as_validation(found: Mapping[str, float]) -> Metrics:
    return {f"val_{key}": value for key, value in found.items()}
