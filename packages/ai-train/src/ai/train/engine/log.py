"""`log(key, value)`: numbers that any code inside a training step may record, free on the steps that are not logged."""

import warnings
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator

Number = float | int | Tensor
Given = Number | Callable[[], Number]


class Record:
    """The numbers logged during one step or one validation, averaged by weight, kept on their device until read."""

    records = True

    def __init__(self) -> None:
        self.weight: float | Tensor = 1.0
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, float | Tensor] = {}
        self._fresh: list[tuple[str, Tensor]] = []
        self._of_hooks: set[str] = set()  # the keys of what was logged before the step, which the step may not use

    def take(self, key: str, value: Given) -> None:
        """Note what `log` was given."""
        self.add(key, value() if callable(value) else value)

    def add(self, key: str, value: Number) -> None:
        """Note one value; `weigh` later gives it its share."""
        self.check_free(key)
        if isinstance(value, Tensor):
            if value.numel() != 1:
                raise ValueError(f"log({key!r}) takes one number, not a tensor of shape {tuple(value.shape)}")
            value = value.detach().to(_widest(value.device)).reshape(())
        else:
            value = torch.tensor(float(value), dtype=torch.float64, device="cpu")
        self._fresh.append((key, value))

    def keep_apart(self, keys: Iterable[str]) -> None:
        """Take nothing more under these keys."""
        self._of_hooks.update(keys)

    def check_free(self, key: str) -> None:
        """Raise if a hook has logged under this key before the step: their mean would be a number of nothing."""
        if key in self._of_hooks:
            raise ValueError(
                f"{key!r} is logged in a hook's step and again within the step: give one of them another key, and for "
                "the numbers of an environment on other data call run.validate(data)"
            )

    def weigh(self, weight: float | Tensor = 1.0) -> None:
        """Fold what was added since the last call into the averages, with this weight."""
        for key, value in self._fresh:
            if key in self._sums:
                self._sums[key] = self._sums[key] + value * weight
                self._weights[key] = self._weights[key] + weight
            else:
                self._sums[key], self._weights[key] = value * weight, weight
        self._fresh.clear()

    def totals(self) -> dict[str, tuple[float, float]]:
        """For each key, the sum of value × weight and the sum of weights; one copy per device."""
        self.weigh()
        return {key: (float(total), float(self._weights[key])) for key, total in self._sums.items()}

    def means(self) -> dict[str, float]:
        """For each key, the weighted mean."""
        return {key: total / weight if weight else float("nan") for key, (total, weight) in self.totals().items()}


class Waiting:
    """Keeps what is logged before it is known whether this step is: as given, so nothing is computed in vain."""

    records = True

    def __init__(self) -> None:
        self.given: list[tuple[str, Given]] = []

    def take(self, key: str, value: Given) -> None:
        """Keep it."""
        self.given.append((key, value))

    def hand_over(self, record: Record | None) -> None:
        """Note it in `record`, or forget it where the step is not logged."""
        given, self.given = self.given, []
        if record is not None:
            for key, value in given:
                record.take(key, value)
            record.weigh()
            record.keep_apart(key for key, _ in given)


class Nowhere:
    """Warns of what is logged where there is no step whose number it could be.

    Args:
        place: what is called there.
    """

    records = False

    def __init__(self, place: str) -> None:
        self._place = place

    def take(self, key: str, value: Given) -> None:
        """Warn."""
        warnings.warn(
            f"log({key!r}) in {self._place} is kept nowhere, for it belongs to no step: call it in the hook's step or "
            "gradients, in the environment or in the model",
            RuntimeWarning,
            stacklevel=3,
        )


def _widest(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no float64


# By context: two trainers in two threads must not log into each other's records.
Taker = Record | Waiting | Nowhere
_current: ContextVar[Taker | None] = ContextVar("ai.train.log", default=None)


def record_into(record: Taker | None) -> None:
    """From now on send what is logged in this thread to `record` (None: nowhere)."""
    _current.set(record)


def log(key: str, value: Given) -> None:
    """Record a number under `key` if this step is logged, else do nothing.

    It is for the environment, the model, and a hook's `step` and `gradients`; what the environment logs several times
    in a step is averaged. Elsewhere nothing happens, so that a model that logs can be used as any other: a task returns
    its numbers.

    Args:
        key: the name under which the hook receives it.
        value: a number, a one-element tensor on any device, or a function that computes one and is called only when
            this step is logged.

    >>> log('accuracy', lambda: 1 / 0)  # outside a logged step nothing is computed
    """
    record = _current.get()
    if record is not None:
        record.take(key, value)


def is_logging() -> bool:
    """Whether `log` records at this moment: guard with it what is costly to compute.

    In a hook's `step` it always says so: whether the step is logged is known after. There give `log` a function.

    >>> is_logging()
    False
    """
    record = _current.get()
    return record is not None and record.records


@contextmanager
def recording(record: Taker | None) -> "Iterator[None]":
    """Send what is logged inside to `record` (None: nowhere)."""
    before = _current.get()
    _current.set(record)
    try:
        yield
    finally:
        _current.set(before)
