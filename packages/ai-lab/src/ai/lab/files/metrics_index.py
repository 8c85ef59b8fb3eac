"""A metrics file as columns of numbers beside it, written as the file grows, so that long curves open at once.

`metrics.columns` is an index: it may be deleted at any time, and is left aside where it does not match its file. It is
a sequence of blocks, each of them for a further part of the file. Format, little-endian: an unsigned 32-bit length, a
JSON head, padding to 8, then for each kind of row n int64 places among the rows, n int64 steps, n float64 times and for
each key n float64. The head holds `format`, `to` (how many bytes of the file are covered with this block), `tail` (the
last of them), `rows` (how many rows the blocks hold so far), `kinds` (`[[keys, n], …]`) and `damaged`.
"""

import functools
import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ai.lab.files.load import read_end
from ai.lab.files.metrics_columns import Columns, Table, extend_table
from ai.lab.files.metrics_file import Row, each_row, parse_rows, read_lines

BLOCK_BYTES = 1 << 20
"""So much of a metrics file makes a block; shorter files are read as fast without."""
FORMAT = 2
_TAIL = 200
_END_BYTES = 1 << 16
_FEW = 30
"""A pattern that tries so many names at each key is faster than one that lists the keys; beyond, it grows with both."""
_KEY = re.compile(rb'[{,]\s*("(?:[^"\\]|\\.)*")\s*:')


