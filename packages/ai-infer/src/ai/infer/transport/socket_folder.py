"""The folder in which an inferencer can be reached: private to the user, gone with its processes.

Beside the folders lie the seats, files by which the processes of a machine agree on who runs its inferencer. The lock
on either lasts as long as the processes that hold it, so that whatever has none is left over.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

ADDRESS_FILE = "inferencer.json"
"""What clients read in the folder: how many replicas there are, and whether they are restarted."""

EXTRA_STATE_FILE = "extra_state-{}"
"""What workers read beside the weights, where modules have extra state; counted from 1."""

VITALS_FILE = "vitals-{}"
"""Where each worker, by its number, shows how it is."""

VERSIONS_FILE = "versions"
"""Where the inferencer of a whole machine notes how its callers count the versions of the parameters."""

_LOCK = "owner"
_GRACE_S = 60.0
_MAX_PATH = 80  # of a socket's address, which the system limits to about a hundred bytes


def make_folder() -> tuple[Path, int]:
    """Returns a new folder of mode 0700 and the descriptor of a lock that lasts as long as any process holds it."""
    sweep()
    folder = Path(tempfile.mkdtemp(prefix=_folders(), dir=_parent()))
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return folder, lock


def seat_path(name: str) -> Path:
    """Returns where the seat of that name is."""
    return Path(tempfile.gettempdir()) / f"{_seats()}{name}"


def sweep() -> None:
    """Removes the folders and seats of processes that were all killed at once.

    Every inferencer does so when it begins and when it ends, and so does a worker whose starter was killed.
    """
    for folder in _parent().glob(f"{_folders()}*"):
        _remove_if_abandoned(folder)
    for seat in Path(tempfile.gettempdir()).glob(f"{_seats()}*"):
        with contextlib.suppress(OSError):
            descriptor = locked(seat)
            if descriptor is not None:  # who was about to lock it finds it removed
                seat.unlink(missing_ok=True)
                os.close(descriptor)


def locked(path: Path, flags: int = 0) -> int | None:
    """Returns a file's descriptor with its lock; None: another has it, or has just removed it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o600)
    try:
        held = os.fstat(descriptor)
        if held.st_uid != os.getuid():
            raise PermissionError(f"{path} is another user's")
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            there = path.stat()
            if (held.st_ino, held.st_dev) == (there.st_ino, there.st_dev):
                return descriptor
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _parent() -> Path:
    parent = Path(tempfile.gettempdir())
    return Path("/tmp") if len(os.fspath(parent)) > _MAX_PATH - 30 else parent


def _folders() -> str:
    return f"ai-infer-{os.getuid()}-"


def _seats() -> str:
    return f"ai-infer-node-{os.getuid()}-"


def _remove_if_abandoned(folder: Path) -> None:
    try:
        if folder.lstat().st_uid != os.getuid():
            return
        try:
            lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:  # perhaps just being made
            if time.time() - folder.stat().st_mtime > _GRACE_S:
                shutil.rmtree(folder, ignore_errors=True)
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if time.time() - folder.stat().st_mtime > 1.0:  # else its owner may be about to lock it
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)
    except OSError:  # locked, hence alive; or removed by someone else meanwhile
        return
