"""Which of the waiting requests run together next."""

import heapq
import time
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Generic, Protocol, TypeVar


class _Request(Protocol):
    rows: int
    arrived: float


R = TypeVar("R", bound=_Request)


class RequestQueue(Generic[R]):
    """Waiting requests, in one line per group, so that only requests that fit together meet in a batch.

    Natural batching: nobody waits while the worker is idle, and everything that came while it was busy goes together.

    Args:
        max_rows: of a batch.
        max_delay_s: how long the oldest request may wait for company; 0: not at all.
        runs_alone: whether requests of a group run one a batch now.
    """

    def __init__(
        self, max_rows: int, max_delay_s: float = 0.0, runs_alone: Callable[[str], bool] = lambda group: False
    ) -> None:
        self.max_rows = max_rows
        self.max_delay_s = max_delay_s
        self._runs_alone = runs_alone
        self.n_requests = 0
        self._lines: dict[str | None, _Line[R]] = {}
        self._heads: list[tuple[float, int, str | None]] = []  # a heap: when the first of each line arrived
        self._numbers = count()

    def put(self, request: R, group: str | None) -> None:
        """Adds a request; those of group None run alone."""
        line = self._lines.get(group)
        if line is None:
            line = self._lines[group] = _Line([request])
            if len(self._lines) == 2:  # a line that was alone had no need of the heap
                self._heads.clear()
                for each, other in self._lines.items():
                    self._set_head(each, other)
            else:
                self._set_head(group, line)
        else:
            line.append(request)
        self.n_requests += 1

    def next_batch(self) -> list[R]:
        """Takes the oldest request and those of its group that fit beside it; empty if nothing waits."""
        group = self._oldest()
        if group is _NOTHING:
            return []
        line = self._lines[group]
        batch = [line.popleft()]
        rows = batch[0].rows
        if line and group is not None and not self._runs_alone(group):
            while line and rows + line[0].rows <= self.max_rows:
                rows += line[0].rows
                batch.append(line.popleft())
        if line:
            self._set_head(group, line)
        else:
            del self._lines[group]
        self.n_requests -= len(batch)
        return batch

    def delay_s(self) -> float:
        """Returns how long to wait for company before the next batch, in seconds; 0: take it now."""
        if self.max_delay_s == 0.0 or not self.n_requests:
            return 0.0
        group = self._oldest()
        line = self._lines[group]
        if group is None or self._runs_alone(group) or sum(request.rows for request in line) >= self.max_rows:
            return 0.0
        return max(0.0, line[0].arrived + self.max_delay_s - time.monotonic())

    def drop(self, of: object) -> None:
        """Forgets the requests whose `client` is `of`."""
        for group, line in list(self._lines.items()):
            kept = _Line(request for request in line if getattr(request, "client", None) is not of)
            if len(kept) == len(line):
                continue
            self.n_requests -= len(line) - len(kept)
            if kept:
                self._lines[group] = kept
                self._set_head(group, kept)
            else:
                del self._lines[group]

    def _set_head(self, group: str | None, line: "_Line[R]") -> None:
        if len(self._lines) > 1:
            line.head = next(self._numbers)
            heapq.heappush(self._heads, (line[0].arrived, line.head, group))

    def _oldest(self) -> str | None:
        """Returns the line whose first request has waited longest."""
        if len(self._lines) == 1:
            return next(iter(self._lines))
        while self._heads:
            _, number, group = self._heads[0]
            line = self._lines.get(group)
            if line is not None and line.head == number:
                return group
            heapq.heappop(self._heads)
        return _NOTHING


class _Line(deque[R]):
    """The waiting requests of one group."""

    head = -1
    """The number of its entry in the heap that counts: entries whose request was taken stay there."""


_NOTHING = "\0"
