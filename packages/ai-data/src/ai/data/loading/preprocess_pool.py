"""Pools of threads or processes that run a dataset's preprocess ahead of use."""

import threading
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from ai.data.loading.preprocess import Job, Preprocess, serve
from ai.data.storage import columns as cols
from ai.data.workers.pickle_by_value import ship
from ai.data.workers.worker import Child, WorkerFailedError

# A batch that outlives so many workers, or a pool that loses so many in a row, is given up.
_MAX_DEATHS = 3


class ThreadPool:
    """Preprocess in threads of this process."""

    def __init__(self, columns: cols.Columns, run: Preprocess, n_workers: int) -> None:
        self.depth = 2 * n_workers
        self._columns = columns
        self._run = run
        self._executor = ThreadPoolExecutor(n_workers, "ai.data.ThreadPool")

    def submit(self, seed: int, epoch: int, indices: Tensor) -> Future[Any]:
        """Queues a batch."""
        return self._executor.submit(self._run, Job.gather(self._columns, seed, epoch, indices), seed_globals=False)

    def result(self, ticket: Future[Any]) -> Any:
        """Returns the batch, waiting for it."""
        return ticket.result()

    def cancel(self, ticket: Future[Any]) -> None:
        """Drops a batch that has not begun."""
        ticket.cancel()

    def close(self) -> None:
        """Stops the threads after what they are doing."""
        self._executor.shutdown(wait=False, cancel_futures=True)


class ProcessPool:
    """Preprocess in worker processes.

    The stored samples of a batch travel with its job, so a worker holds the preprocess and nothing of the dataset. A
    worker that dies is replaced and its batches are done again.
    """

    def __init__(self, columns: cols.Columns, run: Preprocess, n_workers: int) -> None:
        self.depth = 2 * n_workers
        self._columns = columns
        self._state = _PoolState(ship(partial(serve, run)), n_workers)
        # The threads of the workers hold the state only, so that a forgotten pool is collected and closed.
        self._finalizer = weakref.finalize(self, self._state.close)

    def submit(self, seed: int, epoch: int, indices: Tensor) -> int:
        """Sends a batch to the worker with the least to do."""
        return self._state.submit(Job.gather(self._columns, seed, epoch, indices))

    def result(self, ticket: int) -> Any:
        """Returns the batch, waiting for it."""
        return self._state.result(ticket)

    def cancel(self, ticket: int) -> None:
        """Drops a batch; its result is thrown away."""
        self._state.cancel(ticket)

    def close(self) -> None:
        """Ends the workers."""
        self._finalizer()

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [child.pid for child in self._state.children]

    @property
    def n_deaths(self) -> int:
        """How many workers died and were replaced."""
        return self._state.n_deaths


@dataclass
class _Entry:
    job: Job
    child: Child
    n_deaths: int = 0
    done: bool = False
    value: Any = None
    error: BaseException | None = None


@dataclass
class _PoolState:
    payload: bytes
    n_workers: int
    n_deaths: int = 0
    children: list[Child] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._changed = threading.Condition()
        self._entries: dict[int, _Entry] = {}
        self._n_tickets = 0
        self._deaths_in_a_row = 0
        self._broken: BaseException | None = None
        self._closed = False
        with self._changed:  # a worker that dies at once is looked for among the children
            for _ in range(self.n_workers):
                self._start_child()

    def submit(self, job: Job) -> int:
        with self._changed:
            if self._closed:
                raise RuntimeError("this loader is closed: make a new one")
            if self._broken is not None:
                raise self._broken
            ticket = self._n_tickets
            self._n_tickets += 1
            self._entries[ticket] = _Entry(job, self._least_busy())
            child = self._entries[ticket].child
        child.send((ticket, job))
        return ticket

    def result(self, ticket: int) -> Any:
        with self._changed:
            entry = self._entries[ticket]
            while not entry.done and self._broken is None and not self._closed:
                self._changed.wait(1)
            del self._entries[ticket]
        if not entry.done:
            raise self._broken or RuntimeError("this loader was closed while a batch was waited for")
        if entry.error is not None:
            raise entry.error
        return entry.value

    def cancel(self, ticket: int) -> None:
        # Atomic, and without the lock: this may be called wherever an iterator happens to be collected.
        self._entries.pop(ticket, None)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            children, self.children = self.children, []
            self._changed.notify_all()
        for child in children:
            child.close()

    def _start_child(self) -> None:
        self.children.append(Child(self.payload, self._on_message, self._on_exit))

    def _least_busy(self) -> Child:
        load = dict.fromkeys(map(id, self.children), 0)
        for entry in list(self._entries.values()):
            if not entry.done and id(entry.child) in load:
                load[id(entry.child)] += 1
        return min(self.children, key=lambda child: load[id(child)])

    def _on_message(self, child: Child, message: Any) -> None:
        with self._changed:
            if message[0] == "failed":
                self._broken = message[1]
            else:
                ticket, value, error = message
                self._deaths_in_a_row = 0
                if entry := self._entries.get(ticket):
                    entry.done, entry.value, entry.error = True, value, error
            self._changed.notify_all()

    def _on_exit(self, child: Child, how: str) -> None:
        with self._changed:
            if self._closed or child not in self.children:
                return
            self.children.remove(child)
            self.n_deaths += 1
            self._deaths_in_a_row += 1
            if self._deaths_in_a_row > _MAX_DEATHS + self.n_workers and self._broken is None:
                self._broken = WorkerFailedError(
                    f"data workers died {self._deaths_in_a_row} times in a row, the last {how}"
                )
            if self._broken is None:
                try:
                    self._start_child()
                except OSError as error:
                    self._broken = WorkerFailedError(f"a data worker {how}, and no other could be started: {error}")
            lost = {ticket: e for ticket, e in list(self._entries.items()) if e.child is child and not e.done}
            again = []
            for ticket, entry in lost.items():
                entry.n_deaths += 1
                if entry.n_deaths > _MAX_DEATHS:
                    rows = entry.job.indices
                    entry.error = WorkerFailedError(
                        f"{entry.n_deaths} workers died on the batch of the samples {rows[:8]}"
                        f"{' …' if len(rows) > 8 else ''}, the last {how}"
                    )
                    entry.done = True
                elif self._broken is None:
                    entry.child = self._least_busy()
                    again.append((entry.child, ticket, entry.job))
            self._changed.notify_all()
        for new_child, ticket, job in again:
            new_child.send((ticket, job))
