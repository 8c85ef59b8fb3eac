"""Pools of threads or processes that run a dataset's preprocess ahead of use."""

import concurrent.futures
import math
import time
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ai.data.loading.preprocess import Job, Preprocess, serve
from ai.data.storage import columns as cols
from ai.data.storage.gathering import Empty
from ai.data.workers.areas import Parcel
from ai.data.workers.pickle_by_value import ship
from ai.data.workers.supervisor import MAX_DEATHS, Supervisor
from ai.data.workers.worker import WorkerFailedError


class _Task(NamedTuple):
    future: Future[Any]
    indices: list[int]


class ThreadPool:
    """Preprocess in threads of this process."""

    def __init__(self, columns: cols.Columns, run: Preprocess, n_workers: int, timeout_s: float | None) -> None:
        self.depth = 2 * n_workers
        self._columns = columns
        self._run = run
        self._timeout_s = timeout_s
        self._executor = ThreadPoolExecutor(n_workers, "ai.data.ThreadPool")

    def submit(self, seed: int, epoch: int, indices: Tensor) -> _Task:
        """Queues a batch."""
        job = Job.gather(self._columns, seed, epoch, indices)
        return _Task(self._executor.submit(self._run, job, seed_globals=False), job.indices)

    def result(self, ticket: _Task, empty: Empty | None = None) -> Any:
        """Returns the batch, waiting for it."""
        done = concurrent.futures.wait([ticket.future], self._timeout_s).done
        if not done:
            raise WorkerFailedError(
                f"preprocess did not return within timeout_s ({self._timeout_s:g}) for one of {_shown(ticket.indices)}"
            )
        return ticket.future.result()

    def cancel(self, ticket: _Task) -> None:
        """Drops a batch that has not begun."""
        ticket.future.cancel()

    def close(self) -> None:
        """Stops the threads after what they are doing."""
        self._executor.shutdown(wait=False, cancel_futures=True)


class ProcessPool:
    """Preprocess in worker processes.

    The stored samples of a batch travel with its job, so a worker holds the preprocess and nothing of the dataset. A
    worker that dies is replaced and its batches are done again.
    """

    def __init__(self, columns: cols.Columns, run: Preprocess, n_workers: int, timeout_s: float | None) -> None:
        self.depth = 2 * n_workers
        self._columns = columns
        self._tickets = _Tickets(ship(partial(serve, run, timeout_s is not None)), n_workers, timeout_s)
        # The threads of the workers hold the tickets only, so that a forgotten pool is collected and closed.
        self._finalizer = weakref.finalize(self, self._tickets.workers.close)

    def submit(self, seed: int, epoch: int, indices: Tensor) -> int:
        """Sends a batch to the worker with the least to do."""
        return self._tickets.submit(partial(Job.gather, self._columns, seed, epoch, indices), indices)

    def result(self, ticket: int, empty: Empty | None = None) -> Any:
        """Returns the batch, waiting for it."""
        return self._tickets.result(ticket)

    def cancel(self, ticket: int) -> None:
        """Drops a batch; its result is thrown away."""
        self._tickets.cancel(ticket)

    def close(self) -> None:
        """Ends the workers."""
        self._finalizer()

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return self._tickets.workers.pids

    @property
    def n_deaths(self) -> int:
        """How many workers died and were replaced."""
        return self._tickets.workers.n_deaths


@dataclass
class _Entry:
    gather: Callable[..., Job]  # once more for whoever replaces a worker that may have written to what it was sent
    indices: list[int]
    place: int
    since: float = field(default_factory=time.monotonic)
    n_deaths: int = 0
    done: bool = False
    value: Any = None
    error: BaseException | None = None


class _Sign(NamedTuple):
    """The last that was heard of a worker: when, and which sample it began."""

    at: float
    sample: int | None


