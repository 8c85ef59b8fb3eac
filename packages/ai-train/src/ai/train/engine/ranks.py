"""What the processes of one run decide together; with a single process every question is answered on the spot."""

import sys
from collections.abc import Mapping
from time import perf_counter
from typing import Any

# Wishes to end the run, the stronger the higher: a hook's, a signal's.
STOP, INTERRUPT = 1, 2

Totals = dict[str, tuple[float, float]]


def rank() -> int:
    """This process's number among those that train together, 0 where it trains alone.

    Seed with it whatever draws for itself (a generator of latents, say), or every rank draws the same.

    >>> rank()
    0
    """
    distributed = sys.modules.get("torch.distributed")
    joined = distributed is not None and distributed.is_available() and distributed.is_initialized()
    return int(distributed.get_rank()) if joined and distributed is not None else 0


class Ranks:
    """A run of one process. `ai.train.distributed.process_group.GroupRanks` answers the same questions for many."""

    rank = 0
    world = 1

    def __init__(self) -> None:
        self._start = perf_counter()

    def poll(self, step: int, wish: int) -> int:
        """The strongest wish to end (0: none), the same on every rank at the same step; `wish` is this rank's own."""
        return wish

    def time(self) -> float:
        """Seconds since the run began, the same on every rank at the same step."""
        return perf_counter() - self._start

    def common(self, n_batches: int) -> int:
        """How many batches every rank has at least; where the data never ends nobody is asked."""
        return n_batches

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank (waits for all of them)."""
        return flag

    def sum_named(self, totals: Mapping[str, tuple[float, float]]) -> Totals:
        """The pairs summed by name over the ranks (waits for all of them); ranks may have different names."""
        return dict(totals)

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, in their order (waits for all of them); they are pickled."""
        return [value]

    def barrier(self) -> None:
        """Wait until every rank is here."""

    def explain(self, error: BaseException) -> None:
        """Tell the other ranks of this error, or note on it which rank's end caused it."""
