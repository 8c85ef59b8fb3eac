"""`log(key, value)`: numbers that any code inside a training step may record, free on the steps that are not logged."""

import os
import sys
import warnings
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from contextvars import ContextVar
from threading import current_thread, get_ident
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

if TYPE_CHECKING:
    from collections.abc import Iterator

Number = float | int | Tensor
Given = Number | Callable[[], Number]


# Where in a step a number is logged.
HOOKS_STEP, STEP = "in a hook's step", "within the step"
HOOKS_GRADIENTS, OPTIMIZER = "in a hook's gradients", "in the optimizer's step"
TRAINER = "by the trainer itself"


class Record:
    """The numbers logged during one step or one validation, averaged by weight, kept on their device until read.

    Args:
        own: the names under which the trainer itself has numbers, refused to all others where they are logged.
    """

    records = True

    def __init__(self, own: Iterable[str] = ()) -> None:
        self.weight: float | Tensor = 1.0
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, float | Tensor] = {}
        self._fresh: list[tuple[str, Tensor]] = []
        self.repeated: frozenset[str] = frozenset()  # keys under which nothing is noted now
        self.place = STEP
        self._places = dict.fromkeys(own, TRAINER)

    def take(self, key: str, value: Given) -> None:
        """Note what `log` was given."""
        value = value() if callable(value) else value  # also again: checkpointing counts the tensors that it saves
        if key not in self.repeated:
            self.add(key, value)

    def add(self, key: str, value: Number) -> None:
        """Note one value; `weigh` later gives it its share."""
        self._claim(key)
        if isinstance(value, Tensor):
            if value.numel() != 1:
                raise ValueError(f"log({key!r}) takes one number, not a tensor of shape {tuple(value.shape)}")
            value = value.detach().to(_widest(value.device)).reshape(())
        else:
            value = torch.tensor(float(value), dtype=torch.float64, device="cpu")
        self._fresh.append((key, value))

    def _claim(self, key: str) -> None:
        """Raise if the key belongs to another place of the step: their mean would be a number of nothing."""
        first = self._places.setdefault(key, self.place)
        if first == self.place:
            return
        if first == TRAINER:
            raise ValueError(
                f"{key!r} is logged {first}, and again {self.place}: leave out the latter, or give it another key"
            )
        raise ValueError(
            f"{key!r} is logged {first} and again {self.place}: give one of them another key, and for the numbers "
            "of an environment on other data call run.validate(data)"
        )

    @contextmanager
    def logged(self, place: str) -> "Iterator[None]":
        """Of what is added inside, `place` is where it was logged; each value counts alike."""
        before, self.place = self.place, place
        try:
            yield
            self.weigh()
        finally:
            self.place = before

    @contextmanager
    def backward(self) -> "Iterator[None]":
        """Inside, what comes again under a key of the forward pass is that pass computed again, and noted already."""
        self.repeated = frozenset(key for key, _ in self._fresh)
        try:
            yield
        finally:
            self.repeated = frozenset()

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
            with record.logged(HOOKS_STEP):
                for key, value in given:
                    record.take(key, value)


class Apart:
    """Notes what is logged beside the step under names of its own, so that nothing is averaged with the step's.

    Args:
        record: where it goes.
        prefix: of each key.
    """

    records = True

    def __init__(self, record: Record, prefix: str) -> None:
        self._record, self._prefix = record, prefix

    def take(self, key: str, value: Given) -> None:
        """Note it."""
        self._record.take(self._prefix + key, value)


class Nowhere:
    """Warns of what is logged where there is no step whose number it could be.

    Args:
        place: what is called there.
        instead: what to do.
        once: warn once of each key: filters of warnings forget what was said wherever somebody has changed some.
    """

    records = False

    def __init__(
        self,
        place: str,
        instead: str = "call it in the hook's step or gradients, in the environment or in the model",
        *,
        once: bool = False,
    ) -> None:
        self._place, self._instead, self._once = place, instead, once
        self._told: set[str] = set()

    def take(self, key: str, value: Given) -> None:
        """Warn."""
        if key in self._told:
            return
        warnings.warn(
            f"log({key!r}) in {self._place} is kept nowhere, for it belongs to no step: {self._instead}",
            RuntimeWarning,
            stacklevel=3,
        )
        if self._once:  # not where it was raised
            self._told.add(key)


