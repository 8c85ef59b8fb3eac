"""The metrics file: one JSON object a line, one line a logged step.

    {"step": 100, "time": 1764000000.123, "loss": 0.25, "accuracy": 0.9}

`step` and `time` (seconds since the epoch) come first, every other key is a number. A line is handed to the operating
system in one write before `write` returns, so a killed process loses none; what a crash of the machine or a full disk
leaves of a last line is ignored by readers and cut off by the next writer. NaN and infinities are written as Python's
`json` writes them. What else stands in a file, by damage or by hand, is passed over: a line that is no row, a value
that is no number.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ai.lab.files.load import is_number, is_step, parse

Row = dict[str, float]
_BLOCK_BYTES = 1 << 24


def read_rows(path: Path, start: int = 0) -> list[Row]:
    """Returns the rows of a metrics file from byte `start` (a line's beginning) on; a missing file has none.

    A torn last line is left out; a damaged line in the middle is skipped.
    """
    return parse_rows(read_lines(path, start))


def read_lines(path: Path, start: int = 0, limit: int = -1) -> bytes:
    """Returns the whole lines from byte `start` on, without a torn last one; about `limit` bytes of them."""
    try:
        with open(path, "rb") as file:
            file.seek(start)
            data = file.read(limit)
            while 0 <= limit <= len(data) and b"\n" not in data and (more := file.read(limit)):
                data += more  # a line longer than the limit
    except FileNotFoundError:
        return b""
    return data[: data.rfind(b"\n") + 1]


def each_row(path: Path, start: int = 0) -> Iterator[Row]:
    """Yields the rows of `read_rows`, of which only a block is held at a time."""
    while lines := read_lines(path, start, _BLOCK_BYTES):
        yield from parse_rows(lines)
        start += len(lines)


def parse_rows(lines: bytes) -> list[Row]:
    """Returns the rows that `lines` hold, of each what is a number."""
    return [row for found in parse_objects(lines) if (row := clean(found)) is not None]


def parse_objects(lines: bytes) -> list[Any]:
    """Returns what `lines` hold as JSON, unchecked; lines that are none are left out."""
    try:
        # One call of the parser for all lines is several times as fast as one each.
        text = lines.rstrip(b"\n").replace(b"\n", b",").decode()
        return list(parse(f"[{text}]"))
    except (ValueError, RecursionError):
        return [found for line in lines.split(b"\n") if line and (found := _parse(line)) is not None]


def clean(found: object) -> Row | None:
    """Returns a row, step and time first, without what is no number; None where it is no row."""
    if not isinstance(found, dict) or not is_step(found.get("step")) or not is_number(found.get("time")):
        return None
    row = {"step": found["step"], "time": found["time"]}
    for key, value in found.items():
        if type(value) is float or is_number(value):
            row[key] = value
    return row


def lines_and_rows(path: Path, start: int = 0) -> Iterator[tuple[int, bytes, Row]]:
    """Yields where each line from byte `start` on ends that holds a row, the line, and the row."""
    end = start
    for line in read_lines(path, start).splitlines(keepends=True):
        end += len(line)
        row = clean(_parse(line))
        if row is not None:
            yield end, line, row


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def cut_torn_line(descriptor: int) -> int:
    """Cuts off what follows the last line end, and returns the file's length."""
    size = os.lseek(descriptor, 0, os.SEEK_END)
    end, chunk = size, 1 << 16
    while end > 0:
        start = max(0, end - chunk)
        found = os.pread(descriptor, end - start, start).rfind(b"\n")
        if found >= 0:
            end = start + found + 1
            break
        end = start
    if end != size:
        os.ftruncate(descriptor, end)
    return end
