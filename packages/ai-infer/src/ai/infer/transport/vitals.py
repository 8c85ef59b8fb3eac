"""What a worker shows of itself in shared memory, so that it can be looked at while it is in the model, or hangs."""

import time

import numpy as np

from ai.infer.stats import Stats
from ai.infer.transport.shared_memory import anonymous_file, map_file

_COUNTERS = ("requests", "rows", "batches", "errors", "cancelled", "queued", "clients", "version")
_N_BYTES = 128
_BUSY_SINCE, _BUSY_NS, _STARTED = len(_COUNTERS), len(_COUNTERS) + 1, len(_COUNTERS) + 2


class Vitals:
    """Counters of one worker, written by it and read by its starter.

    Args:
        descriptor: of the file that another process made; None: a new one is made.
    """

    def __init__(self, descriptor: int | None = None) -> None:
        self.descriptor = anonymous_file(_N_BYTES) if descriptor is None else descriptor
        self._cells = map_file(self.descriptor, _N_BYTES).numpy().view(np.int64).data

    def begin_call(self, at_s: float) -> None:
        """Says that the worker is in a batch from now on, and not in its loop."""
        self._cells[_BUSY_SINCE] = int(at_s * 1e9)

    def end_call(self) -> None:
        """Says that it is back."""
        self._cells[_BUSY_SINCE] = 0

    def write(self, stats: Stats) -> None:
        """Shows the worker's counters."""
        for i, name in enumerate(_COUNTERS):
            self._cells[i] = getattr(stats, name)
        self._cells[_BUSY_NS] = int(stats.busy_s * 1e9)
        self._cells[_STARTED] = int((time.monotonic() - stats.uptime_s) * 1e9)

    def read(self) -> Stats:
        """Returns the counters as they were last shown, a moment ago or before the batch that runs."""
        cells = self._cells.tolist()
        counters = dict(zip(_COUNTERS, cells[: len(_COUNTERS)], strict=True))
        uptime_s = time.monotonic() - cells[_STARTED] / 1e9 if cells[_STARTED] else 0.0
        return Stats(**counters, busy_s=cells[_BUSY_NS] / 1e9, uptime_s=uptime_s)

    @property
    def in_call_s(self) -> float:
        """How long the worker has been in the batch that runs, in seconds; 0: in none."""
        since: int = self._cells[_BUSY_SINCE]
        return max(0.0, time.monotonic() - since / 1e9) if since else 0.0

    def clear(self) -> None:
        """Forgets what a worker that died showed."""
        for i in range(_STARTED + 1):
            self._cells[i] = 0