def _widest(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # Apple's GPUs have no float64


# By context: two trainers in two threads must not log into each other's records.
Taker = Record | Waiting | Apart | Nowhere
_current: ContextVar[Taker | None] = ContextVar("ai.train.log", default=None)
_open: dict[int, Taker] = {}  # of all threads, what records now


def record_into(record: Taker | None) -> None:
    """From now on send what is logged in this thread to `record` (None: nowhere)."""
    _current.set(record)
    if record is not None and record.records:
        _open[get_ident()] = record
    else:
        _open.pop(get_ident(), None)


def _forget() -> None:
    _current.set(None)
    _open.clear()


if hasattr(os, "register_at_fork"):  # a loader's worker that begins at a logged step would fill a copy of its record
    os.register_at_fork(after_in_child=_forget)


def log(key: str, value: Given) -> None:
    """Record a number under `key` if this step is logged, else do nothing.

    It is for the environment, the model, an optimiser's `step`, and a hook's `step` and `gradients`; what the
    environment logs several times in a step is averaged. A key belongs to one of these places: in a second one it is
    refused, as are the trainer's own (`loss`, `lr`, `grad_norm`, `skipped`, of several models `loss_NAME` and so on) in
    all of them. What a task, a sampler, or the data (in the step that takes a batch of it) log stands in the row under
    `task_`, `sample_` and `data_` and the key, as what is logged in a validation does under `val_`. What comes again in
    the backward pass, under a key of the forward pass, is that pass computed again (activation checkpointing), and
    counts once. A loader's worker knows no step, and says so once of each key; a thread that an environment starts says
    so at a logged one; run in the context of the one that trains, by `contextvars.copy_context().run`, it does. A
    thread that works for no step, such as one that serves the model, hears it too while a step is logged, for the two
    look alike: there nothing is wrong, and `warnings.filterwarnings("ignore", "log.*in a thread of its own")` ends it.
    Outside of training nothing happens, so that a model that logs can be used as any other.

    Args:
        key: the name under which the hook receives it.
        value: a number, a one-element tensor on any device, or a function that computes one and is called only when
            this step is logged.

    >>> log('accuracy', lambda: 1 / 0)  # outside a logged step nothing is computed
    """
    taker = _current.get()
    if taker is not None:
        taker.take(key, value)
    elif not torch.compiler.is_compiling():  # no compiler follows where torch's workers are asked for
        if _in_worker():
            _OF_A_WORKER.take(key, value)
        elif _open and _in_new_thread():
            if not _is_computed_again(key):
                _OF_A_THREAD.take(key, value)
            elif callable(value):
                value()  # as in `Record.take`


_IS_WORKER = getattr(getattr(sys.modules.get("__main__"), "__spec__", None), "name", None) == "ai.data.workers.worker"
_OF_A_WORKER = Nowhere(
    "a loader's worker",
    "call it in the hook's step or gradients, in the environment or in the model as it trains; a model that acts there "
    "has nothing to mend",
    once=True,
)
_OF_A_THREAD = Nowhere(
    "a thread of its own",
    "call it in the thread that trains, or run the function of the other by contextvars.copy_context().run; a thread "
    "that works for no step, such as one that serves the model, has nothing to mend",
)


def _in_worker() -> bool:
    """Whether a loader's worker asks, of torch or of ai.data."""
    return _IS_WORKER or get_worker_info() is not None or current_thread().name.startswith("ai.data.ThreadPool")


def _in_new_thread() -> bool:
    """Whether this thread has never trained, nor was started in the context of one that does."""
    return _current.get(_OF_A_THREAD) is _OF_A_THREAD


def _is_computed_again(key: str | None = None) -> bool:
    """Whether a backward pass is under way, perhaps in threads of torch's own, that computes again what logs this key.

    None is any key.
    """
    for taker in list(_open.values()):
        if isinstance(taker, Record) and taker.repeated and (key is None or key in taker.repeated):
            return True
    return False


def is_logging() -> bool:
    """Whether `log` records at this moment: guard with it what is costly to compute.

    In a hook's `step` it always says so: whether the step is logged is known after. There give `log` a function.

    >>> is_logging()
    False
    """
    record = _current.get()
    if record is None and not torch.compiler.is_compiling() and _open and _in_new_thread():
        return _is_computed_again()
    return record is not None and record.records


@contextmanager
def recording(record: Taker | None) -> "Iterator[None]":
    """Send what is logged inside to `record` (None: nowhere)."""
    before = _current.get()
    record_into(record)
    try:
        yield
    finally:
        record_into(before)
