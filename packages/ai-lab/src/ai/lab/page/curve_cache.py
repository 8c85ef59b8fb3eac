"""Columns of metrics kept in memory and extended by what is appended to their files."""

import os
import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np

from ai.lab.files.metrics_columns import Columns, Table, extend_table
from ai.lab.files.metrics_index import load_index
from ai.lab.page.smooth import smooth

SMOOTHED = 500
"""So many smoothed curves are kept."""
CACHED_BYTES = 512 << 20
"""So much memory the columns may take before the least recently used are let go."""


class CurveCache:
    """The columns of the files that were asked for last."""

    def __init__(self) -> None:
        self._tails: OrderedDict[Path, _Tail] = OrderedDict()
        self._smoothed: OrderedDict[tuple[Path, str], tuple[float, np.ndarray, object]] = OrderedDict()
        self._nbytes = 0
        self._lock = threading.Lock()

    def columns(self, path: Path) -> Columns:
        """Returns a file's columns; only what was appended since the last call is read."""
        with self._lock:
            tail = self._tails.setdefault(path, _Tail(path))
            self._tails.move_to_end(path)
            self._nbytes -= tail.table.nbytes
            try:
                tail.update()
                return tail.table.columns()
            finally:
                self._nbytes += tail.table.nbytes
                while len(self._tails) > 1 and self._nbytes > CACHED_BYTES:
                    self._nbytes -= self._tails.popitem(last=False)[1].table.nbytes

    def smoothed(self, path: Path, key: str, weight: float) -> np.ndarray:
        """Returns the moving average of one of a file's columns."""
        values = self.columns(path)[key][2]
        known = self._smoothed.get((path, key))
        if known is None or known[0] != weight or len(known[1]) != len(values) or known[2] is not values.base:
            known = self._smoothed[path, key] = (weight, smooth(values, weight), values.base)
            if len(self._smoothed) > SMOOTHED:
                self._smoothed.popitem(last=False)
        return known[1]

    def forget(self, folder: Path) -> None:
        """Lets go what was read from a folder's files."""
        with self._lock:
            for path in [path for path in self._tails if path.parent == folder]:
                self._nbytes -= self._tails.pop(path).table.nbytes


class _Tail:
    """A metrics file's columns, extended by what is appended to it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0
        self._inode = -1
        self._end = b""
        self.table = Table()

    def update(self) -> None:
        try:
            status = os.stat(self._path)
        except FileNotFoundError:
            return
        if status.st_size < self._read or self._inode not in (-1, status.st_ino) or not self._goes_on():
            self._read, self.table = 0, Table()  # cut by a resumed run, or written anew
        if self._read == 0:
            self.table, self._read = load_index(self._path)
        self._inode = status.st_ino
        if status.st_size != self._read:
            self._read = extend_table(self.table, self._path, self._read)
        self._end = self._tail()

    def _goes_on(self) -> bool:
        """Whether what was read last still stands there."""
        return self._tail() == self._end

    def _tail(self) -> bytes:
        with open(self._path, "rb") as file:
            file.seek(max(0, self._read - 64))
            return file.read(min(64, self._read))
