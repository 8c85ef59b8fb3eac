"""Files that are whole or not there: written beside their place, flushed to disk, and renamed."""

import os
from collections.abc import Callable
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO


def write_atomic(path: Path, fill: Callable[[IO[bytes]], object], *, prefix: str | None = None) -> None:
    """Writes a file whole: a reader sees the old content or the new one, also after a crash.

    Args:
        path: of the file; its folder is there.
        fill: is given the open file; where it raises, `path` stays as it was and nothing is left beside it.
        prefix: of the temporary file's name; by default a dot and the file's name.
    """
    temporary = write_beside(path, fill, prefix=prefix)
    try:
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_beside(path: Path, fill: Callable[[IO[bytes]], object], *, prefix: str | None = None) -> Path:
    """Writes a temporary file in the folder of `path`, flushed to disk, for the caller to rename or to link.

    Args:
        path: as of `write_atomic`.
        fill: as of `write_atomic`.
        prefix: as of `write_atomic`.

    Returns:
        The path of the temporary file, which has the mode of the user's other files.
    """
    with NamedTemporaryFile(
        dir=path.parent, prefix=f".{path.name}." if prefix is None else prefix, delete=False
    ) as file:
        try:
            fill(file)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o666 & ~_umask())
        except BaseException:
            os.unlink(file.name)
            raise
    return Path(file.name)


def sync(path: Path) -> None:
    """Flushes a file or the names in a folder to disk; where the system cannot open folders, nothing is done."""
    if os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    try:  # setting it to read it would open files that other threads make at that moment
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return int(status.split("Umask:")[1].split()[0], 8)
    except (OSError, IndexError):
        return 0o022