class Index:
    """Writes the index of a metrics file; for who alone writes the file.

    Args:
        path: The metrics file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.take_up()

    def move_to(self, path: Path) -> None:
        """Goes on where the file was moved to."""
        self._path = path

    def take_up(self) -> None:
        """Finds out what is covered: at the beginning, and after the file was cut."""
        self.covered, self._rows, self._end = 0, 0, 0
        for head, _, end in _heads(self._path):
            self.covered, self._rows, self._end = head["to"], head["rows"], end

    def extend(self) -> None:
        """Brings the index up to date; a part shorter than a block is left for later."""
        if _size(self._path) - self.covered < BLOCK_BYTES:
            return
        with open(index_of(self._path), "r+b" if self._end else "wb") as file:
            file.seek(self._end)
            file.truncate()
            while lines := read_lines(self._path, self.covered, 16 * BLOCK_BYTES):
                table = Table()
                table.n = self._rows
                table.add(lines)
                self.covered, self._rows = self.covered + len(lines), table.n
                _write_block(file, table, self.covered, self._rows, lines[-_TAIL:])
            self._end = file.tell()


def _write_block(file: Any, table: Table, covered: int, rows: int, tail: bytes) -> None:
    head = json.dumps(
        {
            "format": FORMAT,
            "to": covered,
            "tail": tail.decode("latin-1"),
            "rows": rows,
            "damaged": table.damaged,
            "kinds": [[kind.keys, kind.order.n] for kind in table.kinds],
        }
    ).encode()
    head += b" " * (-(4 + len(head)) % 8)
    file.write(struct.pack("<I", len(head)) + head)
    for kind in table.kinds:
        for array in kind.arrays:
            file.write(array.view.tobytes())


def load_index(path: Path) -> tuple[Table, int]:
    """Returns what the index holds and the bytes of the metrics file that it covers; without one, nothing and 0."""
    table, covered = Table(), 0
    heads = list(_heads(path))
    try:
        with open(index_of(path), "rb") as file:
            for head, start, _ in heads:
                file.seek(start)
                for keys, n in head["kinds"]:
                    kinds = ["<i8", "<i8", "<f8", *["<f8"] * len(keys)]
                    table.append(tuple(map(str, keys)), [np.frombuffer(file.read(8 * n), kind, n) for kind in kinds])
                table.n, covered = head["rows"], head["to"]
                table.damaged += head["damaged"]
    except (OSError, ValueError, KeyError, TypeError):
        return Table(), 0
    return table, covered


def read_indexed(path: Path) -> Columns:
    """Returns all columns of a metrics file: from its index where there is one, the rest from the lines."""
    return read_indexed_table(path).columns()


def read_indexed_table(path: Path) -> Table:
    """Returns a metrics file as a table: from its index where there is one, the rest from the lines."""
    table, covered = load_index(path)
    extend_table(table, path, covered)
    return table


def last_values(path: str | Path) -> Row:
    """Returns each key's last value, with the last `step` and `time`.

    They are taken from its last line, or from its end; where a key stands only before that, from the ends of the
    index's columns and what follows them.
    """
    try:
        lines, start = read_end(path, _END_BYTES)
    except FileNotFoundError:
        return {}
    lines = lines[lines.find(b"\n") + 1 if start else 0 : lines.rfind(b"\n") + 1]
    last: Row = next(iter(parse_rows(lines[lines.rfind(b"\n", 0, -1) + 1 :])), {})
    if not last or _names_others(lines, last):
        for row in parse_rows(lines):
            last.update(row)
    if start and _has_other_keys(Path(path), last):
        last, covered = _indexed_last(Path(path))
        for row in each_row(Path(path), covered):
            last.update(row)
    return last


def _indexed_last(path: Path) -> tuple[Row, int]:
    """Returns the last values that the index tells, of each column its end alone, and the bytes that it covers."""
    last, places, covered = Row(), dict[str, int](), 0
    try:
        with open(index_of(path), "rb") as file:
            for head, start, _ in _heads(path):
                for keys, n in head["kinds"]:
                    if not n:
                        continue
                    ends: list[Any] = []
                    for array, kind in enumerate(["<q", "<q", "<d", *["<d"] * len(keys)]):
                        file.seek(start + 8 * (n * (array + 1) - 1))
                        ends += struct.unpack(kind, file.read(8))
                    place, *values = ends
                    for key, value in zip(["step", "time", *keys], values, strict=True):
                        if place >= places.get(key, place):
                            last[key], places[key] = value, place
                    start += 8 * n * len(ends)
                covered = head["to"]
    except (OSError, struct.error):
        return {}, 0
    return last, covered


def _has_other_keys(path: Path, known: Row) -> bool:
    """Whether a key stands in the file that is not known: in the heads of its index, or in the lines after that."""
    start = 0
    for head, _, _ in _heads(path):
        if any(key not in known for keys, _ in head["kinds"] for key in keys):
            return True
        start = head["to"]
    while lines := read_lines(path, start, 16 * BLOCK_BYTES):
        if _names_others(lines, known):
            return True
        start += len(lines)
    return False


def _names_others(lines: bytes, known: Row) -> bool:
    """Whether a key stands in lines that is not known: looked for in the bytes, faster than in the rows.

    Of lines that hold text besides keys, or few keys of many, it may say so where there is none.
    """
    if len(known) <= _FEW:
        return _only(tuple(known)).fullmatch(lines) is None
    return not {json.dumps(key).encode() for key in known}.issuperset(_KEY.findall(lines))


@functools.lru_cache(256)
def _only(known: tuple[str, ...]) -> re.Pattern[bytes]:
    """Returns the pattern of lines in which each quote begins or ends a known key; it goes over them once."""
    names = b"|".join(re.escape(json.dumps(key)[1:-1].encode()) for key in known)
    return re.compile(rb'(?:[^"]*+"(?:' + names + rb')"\s*+:)*+[^"]*+')


def index_of(path: Path) -> Path:
    """Returns where the index of a metrics file lies."""
    return path.with_suffix(".columns")


def _heads(path: Path) -> Iterator[tuple[dict[str, Any], int, int]]:
    """Yields head, start of the arrays and end of each block that matches the metrics file."""
    try:
        size, at = _size(index_of(path)), 0
        with open(index_of(path), "rb") as file, open(path, "rb") as metrics:
            while at + 4 <= size:
                file.seek(at)
                (length,) = struct.unpack("<I", file.read(4))
                head = json.loads(file.read(min(length, size)))
                start = at + 4 + length
                end = start + sum(8 * n * (3 + len(keys)) for keys, n in head["kinds"])
                tail = head["tail"].encode("latin-1")
                metrics.seek(head["to"] - len(tail))
                if head["format"] != FORMAT or end > size or metrics.read(len(tail)) != tail:
                    return  # of another format, torn, or the file was cut or written anew since
                yield head, start, end
                at = end
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