class _Tickets:
    """Batches that workers were asked for, each of the one with the least to do; who replaces it does them again."""

    def __init__(self, payload: bytes, n_workers: int, timeout_s: float | None) -> None:
        self._entries: dict[int, _Entry] = {}
        self._signs: dict[int, _Sign] = {}
        self._n_tickets = 0
        self._n_workers = n_workers
        self._timeout_s = timeout_s
        self.workers = Supervisor("data", lambda _place: payload, n_workers, self)
        self.workers.start()

    def submit(self, gather: Callable[..., Job], indices: Tensor) -> int:
        with self.workers.changed:
            self.workers.raise_if_over()
            ticket = self._n_tickets
            self._n_tickets += 1
            place = self._least_busy()
            self._entries[ticket] = _Entry(gather, indices.tolist(), place)
            post = self.workers.post(place)
        try:
            if post is not None:
                parcel = post.parcel()
                post.send((ticket, gather(None if parcel is None else partial(_empty, parcel))), parcel)
        except BaseException:  # a sample that cannot be read, or pickled
            self._entries.pop(ticket, None)
            raise
        return ticket

    def result(self, ticket: int) -> Any:
        workers = self.workers
        with workers.changed:
            entry = self._entries[ticket]
            while not entry.done and workers.broken is None and not workers.closed:
                workers.changed.wait(1 if self._timeout_s is None else min(1, self._timeout_s))
                if not entry.done and (late := self._late(entry)) is not None:
                    break
            else:
                late = None
            self._entries.pop(ticket, None)
        if late is not None:
            workers.end(entry.place)
            raise late
        if not entry.done:
            raise workers.broken or RuntimeError("this loader was closed while a batch was waited for")
        if entry.error is not None:
            raise entry.error
        return entry.value

    def cancel(self, ticket: int) -> None:
        # Atomic, and without the lock: this may be called wherever an iterator happens to be collected.
        self._entries.pop(ticket, None)

    def send_again(self, place: int) -> Iterable[Any]:
        self._signs.pop(place, None)
        mine = [(ticket, e) for ticket, e in list(self._entries.items()) if e.place == place and not e.done]
        for _, entry in mine:
            entry.since = time.monotonic()
        return [(ticket, entry.gather()) for ticket, entry in mine]

    def on_message(self, place: int, message: Any) -> bool:
        with self.workers.changed:
            if message[0] == "at":
                self._signs[place] = _Sign(time.monotonic(), message[1])
                return False
            self._signs[place] = _Sign(time.monotonic(), None)
            ticket, value, error = message
            if entry := self._entries.get(ticket):
                entry.done, entry.value, entry.error = True, value, error
            self.workers.changed.notify_all()
        return True

    def on_death(self, place: int, how: str) -> bool:
        for entry in list(self._entries.values()):
            if entry.place == place and not entry.done:
                entry.n_deaths += 1
                if entry.n_deaths > MAX_DEATHS:
                    entry.error = WorkerFailedError(
                        f"{entry.n_deaths} workers died on the batch of {_shown(entry.indices)}, the last {how}"
                    )
                    entry.done = True
        return True

    def on_change(self) -> None:
        pass

    def _late(self, entry: _Entry) -> WorkerFailedError | None:
        """Returns what to raise if the worker of a batch has been on one sample for too long."""
        if self._timeout_s is None:
            return None
        sign = self._signs.get(entry.place, _Sign(0.0, None))
        if time.monotonic() - max(sign.at, entry.since if sign.sample is None else 0.0) <= self._timeout_s:
            return None
        what = f"one of {_shown(entry.indices)}" if sign.sample is None else f"sample {sign.sample}"
        return WorkerFailedError(f"preprocess did not return within timeout_s ({self._timeout_s:g}) for {what}")

    def _least_busy(self) -> int:
        load = [0] * self._n_workers
        for entry in list(self._entries.values()):
            load[entry.place] += not entry.done
        return load.index(min(load))


def _empty(parcel: Parcel, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Returns memory for a tensor, in a parcel where it has room."""
    room = parcel.room(math.prod(shape) * dtype.itemsize)
    return (
        torch.empty(shape, dtype=dtype, device="cpu")
        if room is None
        else torch.from_numpy(room).view(dtype).view(shape)
    )


def _shown(indices: list[int]) -> str:
    return f"the samples {indices[:8]}{' …' if len(indices) > 8 else ''}"
