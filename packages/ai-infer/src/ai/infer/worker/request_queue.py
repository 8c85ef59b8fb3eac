"""Which of the waiting requests run together next."""

import time
from collections import deque
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
    """

    def __init__(self, max_rows: int, max_delay_s: float = 0.0) -> None:
        self.max_rows = max_rows
        self.max_delay_s = max_delay_s
        self.n_requests = 0
        self._lines: dict[str | None, deque[R]] = {}

    def put(self, request: R, group: str | None) -> None:
        """Adds a request; those of group None run alone."""
        line = self._lines.get(group)
        if line is None:
            line = self._lines[group] = deque()
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
        while group is not None and line and rows + line[0].rows <= self.max_rows:
            rows += line[0].rows
            batch.append(line.popleft())
        if not line:
            del self._lines[group]
        self.n_requests -= len(batch)
        return batch

    def delay_s(self) -> float:
        """Returns how long to wait for company before the next batch, in seconds; 0: take it now."""
        if self.max_delay_s == 0.0 or not self.n_requests:
            return 0.0
        group = self._oldest()
        line = self._lines[group]
        if group is None or sum(request.rows for request in line) >= self.max_rows:
            return 0.0
        return max(0.0, line[0].arrived + self.max_delay_s - time.monotonic())

    def drop(self, of: object) -> None:
        """Forgets the requests whose `client` is `of`."""
        for group, line in list(self._lines.items()):
            kept = deque(request for request in line if getattr(request, "client", None) is not of)
            self.n_requests -= len(line) - len(kept)
            if kept:
                self._lines[group] = kept
            else:
                del self._lines[group]

    def _oldest(self) -> str | None:
        if len(self._lines) == 1:
            return next(iter(self._lines))
        return min(self._lines, key=lambda group: self._lines[group][0].arrived, default=_NOTHING)


_NOTHING = "\0"
