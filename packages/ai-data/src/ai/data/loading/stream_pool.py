"""Worker processes that read an iterable dataset ahead of use."""

import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

from ai.data.loading.stream_reading import Cursor, Reading, serve_reading
from ai.data.workers.pickle_by_value import ship
from ai.data.workers.supervisor import Supervisor
from ai.data.workers.worker import WorkerFailedError


class Place(NamedTuple):
    """Where the parts of a stream are, one for each worker, and whose batch comes next.

    `None` stands for a part that has ended. One cursor is of a dataset that does not divide itself.
    """

    cursors: tuple[Cursor | None, ...] = (Cursor(),)
    turn: int = 0


class Readers:
    """Reads a dataset in `n_workers` processes, from which batches are taken in turn.

    Of a dataset that does not divide itself among workers each reads all and gives its share, so that the batches are
    those of one reader. A worker that dies is replaced, and goes on where its last batch ended.

    Args:
        reading: what to read; shipped at once.
        n_workers: at least 1; they start with the first batch.
        prefetch: batches to ask for ahead of use.
        timeout_s: how long a batch may take; None for no limit.
    """

    def __init__(self, reading: Reading, n_workers: int, prefetch: int, timeout_s: float | None) -> None:
        self.n_workers = n_workers
        self._prefetch = prefetch
        self._turns = _Turns([ship(partial(serve_reading, reading, w, n_workers)) for w in range(n_workers)], timeout_s)
        self._finalizer = weakref.finalize(self, self._turns.workers.close)

    @property
    def divides(self) -> bool | None:
        """Whether the dataset divides itself among workers; None before one has answered."""
        return self._turns.divides

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return self._turns.workers.pids

    @property
    def n_deaths(self) -> int:
        """How many workers died and were replaced."""
        return self._turns.workers.n_deaths

    def read(self, seed: int, place: Place) -> Iterator[tuple[Any, Place]]:
        """Yields batches from a place on, each with the place after it; ends the reading before it."""
        if len(place.cursors) == 1:  # one place for all: whose turn it is does not matter
            place = Place(place.cursors * self.n_workers, 0)
            number = self._turns.begin(seed, place.cursors, list(range(self.n_workers)))
        else:
            number = self._turns.begin(seed, place.cursors, [0] * self.n_workers)
        return self._batches(number, place)

    def close(self) -> None:
        """Ends the workers."""
        self._finalizer()

    def _batches(self, number: int, place: Place) -> Iterator[tuple[Any, Place]]:
        cursors, turn = list(place.cursors), place.turn
        ended = {worker for worker, cursor in enumerate(cursors) if cursor is None}
        asked: deque[int] = deque()
        while True:
            while len(asked) < self._prefetch and len(ended) < self.n_workers:
                while turn in ended:
                    turn = (turn + 1) % self.n_workers
                self._turns.ask(number, turn)
                asked.append(turn)
                turn = (turn + 1) % self.n_workers
            if not asked:
                return
            worker = asked.popleft()
            kind, content, cursor = self._turns.take(number, worker)
            if kind == "failed":
                raise content
            if kind == "end":
                ended.add(worker)
                cursors[worker] = None
                continue
            cursors[worker] = cursor
            yield content, Place(tuple(cursors), (worker + 1) % self.n_workers) if self.divides else Place((cursor,))


class _Turns:
    """What was asked of each reader and what it answered; one that dies goes on after its last answer."""

    def __init__(self, payloads: list[bytes], timeout_s: float | None) -> None:
        self.divides: bool | None = None
        self.workers = Supervisor("reading", payloads.__getitem__, len(payloads), self)
        self._n = len(payloads)
        self._timeout_s = timeout_s
        self._started = False
        self._number = 0
        self._seed = 0
        self._cursors: list[Cursor | None] = []  # by worker: after its last answer
        self._n_others: list[int] = []  # batches of others before its next one
        self._asked = [0] * self._n  # requests without an answer
        self._answers: list[deque[tuple[str, Any, Cursor | None]]] = []

    def begin(self, seed: int, cursors: tuple[Cursor | None, ...], n_others: list[int]) -> int:
        """Begins a reading and returns its number."""
        with self.workers.changed:
            self._raise_if_over(self._number)
            self._number += 1
            self._seed = seed
            self._cursors = list(cursors)
            self._n_others = n_others
            self._asked = [0] * self._n
            self._answers = [deque() for _ in range(self._n)]
            self.workers.changed.notify_all()
            number, posts = self._number, [self.workers.post(worker) for worker in range(self._n)]
            messages = [self._beginning(worker) for worker in range(self._n)]
        if not self._started:
            self._started = True
            self.workers.start()  # which tells them to begin
            return number
        for post, message in zip(posts, messages, strict=True):
            if post is not None:
                post.send(message)
        return number

    def ask(self, number: int, worker: int) -> None:
        with self.workers.changed:
            self._raise_if_over(number)
            self._asked[worker] += 1
            post = self.workers.post(worker)
        if post is not None:
            post.send(("next", number))

    def take(self, number: int, worker: int) -> tuple[str, Any, Cursor | None]:
        """Returns the worker's next answer, waiting for it."""
        since = time.monotonic()
        with self.workers.changed:
            while True:
                self._raise_if_over(number)
                if self._answers[worker]:
                    return self._answers[worker].popleft()
                if self._timeout_s is not None and time.monotonic() - since > self._timeout_s:
                    break
                self.workers.changed.wait(1 if self._timeout_s is None else min(1, self._timeout_s))
            cursor = self._cursors[worker] or Cursor()
        self.workers.end(worker)
        raise WorkerFailedError(
            f"the dataset gave no batch within timeout_s ({self._timeout_s:g}): reader {worker} of {self._n} was "
            f"{cursor.n_given} samples into pass {cursor.epoch}"
        )

    def send_again(self, place: int) -> Iterable[Any]:
        return [self._beginning(place), *(("next", self._number) for _ in range(self._asked[place]))]

    def on_message(self, place: int, message: Any) -> bool:
        number, kind, content, cursor, divides = message
        with self.workers.changed:
            if number == self._number:
                if kind == "batch":  # who begins at the end of its part does not look
                    self.divides = divides
                self._asked[place] -= 1
                self._answers[place].append((kind, content, None if cursor is None else Cursor(*cursor)))
                if kind == "batch":
                    self._cursors[place] = Cursor(*cursor)
                    self._n_others[place] = 0 if divides else self._n - 1
                self.workers.changed.notify_all()
        return True

    def on_death(self, place: int, how: str) -> bool:
        return True

    def on_change(self) -> None:
        pass

    def _beginning(self, worker: int) -> tuple[Any, ...]:
        cursor = self._cursors[worker] or Cursor()
        return "begin", self._number, self._seed, tuple(cursor), self._n_others[worker]

    def _raise_if_over(self, number: int) -> None:
        self.workers.raise_if_over()
        if number != self._number:
            raise RuntimeError("this iterator has ended: its loader was iterated again since")
