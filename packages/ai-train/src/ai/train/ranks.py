"""What the processes of one run decide together; with a single process every question is answered on the spot."""

from collections.abc import Sequence
from time import perf_counter


class Ranks:
    """A run of one process. `ai.train.parallel.GroupRanks` answers the same questions for many."""

    rank = 0
    world = 1

    def __init__(self) -> None:
        self._start = perf_counter()

    def poll(self, step: int, stop: bool) -> bool:
        """Whether to stop at this step, the same on every rank; `stop` is this rank's own wish."""
        return stop

    def time(self) -> float:
        """Seconds since the run began, the same on every rank at the same step."""
        return perf_counter() - self._start

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank (waits for all of them)."""
        return flag

    def sum(self, values: Sequence[float]) -> list[float]:
        """Element-wise sums over the ranks (waits for all of them)."""
        return list(values)

    def barrier(self) -> None:
        """Wait until every rank is here."""

    def gather(self, value: object) -> list[object]:
        """Every rank's value, in order of rank, on every rank."""
        return [value]
