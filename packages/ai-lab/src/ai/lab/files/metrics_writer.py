"""Appends rows to a metrics file, and what they say to its index."""

import contextlib
import json
import operator
import os
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ai.lab.files.folder import write_atomic
from ai.lab.files.load import is_number, is_step
from ai.lab.files.metrics_file import Row, cut_torn_line, each_row, lines_and_rows
from ai.lab.files.metrics_index import BLOCK_BYTES, Index, last_values

_LARGE = 2**63
_encode = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


class MetricsWriter:
    r"""Appends rows to a metrics file.

    Args:
        path: The file; made if missing. A torn last line is cut off.

    Attributes:
        dropped_from: The smallest step of the rows that were dropped, None if none were.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "metrics.jsonl"
        >>> writer = MetricsWriter(path)
        >>> writer.write(1, {"loss": 0.5})["loss"]
        0.5
        >>> writer.close()
        >>> path.read_text().endswith('"loss":0.5}\n')
        True
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()  # rows may come from several threads
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        self._end = cut_torn_line(self._descriptor)
        self._index = Index(path)
        self._last: Row | None = {} if not self._end else None
        self.dropped_from: int | None = None

    def write(self, step: int, values: Mapping[str, object]) -> Row:
        """Appends one row and returns it; numbers, 0-d tensors and 0-d arrays are taken.

        Raises:
            TypeError: a value is not one number, or a key is not text.
            ValueError: a key is empty or is one of the row's own, `step` and `time`.
            OSError: the file cannot be written; what was written before is intact.
        """
        row = as_row(step, values)
        data = _encode(row).encode() + b"\n"
        with self._lock:
            self._append(data)
            if self._last is not None:
                self._last.update(row)
        return row

    def _append(self, data: bytes) -> None:
        try:
            written = os.write(self._descriptor, data)
            while written != len(data):  # a full disk takes what still fits; the next try names the reason
                written += os.write(self._descriptor, data[written:])
        except OSError as error:
            os.ftruncate(self._descriptor, self._end)
            raise OSError(error.errno, f"{error.strerror}; rows up to here are intact", str(self._path)) from error
        self._end += len(data)
        if self._end - self._index.covered >= BLOCK_BYTES:
            with contextlib.suppress(OSError):  # an index only: a full disk must not fail the run for it
                self._index.extend()

    def move_to(self, path: Path) -> None:
        """Goes on in the same file, which was moved."""
        self._path = path
        self._index.move_to(path)

    def last(self) -> Row:
        """Returns each metric's last value, however long ago it was logged, with the last `step` and `time`."""
        if self._last is None:
            self._last = last_values(self._path)
        return dict(self._last)

    @property
    def end(self) -> int:
        """The file's length in bytes: what `cut` takes."""
        return self._end

    def had_length(self, end: int) -> bool:
        """Whether the file was `end` bytes long once; of one that was edited since, it may be no line's end."""
        return 0 <= end <= self._end and (end == 0 or os.pread(self._descriptor, 1, end - 1) == b"\n")

    def cut(self, end: int) -> bool:
        """Drops all that was written after the file was `end` bytes long; nothing, and False, if it never was."""
        if not self.had_length(end):
            return False
        if end != self._end:
            self._note_dropped(int(row["step"]) for row in each_row(self._path, end))
            os.ftruncate(self._descriptor, end)
            self._cut_to(end)
        return True

    def _note_dropped(self, steps: Iterable[int]) -> None:
        self.dropped_from = min([*steps, *([] if self.dropped_from is None else [self.dropped_from])], default=None)

    def _cut_to(self, end: int) -> None:
        self._end, self._last = end, None
        self._index.take_up()

    def drop_from(self, step: int, start: int = 0, end: int | None = None) -> int:
        """Drops the rows of `step` and later, which a resumed run will write again, and returns how many they were.

        Args:
            step: The first step that is dropped.
            start: Where in the file to begin, in bytes.
            end: And where to end.
        """
        with open(self._path, "rb") as file:
            kept, dropped = [file.read(start)], 0
        for to, line, row in lines_and_rows(self._path, start):
            if row["step"] < step or (end is not None and to > end):
                kept.append(line)
            else:
                dropped += 1
        if dropped:
            self._note_dropped([step])
            write_atomic(self._path, b"".join(kept))
            os.close(self._descriptor)
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_APPEND)
            self._cut_to(os.lseek(self._descriptor, 0, os.SEEK_END))
        return dropped

    def close(self) -> None:
        """Closes the file; may be called twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def as_row(step: int, values: Mapping[str, object]) -> Row:
    """Returns the row that `MetricsWriter.write` appends now; raises what that does for what is none."""
    if type(step) is not int or not -_LARGE <= step < _LARGE:
        step = as_step(step)
    row: dict[str, Any] = {"step": step, "time": round(time.time(), 3)}
    if type(values) is not dict and not isinstance(values, Mapping):
        raise TypeError(f"values must be a dict of numbers by name, got {values!r:.100}")
    row.update(values)
    if len(row) != len(values) + 2:
        _refuse_keys(values)
    for key, value in values.items():
        if type(value) is not float or type(key) is not str or not key:
            return {"step": step, "time": row["time"], **_numbers(values)}
    return row


def _numbers(values: Mapping[str, object]) -> Row:
    """Returns values that are not plain numbers as such."""
    _refuse_keys(values)
    numbers: Row = {}
    for key, value in values.items():
        try:
            number: Any = value.item() if hasattr(value, "item") else value
            number = number if type(number) is int else float(number)
        except (TypeError, ValueError, RuntimeError):
            shape = getattr(value, "shape", None)
            what = f"a {type(value).__name__}" + (f" of shape {tuple(shape)}" if shape is not None else "")
            raise TypeError(f"metric {key!r} must be one number, got {what}") from None
        if isinstance(value, str):
            raise TypeError(f"metric {key!r} must be one number, got {value!r}")
        if not is_number(number):
            raise ValueError(
                f"metric {key!r} must be a number that a float holds, got one of {number.bit_length()} bits"
            )
        numbers[key] = number
    return numbers


def as_step(step: object, name: str = "step") -> int:
    """Returns a whole number of any kind as an int."""
    if isinstance(step, bool):
        raise TypeError(f"{name} must be an int, got {step!r}")
    try:
        whole = operator.index(step)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} must be an int, got {step!r}") from None
    if not is_step(whole):
        raise ValueError(f"{name} must have at most 64 bits, got {_short(whole)}")
    return whole


def _short(number: int) -> str:
    return str(number) if number.bit_length() < 200 else f"one of {number.bit_length()}"


def _refuse_keys(values: Mapping[str, object]) -> None:
    for key in values:
        if key in ("step", "time"):
            raise ValueError(f"metric key {key!r} is reserved for the row itself; choose another name")
        if not isinstance(key, str):
            raise TypeError(f"metric keys must be text, got {key!r}")
        if not key:
            raise ValueError("metric keys must not be empty")
