"""`log(key, value)`: numbers that any code inside a training step may record, free on the steps that are not logged."""

from collections.abc import Callable
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator

Number = float | int | Tensor


class Record:
    """The numbers logged during one step or one validation, averaged by weight, kept on their device until read."""

    def __init__(self) -> None:
        self.weight: float | Tensor = 1.0
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, float | Tensor] = {}
        self._fresh: list[tuple[str, Tensor]] = []

    def add(self, key: str, value: Number) -> None:
        """Note one value; `weigh` later gives it its share."""
        if isinstance(value, Tensor):
            if value.numel() != 1:
                raise ValueError(f"log({key!r}) takes one number, not a tensor of shape {tuple(value.shape)}")
            value = value.detach().to(_widest(value.device)).reshape(())
        else:
            value = torch.tensor(float(value), dtype=torch.float64)
        self._fresh.append((key, value))

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


def _widest(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no float64


# By context: two trainers in two threads must not log into each other's records.
_current: ContextVar[Record | None] = ContextVar("ai.train.log", default=None)


def record_into(record: Record | None) -> None:
    """From now on send what is logged in this thread to `record` (None: nowhere)."""
    _current.set(record)


def log(key: str, value: Number | Callable[[], Number]) -> None:
    """Record a number under `key` if this step is logged, else do nothing.

    Args:
        key: the name under which the hook receives it.
        value: a number, a one-element tensor on any device, or a function that computes one and is called only when
            this step is logged.

    >>> log('accuracy', lambda: 1 / 0)  # outside a logged step nothing is computed
    """
    record = _current.get()
    if record is not None:
        record.add(key, value() if callable(value) else value)


def is_logging() -> bool:
    """Whether `log` records at this moment: guard with it what is costly to compute.

    >>> is_logging()
    False
    """
    return _current.get() is not None


@contextmanager
def recording(record: Record | None) -> "Iterator[None]":
    """Send what is logged inside to `record` (None: nowhere)."""
    before = _current.get()
    _current.set(record)
    try:
        yield
    finally:
        _current.set(before)
