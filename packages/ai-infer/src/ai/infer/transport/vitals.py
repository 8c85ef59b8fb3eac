"""What a worker shows of itself in shared memory, so that it can be looked at while it is in the model, or hangs."""

import os
import struct
import time
from operator import attrgetter
from pathlib import Path

import numpy as np

from ai.infer.stats import Stats
from ai.infer.transport.shared_memory import map_file

_COUNTERS = ("requests", "rows", "batches", "errors", "cancelled", "queued", "clients", "version")
_counters = attrgetter(*_COUNTERS)
_N_BYTES = 128
_BUSY_NS, _STARTED, _SEEN, _BUSY_SINCE = range(len(_COUNTERS), len(_COUNTERS) + 4)
_SHOWN = struct.Struct(f"@{_BUSY_SINCE}q")
BEAT_S = 5.0
"""How often a worker that has nothing to do shows that it lives."""


class Vitals:
    """Counters of one worker, written by it, and read by its starter and by clients that wait long.

    Args:
        path: of the file.
        new: whether to make it.

    Raises:
        OSError: there is none.
    """

    def __init__(self, path: Path, *, new: bool = False) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if new else 0), 0o600)
        try:
            if new:
                os.ftruncate(descriptor, _N_BYTES)
            numbers = map_file(descriptor, _N_BYTES).numpy()
            self._bytes, self._cells = numbers.data, numbers.view(np.int64).data
        finally:
            os.close(descriptor)

    def begin_call(self) -> None:
        """Says that the worker calls the model from now on; each call of several in a batch shows that it moves."""
        self._cells[_BUSY_SINCE] = int(time.monotonic() * 1e9)

    def end_call(self) -> None:
        """Says that it is back."""
        self._cells[_BUSY_SINCE] = 0

    def write(self, stats: Stats) -> None:
        """Shows the worker's counters."""
        now = time.monotonic()
        times = (int(stats.busy_s * 1e9), int((now - stats.uptime_s) * 1e9), int(now * 1e9))
        self._bytes[: _SHOWN.size] = _SHOWN.pack(*_counters(stats), *times)

    def read(self) -> Stats:
        """Returns the counters as they were last shown, a moment ago or before the batch that runs."""
        cells = self._cells.tolist()
        counters = dict(zip(_COUNTERS, cells[: len(_COUNTERS)], strict=True))
        uptime_s = time.monotonic() - cells[_STARTED] / 1e9 if cells[_STARTED] else 0.0
        return Stats(**counters, busy_s=cells[_BUSY_NS] / 1e9, uptime_s=uptime_s)

    @property
    def in_call_s(self) -> float:
        """How long the worker has been in the call of the model that runs, in seconds; 0: in none."""
        since: int = self._cells[_BUSY_SINCE]
        return max(0.0, time.monotonic() - since / 1e9) if since else 0.0

    def hangs(self, limit_s: float) -> str | None:
        """Returns how the worker hangs; None: it moves, or has not begun.

        Args:
            limit_s: how long one call of the model may take.
        """
        since: int = self._cells[_BUSY_SINCE]
        seen: int = self._cells[_SEEN]
        now = time.monotonic()
        if since and now - since / 1e9 > limit_s:
            return f"the worker has been in one call of the model for over {limit_s:g} s (stall_timeout_s)"
        if not since and seen and now - seen / 1e9 > limit_s + 2 * BEAT_S:
            return f"the worker's process has not run for over {limit_s:g} s (stall_timeout_s): it may be stopped"
        return None

    def clear(self) -> None:
        """Forgets what a worker that died showed."""
        for i in range(_BUSY_SINCE + 1):
            self._cells[i] = 0
