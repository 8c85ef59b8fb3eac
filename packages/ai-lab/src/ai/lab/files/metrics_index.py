"""A finished metrics file as columns of numbers beside it, so that long curves open at once.

`metrics.columns` is an index: it may be deleted at any time, and is left aside where it does not match its file.
Format, little-endian: an unsigned 32-bit length, a JSON head (`bytes`: how much of the metrics file is covered, `tail`:
its last covered bytes, `columns`: `[[key, n], …]`), padding to 8, then for each column n int64, n float64, n float64.
"""

import json
import struct
from pathlib import Path

import numpy as np

from ai.lab.files.folder import write_atomic
from ai.lab.files.metrics_file import parse_rows, read_lines, to_columns

Columns = dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]

MIN_BYTES = 1 << 20
"""Shorter files are read as fast without."""
_TAIL = 200


def save_columns(path: Path) -> bool:
    """Writes the index of a metrics file, if it is long enough to need one."""
    try:
        if path.stat().st_size < MIN_BYTES:
            return False
    except FileNotFoundError:
        return False
    lines = read_lines(path)
    columns = to_columns(parse_rows(lines))
    head = json.dumps(
        {
            "bytes": len(lines),
            "tail": lines[-_TAIL:].decode("latin-1"),
            "columns": [[key, len(column[0])] for key, column in columns.items()],
        }
    ).encode()
    head += b" " * (-(4 + len(head)) % 8)
    arrays = (array.tobytes() for column in columns.values() for array in column)
    write_atomic(_index(path), struct.pack("<I", len(head)) + head + b"".join(arrays))
    return True


def load_columns(path: Path) -> tuple[Columns, int]:
    """Returns the columns of the index and the bytes of the metrics file that they cover; `({}, 0)` without a match."""
    try:
        data = _index(path).read_bytes()
        (length,) = struct.unpack_from("<I", data)
        head = json.loads(data[4 : 4 + length])
        with open(path, "rb") as file:
            tail = head["tail"].encode("latin-1")
            file.seek(head["bytes"] - len(tail))
            if file.read(len(tail)) != tail:
                return {}, 0  # the file was cut or written anew since
        columns, at = {}, 4 + length
        for key, n in head["columns"]:
            steps = np.frombuffer(data, "<i8", n, at)
            times, values = np.frombuffer(data, "<f8", n, at + 8 * n), np.frombuffer(data, "<f8", n, at + 16 * n)
            columns[str(key)] = (steps, times, values)
            at += 24 * n
        return columns, int(head["bytes"])
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return {}, 0


def read_indexed(path: Path) -> Columns:
    """Returns all columns of a metrics file: from its index where there is one, the rest from the lines."""
    columns, covered = load_columns(path)
    added = to_columns(parse_rows(read_lines(path, covered)))
    for key, part in added.items():
        known = columns.get(key)
        columns[key] = part if known is None else _join(known, part)
    return columns


def _join(
    left: tuple[np.ndarray, np.ndarray, np.ndarray], right: tuple[np.ndarray, np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    steps, times, values = (np.concatenate(pair) for pair in zip(left, right, strict=True))
    return steps, times, values


def _index(path: Path) -> Path:
    return path.with_suffix(".columns")
