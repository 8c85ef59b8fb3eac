"""Looking a little longer before going to sleep: waking a process costs more than a small model does."""

import os
import time
from collections.abc import Callable

_WINDOW_S = 200e-6
_MAX_SKIPS = 255


class Spinner:
    """Waits for an event by looking, for a moment, and only while that has been paying off.

    Each time in vain doubles the number of later waits that do not even try, and each success halves it, so that
    neither a slow model nor a busy machine pays for it. Between two looks the core is offered to whoever else can run.
    On a single core it never looks.

    Args:
        window_s: how long to look, in seconds.
    """

    def __init__(self, window_s: float = _WINDOW_S) -> None:
        self._window_s = window_s
        self._enabled = _n_cores() > 1 and hasattr(os, "sched_yield")
        self._skips = self._penalty = 0

    def wait(self, done: Callable[[], bool]) -> bool:
        """Returns whether `done()` came true within the moment."""
        if not self._enabled:
            return False
        if self._skips:
            self._skips -= 1
            return False
        clock, give_way = time.perf_counter, os.sched_yield
        end = clock() + self._window_s
        while clock() < end:
            if done():
                self._penalty //= 2
                self._skips = self._penalty
                return True
            give_way()
        self._penalty = min(2 * self._penalty + 1, _MAX_SKIPS)
        self._skips = self._penalty
        return False


def _n_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
