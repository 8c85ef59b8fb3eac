"""Where a folder is that is written for hours: found by its descriptor once it was moved or renamed."""

import contextlib
import errno
import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # pragma: no cover  (Windows moves no folder in which files are open)
    fcntl = None  # type: ignore[assignment]


class Place:
    """A folder, wherever it is moved to while this is held.

    Args:
        path: Where it is at first.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp())
        >>> place = Place(path)
        >>> path.rename(f"{path}-moved").name == place.now().name
        True
        >>> place.close()
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY)
        except PermissionError:  # Windows opens no folders
            self._descriptor = -1

    def now(self) -> Path:
        """Returns where the folder is.

        Raises:
            FileNotFoundError: it was deleted, or is out of reach.
        """
        if self._descriptor < 0 or self._is_at(self._path):
            return self._path
        found = _path_of(self._descriptor)
        if found is None or not self._is_at(found):
            what = "the folder was deleted while its trial was running, which cannot be recorded any more"
            raise FileNotFoundError(errno.ENOENT, what, str(self._path))
        self._path = found
        return found

    def _is_at(self, path: Path) -> bool:
        """Whether the folder is there, and no other that took its name."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(path))
        except OSError:
            return False

    def close(self) -> None:
        """Lets go of it; it counts as where it was last. May be called twice."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


def _path_of(descriptor: int) -> Path | None:
    """Asks the kernel for the path of what is open."""
    with contextlib.suppress(OSError):
        return Path(os.readlink(f"/proc/self/fd/{descriptor}"))
    if hasattr(fcntl, "F_GETPATH"):  # pragma: no cover  (macOS)
        with contextlib.suppress(OSError):
            return Path(os.fsdecode(fcntl.fcntl(descriptor, fcntl.F_GETPATH, bytes(1024)).rstrip(b"\0")))
    return None
