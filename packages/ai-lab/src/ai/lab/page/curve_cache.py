"""Columns of metrics kept in memory and extended by what is appended to their files."""

import contextlib
import hashlib
import os
import secrets
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ai.lab.files.metrics_columns import Columns, Growing, Table, extend_table
from ai.lab.files.metrics_index import load_index
from ai.lab.page.smooth import MovingAverage, smooth

CACHED_BYTES = 512 << 20
"""So much memory the columns may take before the least recently used are let go."""
_TAIL_BYTES = 4096
"""Rows end alike where values repeat: so much of what was read last has a time in it."""


class CurveCache:
    """The columns of the files that were asked for last."""

    def __init__(self) -> None:
        self._tails: OrderedDict[Path, _Tail] = OrderedDict()
        self._nbytes = 0
        self._lock = threading.Lock()

    def columns(self, path: Path) -> Columns:
        """Returns a file's columns; only what was appended since the last call is read."""
        return self.named(path)[1]

    def named(self, path: Path) -> tuple[str, Columns]:
        """Returns a file's columns, with a name that they have as long as they only grow."""
        with self._lock:
            columns = self._table(path).columns()
            return self._tails[path].name, columns

    def last(self, path: Path) -> dict[str, float]:
        """Returns the last value of each of a file's columns, and the last `step` and `time`."""
        with self._lock:
            return self._table(path).last()

    def damaged(self, path: Path) -> int:
        """Returns how many of a file's lines are no rows, or hold values that are no numbers."""
        with self._lock:
            return self._table(path).damaged

    def _table(self, path: Path) -> Table:
        with self._counted(path, self._tails.setdefault(path, _Tail(path))) as tail:
            tail.update()
            return tail.table

    def smoothed(self, path: Path, name: str, key: str, values: np.ndarray, weight: float) -> np.ndarray:
        """Returns the moving average of the values of a column that came with a name; only what is new is averaged."""
        with self._lock:
            tail = self._tails.get(path)
            if tail is None or tail.name != name:  # let go, or written anew, since
                return smooth(values, weight)
            with self._counted(path, tail):
                return tail.smoothed(key, values, weight)

    @contextlib.contextmanager
    def _counted(self, path: Path, tail: "_Tail") -> Iterator["_Tail"]:
        """Lets a tail be changed, counts what it takes then, and lets go what was not asked for the longest."""
        self._tails.move_to_end(path)
        self._nbytes -= tail.nbytes
        try:
            yield tail
        finally:
            self._nbytes += tail.nbytes
            while len(self._tails) > 1 and self._nbytes > CACHED_BYTES:
                self._nbytes -= self._tails.popitem(last=False)[1].nbytes

    def forget(self, folder: Path) -> None:
        """Lets go what was read from a folder's files."""
        with self._lock:
            for path in [path for path in self._tails if path.parent == folder]:
                self._nbytes -= self._tails.pop(path).nbytes


class _Tail:
    """A metrics file's columns, extended by what is appended to it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._begin()

    def _begin(self) -> None:
        self.name = secrets.token_hex(4)
        self.table = Table()
        self._averages: dict[str, tuple[float, MovingAverage, Growing]] = {}
        self._read = 0
        self._inode = -1
        self._end = b""

    @property
    def nbytes(self) -> int:
        return self.table.nbytes + sum(kept.nbytes for _, _, kept in self._averages.values())

    def smoothed(self, key: str, values: np.ndarray, weight: float) -> np.ndarray:
        if key not in self._averages or self._averages[key][0] != weight:
            self._averages[key] = (weight, MovingAverage(weight), Growing(np.float64))
        _, average, kept = self._averages[key]
        if kept.n < len(values):
            kept.append(average.extend(values[kept.n :]))
        return kept.view[: len(values)]

    def update(self) -> None:
        try:
            self._update()
        except BaseException as error:  # a part may be taken up already: the next look must not take it up again
            self._begin()
            if not isinstance(error, FileNotFoundError):
                raise

    def _update(self) -> None:
        status = os.stat(self._path)
        if status.st_size < self._read or self._inode not in (-1, status.st_ino) or self._tail() != self._end:
            self._begin()  # cut by a resumed run, or written anew
        if self._read == 0:
            self.table, self._read = load_index(self._path)
        self._inode = status.st_ino
        if status.st_size != self._read:
            self._read = extend_table(self.table, self._path, self._read)
        self._end = self._tail()

    def _tail(self) -> bytes:
        """Returns a digest of what was read last as it stands there now."""
        with open(self._path, "rb") as file:
            file.seek(max(0, self._read - _TAIL_BYTES))
            return hashlib.blake2b(file.read(min(_TAIL_BYTES, self._read)), digest_size=16).digest()
