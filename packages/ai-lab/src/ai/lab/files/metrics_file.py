"""The metrics file: one JSON object a line, one line a logged step.

    {"step": 100, "time": 1764000000.123, "loss": 0.25, "accuracy": 0.9}

`step` and `time` (seconds since the epoch) come first, every other key is a number. A line is handed to the operating
system in one write before `write` returns, so a killed process loses none; what a crash of the machine or a full disk
leaves of a last line is ignored by readers and cut off by the next writer. NaN and infinities are written as Python's
`json` writes them.
"""

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ai.lab.files.folder import write_atomic

Row = dict[str, float]
_encode = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


class MetricsWriter:
    """Appends rows to a metrics file.

    Args:
        path: The file; made if missing. A torn last line is cut off.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "metrics.jsonl"
        >>> writer = MetricsWriter(path)
        >>> writer.write(1, {"loss": 0.5})
        >>> writer.close()
        >>> [row["loss"] for row in read_rows(path)]
        [0.5]
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        self._end = cut_torn_line(self._descriptor)

    def write(self, step: int, values: Mapping[str, object]) -> None:
        """Appends one row; numbers, 0-d tensors and 0-d arrays are taken.

        Raises:
            TypeError: a value is not one number, or a key is not text.
            ValueError: a key is empty or is one of the row's own, `step` and `time`.
            OSError: the file cannot be written; what was written before is intact.
        """
        row: dict[str, object] = {"step": step, "time": round(time.time(), 3)}
        row.update(values)
        if len(row) != len(values) + 2 or type(step) is not int:
            _refuse(step, values)
        try:
            line = _encode(row)
        except TypeError:
            line = _encode({"step": step, "time": row["time"], **_numbers(values)})
        else:
            for value in row.values():
                if type(value) is not float and type(value) is not int:
                    line = _encode({"step": step, "time": row["time"], **_numbers(values)})
                    break
        for key in values:
            if type(key) is not str or not key:
                _refuse(step, values)
        self._append(line.encode() + b"\n")

    def _append(self, data: bytes) -> None:
        try:
            written = os.write(self._descriptor, data)
            while written != len(data):  # a full disk takes what still fits; the next try names the reason
                written += os.write(self._descriptor, data[written:])
        except OSError as error:
            os.ftruncate(self._descriptor, self._end)
            raise OSError(error.errno, f"{error.strerror}; rows up to here are intact", str(self._path)) from error
        self._end += len(data)

    @property
    def end(self) -> int:
        """The file's length in bytes: what `cut` takes."""
        return self._end

    def cut(self, end: int) -> bool:
        """Drops all that was written after the file was `end` bytes long; whether `end` was such a length.

        A file that was edited since may have no line's end there: then nothing is dropped.
        """
        if not 0 <= end <= self._end or (end and os.pread(self._descriptor, 1, end - 1) != b"\n"):
            return False
        os.ftruncate(self._descriptor, end)
        self._end = end
        return True

    def drop_from(self, step: int) -> int:
        """Drops the rows of `step` and later, which a resumed run will write again, and returns how many they were."""
        kept, dropped = [], 0
        for line, row in _lines(self._path):
            if row["step"] < step:
                kept.append(line)
            else:
                dropped += 1
        if dropped:
            write_atomic(self._path, b"".join(kept))
            os.close(self._descriptor)
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND)
            self._end = os.lseek(self._descriptor, 0, os.SEEK_END)
        return dropped

    def close(self) -> None:
        """Closes the file; may be called twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def read_rows(path: Path, start: int = 0) -> list[Row]:
    """Returns the rows of a metrics file from byte `start` (a line's beginning) on; a missing file has none.

    A torn last line is left out; a damaged line in the middle is skipped.
    """
    return parse_rows(read_lines(path, start))


def read_lines(path: Path, start: int = 0) -> bytes:
    """Returns the whole lines from byte `start` on, without a torn last one."""
    try:
        with open(path, "rb") as file:
            file.seek(start)
            data = file.read()
    except FileNotFoundError:
        return b""
    return data[: data.rfind(b"\n") + 1]


def parse_rows(lines: bytes) -> list[Row]:
    """Returns the rows that `lines` hold."""
    try:
        # One call of the parser for all lines is several times as fast as one each.
        rows = json.loads(b"[" + lines.rstrip(b"\n").replace(b"\n", b",") + b"]")
        if all(map(_is_row, rows)):
            return list(rows)
    except ValueError:
        pass
    return [row for line in lines.split(b"\n") if (row := _parse(line)) is not None]


def read_columns(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Returns `{key: (steps int64, times float64, values float64)}`, each `(n,)`, in the order of writing."""
    return to_columns(read_rows(path))


def to_columns(rows: list[Row]) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Returns rows as columns: see `read_columns`."""
    where: dict[str, list[int]] = {}
    values: dict[str, list[float]] = {}
    for index, row in enumerate(rows):
        for key, value in row.items():
            if key in values:
                values[key].append(value)
                where[key].append(index)
            else:
                values[key] = [value]
                where[key] = [index]
    if not rows:
        return {}
    steps = np.array(values.pop("step"), np.int64)
    times = np.array(values.pop("time"), np.float64)
    columns = {}
    for key, column in values.items():
        at = slice(None) if len(column) == len(rows) else np.array(where[key])
        columns[key] = (steps[at], times[at], np.array(column, np.float64))
    return columns


def last_values(path: Path, tail_bytes: int = 1 << 16) -> Row:
    """Returns each key's last value from the file's last `tail_bytes`, with the last `step` and `time`."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return {}
    lines = read_lines(path, max(0, size - tail_bytes))
    if size > tail_bytes:
        lines = lines[lines.find(b"\n") + 1 :]
    merged: Row = {}
    for row in parse_rows(lines):
        merged.update(row)
    return merged


def _lines(path: Path) -> Iterator[tuple[bytes, Row]]:
    for line in read_lines(path).splitlines(keepends=True):
        row = _parse(line)
        if row is not None:
            yield line, row


def _parse(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if _is_row(row) else None


def _is_row(row: object) -> bool:
    return isinstance(row, dict) and "step" in row and "time" in row


def _numbers(values: Mapping[str, object]) -> Row:
    """Returns values that are not plain numbers as such."""
    numbers: Row = {}
    for key, value in values.items():
        try:
            number: Any = value.item() if hasattr(value, "item") else value
            numbers[key] = number if type(number) is int else float(number)
        except (TypeError, ValueError, RuntimeError):
            shape = getattr(value, "shape", None)
            what = f"a {type(value).__name__}" + (f" of shape {tuple(shape)}" if shape is not None else "")
            raise TypeError(f"metric {key!r} must be one number, got {what}") from None
        if isinstance(value, str):
            raise TypeError(f"metric {key!r} must be one number, got {value!r}")
    return numbers


def _refuse(step: object, values: Mapping[str, object]) -> None:
    if type(step) is not int:
        raise TypeError(f"step must be an int, got {step!r}")
    for key in values:
        if key in ("step", "time"):
            raise ValueError(f"metric key {key!r} is reserved for the row itself; choose another name")
        if not isinstance(key, str):
            raise TypeError(f"metric keys must be text, got {key!r}")
        if not key:
            raise ValueError("metric keys must not be empty")


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


def is_finite(value: object) -> bool:
    """Returns whether `value` is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)
