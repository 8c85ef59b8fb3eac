"""How many rows a call of the model should have at most, found out while serving."""


class BatchLimit:
    """A cap that moves among powers of two towards the most rows per second.

    Only full batches count, and only while more requests wait: it is then that the cap costs anything. A doubling is
    kept if it gains at least two per cent, so that the cap (and with it the latency) grows no further than it pays.

    Args:
        start: the first cap, in rows, a power of two.
        limit: the last, a power of two.

    >>> cap = BatchLimit(start=4)
    >>> for _ in range(100):  # twice the rows take twice the time: nothing is gained
    ...     _ = cap.update(cap.rows, 0.001 * cap.rows, backlog=True)
    >>> cap.rows
    4
    """

    _TRIALS = 8  # batches before a cap is judged
    _GAIN = 1.02

    def __init__(self, start: int = 8, limit: int = 4096) -> None:
        self.rows = start
        self._limit = limit
        self._best = start
        self._speed: dict[int, float] = {}  # rows per second at each cap tried
        self._seconds: list[float] = []
        self._settled = False

    def update(self, rows: int, seconds: float, backlog: bool) -> int:
        """Takes in how long a batch took, and returns the cap for the next one, in rows."""
        if self._settled or rows < self.rows or not backlog:
            return self.rows
        self._seconds.append(seconds)
        if len(self._seconds) < self._TRIALS:
            return self.rows
        typical = sorted(self._seconds)[len(self._seconds) // 2]
        self._speed[self.rows] = self.rows / typical
        self._seconds = []
        if self.rows == self._best or self._speed[self.rows] > self._GAIN * self._speed[self._best]:
            self._best = self.rows
            self.rows = min(2 * self.rows, self._limit)
            self._settled = self.rows == self._best
        else:
            self.rows = self._best
            self._settled = True
        return self.rows
