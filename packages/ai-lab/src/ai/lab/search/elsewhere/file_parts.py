"""The files of a trial's folder on their way: which of them travel, in which parts, and how they are written down."""

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ai.lab.files.folder import MARKER
from ai.lab.files.marks import MARKS
from ai.lab.files.ownership import FILE as OWNER
from ai.lab.record import SNAPSHOTS

PART_BYTES = 8 << 20
LOCKS = (OWNER, f"{MARKS}.lock")
OWN = (MARKER, MARKS, *LOCKS)
"""Each side has its own."""
MANIFEST = "manifest.json"
"""Of a snapshot."""


def parts(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yields position and bytes of a file; of an empty one too.

    Raises:
        OSError: it cannot be read; FileNotFoundError: it has become shorter meanwhile.
    """
    with open(path, "rb", buffering=0) as file:
        size, at = os.fstat(file.fileno()).st_size, 0
        while True:
            data = file.read(PART_BYTES)
            if not data and at < size:
                raise FileNotFoundError(errno.ENOENT, f"it ended after {at} of {size} bytes")
            if data or not at:
                yield at, data
            if not data:
                return
            at += len(data)


def write_part(path: Path, at: int, data: bytes) -> None:
    """Writes a part of a file; the first, at 0, begins it anew."""
    with open(path, "r+b" if at else "wb") as file:
        file.seek(at)
        file.write(data)


def room(path: Path) -> Path:
    """Returns the path of a file, with its folder made and nothing else in its place."""
    for parent in reversed(path.parents):
        if parent.is_file():  # what was a file there is a folder now
            parent.unlink()
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    return path


def sizes(folder: Path) -> dict[str, int]:
    """Returns the files of a folder, with the bytes of each."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def flush(path: Path) -> None:
    """Waits until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_unfinished(name: Path) -> bool:
    """Whether a file of a trial's folder, by its name there, is still being written, and not to be copied."""
    if name.parts[0] == SNAPSHOTS:  # one is whole, hidden files and all, but for a note that is being written
        return name.name.startswith(f".{MANIFEST}.") or any(part.startswith(".") for part in name.parts[:2])
    return any(part.startswith(".") and part != MARKER for part in name.parts)
