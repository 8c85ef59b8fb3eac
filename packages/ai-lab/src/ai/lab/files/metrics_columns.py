"""Rows of metrics as columns of numbers, filled block by block, so that a file needs less memory than disk."""

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from ai.lab.files.metrics_file import Row, clean, parse_objects, read_lines

Column = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Steps int64, times float64, values float64, each `(n,)`."""
Columns = dict[str, Column]

BLOCK_BYTES = 1 << 20
"""So much is parsed at once."""


class Growing:
    """An array that is appended to; what it gave out before stays as it was."""

    def __init__(self, dtype: Any) -> None:
        self._data = np.empty(0, dtype)
        self.n = 0

    def reserve(self, n: int) -> None:
        """Makes room for `n` in all."""
        if n > len(self._data):
            data = np.empty(n, self._data.dtype)
            data[: self.n] = self._data[: self.n]
            self._data = data

    def append(self, values: np.ndarray) -> None:
        """Appends values."""
        n = self.n + len(values)
        if n > len(self._data):
            self.reserve(max(n, int(1.3 * self.n) if self.n else n))
        self._data[self.n : n] = values
        self.n = n

    @property
    def view(self) -> np.ndarray:
        """What was appended so far, not copied."""
        return self._data[: self.n]

    @property
    def nbytes(self) -> int:
        """The memory taken."""
        return int(self._data.nbytes)


class Kind:
    """The rows that have the same keys."""

    def __init__(self, keys: tuple[str, ...]) -> None:
        self.keys = keys
        self.order, self.steps, self.times = Growing(np.int64), Growing(np.int64), Growing(np.float64)
        self.values = [Growing(np.float64) for _ in keys]
        self._place = {key: place for place, key in enumerate(keys)}

    def values_of(self, key: str) -> np.ndarray:
        """The values of one key."""
        return self.values[self._place[key]].view

    @property
    def arrays(self) -> list[Growing]:
        """All of it: places among all rows, steps, times, and the values of each key."""
        return [self.order, self.steps, self.times, *self.values]


class Merged:
    """The column of a key that several kinds of row have, in the order of writing; extended by what is new."""

    def __init__(self) -> None:
        self.steps, self.times, self.values = Growing(np.int64), Growing(np.float64), Growing(np.float64)
        self._taken: dict[int, int] = {}

    def extend(self, key: str, kinds: list[Kind]) -> None:
        """Takes up the rows that were added since; they come after all that are there."""
        new: list[tuple[np.ndarray, ...]] = []
        for index, kind in enumerate(kinds):
            part = slice(self._taken.get(index, 0), kind.order.n)
            if part.start < part.stop:
                arrays = (kind.order.view, kind.steps.view, kind.times.view, kind.values_of(key))
                new.append(tuple(array[part] for array in arrays))
                self._taken[index] = part.stop
        if new:
            order, *columns = (np.concatenate(parts) for parts in zip(*new, strict=True))
            place = np.argsort(order, kind="stable")
            for growing, column in zip((self.steps, self.times, self.values), columns, strict=True):
                growing.append(column[place])


class Table:
    r"""A metrics file's columns.

    Attributes:
        n: How many rows there are.
        damaged: How many lines were no rows, or had values that are no numbers.

    Example:
        >>> table = Table()
        >>> table.add(b'{"step": 0, "time": 1.0, "loss": 0.5}\n{"step": 9, "time": 2.0, "loss": 0.25}\n')
        >>> table.columns()["loss"][2].tolist()
        [0.5, 0.25]
    """

    def __init__(self) -> None:
        self.n = 0
        self.damaged = 0
        self._kinds: dict[tuple[str, ...], Kind] = {}
        self._keys: dict[str, list[Kind]] = {}
        self._merged: dict[str, Merged] = {}

    def add(self, lines: bytes) -> None:
        """Appends whole lines."""
        for block in _blocks(lines):
            found = parse_objects(block)
            self.damaged += block.count(b"\n") - len(found)
            for keys, (places, rows) in _by_keys(found).items():
                if keys[:2] != ("step", "time") or not self._add_plain(keys, places, rows):
                    self._add_odd(places, rows)
            self.n += len(found)

    def _add_plain(self, keys: tuple[str, ...], places: Sequence[int], rows: list[Any]) -> bool:
        """Appends rows with the same keys, if all their values are numbers."""
        values = list(chain.from_iterable(map(dict.values, rows)))
        steps = values[:: len(keys)]
        if not set(map(type, values)) <= {int, float} or set(map(type, steps)) != {int}:
            return False
        try:
            numbers = np.fromiter(values, np.float64, len(values)).reshape(len(rows), len(keys))
            arrays = [np.array(places, np.int64) + self.n, np.array(steps, np.int64), *numbers.T[1:]]
        except OverflowError:  # a step or a value that is too large
            return False
        self.append(keys[2:], arrays)
        return True

    def _add_odd(self, places: Sequence[int], rows: list[Any]) -> None:
        for place, found in zip(places, rows, strict=True):
            row = clean(found)
            self.damaged += row is None or len(row) != len(found)
            if row is not None:
                step, time, *values = row.values()
                self.append(tuple(row)[2:], [np.array([one]) for one in (place + self.n, step, time, *values)])

    def append(self, keys: tuple[str, ...], arrays: list[np.ndarray]) -> None:
        """Appends rows of one kind: places among all rows, steps, times and the values of each key."""
        kind = self._kinds.get(keys)
        if kind is None:
            kind = self._kinds[keys] = Kind(keys)
            for key in keys:
                self._keys.setdefault(key, []).append(kind)
        for growing, array in zip(kind.arrays, arrays, strict=True):
            growing.append(array)

    def columns(self) -> Columns:
        """Returns all columns by key, in the order of writing."""
        return {key: self._column(key, kinds) for key, kinds in self._keys.items()}

    def _column(self, key: str, kinds: list[Kind]) -> Column:
        if len(kinds) == 1:
            (kind,) = kinds
            return kind.steps.view, kind.times.view, kind.values_of(key)
        merged = self._merged.setdefault(key, Merged())
        merged.extend(key, kinds)
        return merged.steps.view, merged.times.view, merged.values.view

    def last(self) -> Row:
        """Returns each key's last value, and the last row's `step` and `time`."""
        kinds = [kind for kind in self._kinds.values() if kind.order.n]
        if not kinds:
            return {}
        newest = max(kinds, key=lambda kind: int(kind.order.view[-1]))
        row: Row = {"step": int(newest.steps.view[-1]), "time": float(newest.times.view[-1])}
        for key, those in self._keys.items():
            kind = max((one for one in those if one.order.n), key=lambda one: int(one.order.view[-1]))
            row[key] = float(kind.values_of(key)[-1])
        return row

    @property
    def kinds(self) -> list[Kind]:
        """The rows by their keys."""
        return list(self._kinds.values())

    @property
    def nbytes(self) -> int:
        """The memory taken."""
        merged = (array for one in self._merged.values() for array in (one.steps, one.times, one.values))
        return sum(array.nbytes for array in chain(merged, *(kind.arrays for kind in self._kinds.values())))


def read_columns(path: Path) -> Columns:
    """Returns `{key: (steps int64, times float64, values float64)}`, each `(n,)`, in the order of writing."""
    return read_table(path).columns()


def read_table(path: Path) -> Table:
    """Returns a metrics file as a table."""
    table = Table()
    extend_table(table, path, 0)
    return table


def extend_table(table: Table, path: Path, start: int) -> int:
    """Appends what a file holds from byte `start` on, read in pieces; returns where its last whole line ends."""
    while lines := read_lines(path, start, 16 * BLOCK_BYTES):
        table.add(lines)
        start += len(lines)
    return start


def _by_keys(found: list[Any]) -> dict[tuple[str, ...], tuple[Sequence[int], list[Any]]]:
    """Returns places and rows by the keys of the rows, those that are no rows under none."""
    if set(map(type, found)) == {dict} and len(kinds := set(map(tuple, found))) == 1:  # as nearly always
        return {kinds.pop(): (range(len(found)), found)}
    groups: dict[tuple[str, ...], tuple[list[int], list[Any]]] = {}
    for index, one in enumerate(found):
        places, rows = groups.setdefault(tuple(one) if type(one) is dict else (), ([], []))
        places.append(index)
        rows.append(one)
    return dict(groups)


def _blocks(lines: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(lines):
        end = lines.find(b"\n", start + BLOCK_BYTES) + 1 or len(lines)
        yield lines[start:end]
        start = end
