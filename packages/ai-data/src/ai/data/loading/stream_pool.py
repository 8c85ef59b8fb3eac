"""Worker processes that read an iterable dataset ahead of use."""

import threading
import weakref
from collections import deque
from collections.abc import Iterator
from functools import partial
from itertools import cycle
from typing import Any

from ai.data.loading.stream_reading import Reading, serve_reading
from ai.data.workers.pickle_by_value import ship
from ai.data.workers.worker import Child, WorkerFailedError

# A pool that loses so many workers without a batch in between gives up.
_MAX_DEATHS_IN_A_ROW = 3


class Readers:
    """Reads passes over a dataset in `n_workers` processes, from which batches are taken in turn.

    Of a dataset that does not divide itself among workers each reads all and gives its share, so that the batches are
    those of one reader. A worker that dies is replaced, and its part is read again up to where it was.

    Args:
        reading: what to read; shipped at once.
        n_workers: at least 1; they start with the first pass.
        prefetch: batches to ask for ahead of use.
    """

    def __init__(self, reading: Reading, n_workers: int, prefetch: int) -> None:
        self.n_workers = n_workers
        self._prefetch = prefetch
        self._state = _State([ship(partial(serve_reading, reading, w, n_workers)) for w in range(n_workers)])
        self._finalizer = weakref.finalize(self, self._state.close)

    @property
    def divides(self) -> bool | None:
        """Whether the dataset divides itself among workers; None before one has answered."""
        return self._state.divides

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [child.pid for child in self._state.children]

    @property
    def n_deaths(self) -> int:
        """How many workers died and were replaced."""
        return self._state.n_deaths

    def read(self, seed: int, n_done: int) -> Iterator[Any]:
        """Yields the batches of a pass from number `n_done` on; ends the pass before it."""
        number = self._state.begin(seed)
        return self._batches(number, n_done)

    def close(self) -> None:
        """Ends the workers."""
        self._finalizer()

    def _batches(self, number: int, n_to_skip: int) -> Iterator[Any]:
        turns = cycle(range(self.n_workers))
        ended: set[int] = set()
        asked: deque[int] = deque()
        while True:
            # Skipping is over before batches are asked for: a worker that ends may leave more to skip to the others.
            ahead = min(self._prefetch, n_to_skip) or self._prefetch
            while len(asked) < ahead and len(ended) < self.n_workers:
                worker = next(turn for turn in turns if turn not in ended)
                self._state.ask(number, worker, "skip" if n_to_skip else "next")
                asked.append(worker)
            if not asked:
                return
            worker = asked.popleft()
            kind, content = self._state.take(number, worker)
            if kind == "failed":
                raise content
            if kind == "end":
                ended.add(worker)
            elif kind == "skipped":
                n_to_skip -= 1
            else:
                yield content


class _State:
    """What the threads of the workers share with the loader's."""

    def __init__(self, payloads: list[bytes]) -> None:
        self.children: list[Child] = []
        self.n_deaths = 0
        self.divides: bool | None = None
        self._payloads = payloads
        self._changed = threading.Condition(threading.RLock())
        self._number = 0
        self._seed = 0
        self._asked: list[deque[str]] = []  # by worker: requests without an answer
        self._answers: list[deque[tuple[str, Any]]] = []
        self._n_given: list[int] = []
        self._deaths_in_a_row = 0
        self._broken: BaseException | None = None
        self._closed = False

    def begin(self, seed: int) -> int:
        """Begins a pass and returns its number."""
        with self._changed:
            self._raise_if_over(self._number)
            self._number += 1
            self._seed = seed
            self._asked = [deque() for _ in self._payloads]
            self._answers = [deque() for _ in self._payloads]
            self._n_given = [0] * len(self._payloads)
            if not self.children:
                self.children = [Child(payload, self._on_message, self._on_exit) for payload in self._payloads]
            for child in self.children:
                child.send(("pass", self._number, seed, 0))
            self._changed.notify_all()
            return self._number

    def ask(self, number: int, worker: int, request: str) -> None:
        with self._changed:
            self._raise_if_over(number)
            self._asked[worker].append(request)
            self.children[worker].send((request, number))

    def take(self, number: int, worker: int) -> tuple[str, Any]:
        """Returns the worker's next answer, waiting for it."""
        with self._changed:
            while True:
                self._raise_if_over(number)
                if self._answers[worker]:
                    return self._answers[worker].popleft()
                self._changed.wait(1)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            children, self.children = self.children, []
            self._changed.notify_all()
        for child in children:
            child.close()

    def _raise_if_over(self, number: int) -> None:
        if self._closed:
            raise RuntimeError("this loader is closed: make a new one")
        if self._broken is not None:
            raise self._broken
        if number != self._number:
            raise RuntimeError("this iterator has ended: its loader was iterated again since")

    def _on_message(self, child: Child, message: Any) -> None:
        with self._changed:
            if message[0] == "failed":
                self._broken = message[1]
            elif message[0] == self._number and child in self.children:
                worker = self.children.index(child)
                _, self.divides, kind, content = message
                self._asked[worker].popleft()
                self._answers[worker].append((kind, content))
                self._n_given[worker] += kind in ("batch", "skipped")
                self._deaths_in_a_row = 0
            self._changed.notify_all()

    def _on_exit(self, child: Child, how: str) -> None:
        with self._changed:
            if self._closed or child not in self.children or self._broken is not None:
                return
            worker = self.children.index(child)
            self.n_deaths += 1
            self._deaths_in_a_row += 1
            if self._deaths_in_a_row > _MAX_DEATHS_IN_A_ROW + len(self._payloads):
                self._broken = WorkerFailedError(
                    f"reading workers died {self._deaths_in_a_row} times in a row, the last {how}"
                )
            else:
                try:
                    new = Child(self._payloads[worker], self._on_message, self._on_exit)
                except OSError as error:
                    self._broken = WorkerFailedError(f"a reading worker {how}, and no other could be started: {error}")
                else:
                    self.children[worker] = new
                    new.send(("pass", self._number, self._seed, self._n_given[worker]))
                    for request in self._asked[worker]:
                        new.send((request, self._number))
            self._changed.notify_all()
