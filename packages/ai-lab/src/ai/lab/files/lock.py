"""A lock between processes, for trials and searches alike, that a dead process never keeps.

Where the kernel locks files it decides, as it takes a lock back from a dead process. It answers for the processes of
its own machine; of another machine's, on a shared disk, and on disks without locks, the holder's heartbeat does: the
holder alone stamps its file, and who wants the lock watches the stamp, by its own clock, until it moves or has stood
still for long enough. Clocks of two machines are never compared.
"""

import contextlib
import errno
import functools
import json
import os
import secrets
import socket
import threading
import time
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # pragma: no cover  (Windows has no such locks: heartbeats alone decide)
    fcntl = None  # type: ignore[assignment]

BEAT_S = 4.0
"""Seconds between two stamps of a holder; three of them without a stamp mean that it is dead."""
SURELY_DEAD_S = 600.0
"""A stamp that is older by our clock belongs to a dead holder for who only looks; no two clocks differ by so much."""

Holder = dict[str, Any]


class Lock:
    """A lock in a file, which also names who holds it.

    Args:
        path: The file; its folder must exist.
        tries: How often the kernel is asked, 10 ms apart: who only looks keeps a lock for microseconds.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "lock"
        >>> first, second = Lock(path), Lock(path)
        >>> first.try_acquire() is None, second.try_acquire()["pid"] == os.getpid()
        (True, True)
        >>> first.release()
        >>> second.try_acquire() is None
        True
    """

    def __init__(self, path: Path, tries: int = 5) -> None:
        self._path = path
        self._tries = tries
        self._descriptor = -1
        self._process = os.getpid()
        self._by_kernel = True

    @property
    def is_held(self) -> bool:
        """Whether we hold it."""
        return self._descriptor >= 0 and self._process == os.getpid()

    def is_in(self, path: Path) -> bool:
        """Whether we hold it, and it is the file at `path`."""
        return self.is_held and _is_the_file(self._descriptor, path)

    def try_acquire(self) -> Holder | None:
        """Takes the lock and returns None, or returns who holds it (empty if that cannot be told).

        Where only a heartbeat can tell whether the holder lives, it is watched for a few seconds.
        """
        while True:
            opened = _open(self._path)
            if opened is None:
                continue
            descriptor, is_new = opened
            try:
                locked = _flock(descriptor, self._tries)
                found = _parse(os.pread(descriptor, 4096, 0))
                if locked is False:
                    return found or {}
                if locked and found and not _of_this_kernel(found) and _is_alive(self._path):
                    return found
                if locked is None and not is_new:  # without locks of the kernel, who makes the file has it
                    is_dead = found is not None and _is_here(found) and not _runs(found["pid"])
                    if not is_dead and _is_alive(self._path):
                        return found or {}
                    _move_away(self._path, descriptor)
                    continue
                if not _is_the_file(descriptor, self._path):
                    continue  # removed since, by who gave it up
                self._hold(descriptor, by_kernel=bool(locked))
                descriptor = -1
                return None
            finally:
                if descriptor >= 0:
                    os.close(descriptor)

    def _hold(self, descriptor: int, *, by_kernel: bool) -> None:
        self._descriptor, self._by_kernel, self._process = descriptor, by_kernel, os.getpid()
        about = {"host": socket.gethostname(), "pid": os.getpid(), "kernel": _kernel(), "space": _pid_space()}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({**about, "since": time.time()}).encode(), 0)
        _hearts.add(descriptor)

    def release(self) -> None:
        """Gives the lock up; may be called twice."""
        held, descriptor, self._descriptor = self.is_held, self._descriptor, -1
        if not held:  # or a forked child's, whose descriptor is closed
            return
        _hearts.discard(descriptor)
        with contextlib.suppress(OSError):  # the disk is away, or read-only by now
            if self._by_kernel:
                os.ftruncate(descriptor, 0)
            elif _is_the_file(descriptor, self._path):
                self._path.unlink()
        os.close(descriptor)


def holder_of(path: str) -> Holder | None:
    """Returns who holds the lock in `path`, None if nobody does; for who only looks, and at once.

    Another machine's holder counts as dead once its stamp was seen to stand still, or is ten minutes old.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        return _live_holder(path, descriptor)
    except OSError:
        return None
    finally:
        os.close(descriptor)


def _live_holder(path: str, descriptor: int) -> Holder | None:
    found = _parse(os.read(descriptor, 4096))
    if not found:
        return None
    locked = _flock(descriptor, shared=True)  # a reader of a read-only folder may ask too
    if locked is False:
        return found
    if locked and _of_this_kernel(found):
        return None
    if _is_here(found) and not _runs(found["pid"]):
        return None
    stamp = os.fstat(descriptor).st_mtime_ns
    seen, since = _seen.get(path, (None, 0.0))
    if seen != stamp:
        _seen[path] = (stamp, time.monotonic())
        return found if time.time() - stamp / 1e9 < SURELY_DEAD_S else None
    return found if time.monotonic() - since < 3 * BEAT_S else None


def named_in(path: Path) -> Holder | None:
    """Returns whom the file of a lock names, alive or dead; None once it was given up."""
    try:
        return _parse(path.read_bytes())
    except OSError:
        return None


_seen: dict[str, tuple[int | None, float]] = {}


def _is_alive(path: Path) -> bool:
    """Watches the stamp of a lock: whether it moves, or the file goes, before its holder must count as dead."""
    first = _stamp(path)
    deadline = time.monotonic() + 3 * BEAT_S
    while time.monotonic() < deadline:
        if _stamp(path) != first:
            return _stamp(path) is not None
        time.sleep(BEAT_S / 10)
    return False


def _stamp(path: Path) -> int | None:
    try:
        with open(path, "rb") as file:  # opening it asks a network disk anew
            return os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None


class _Hearts:
    """Stamps the files of all locks that this process holds, from one thread."""

    def __init__(self) -> None:
        self._descriptors: set[int] = set()
        self._lock = threading.Lock()
        self._changed = threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, descriptor: int) -> None:
        with self._lock:
            self._descriptors.add(descriptor)
            if self._thread is None:
                self._thread = threading.Thread(target=self._beat, name="ai-lab heartbeat", daemon=True)
                self._thread.start()

    def discard(self, descriptor: int) -> None:
        with self._lock:
            self._descriptors.discard(descriptor)

    def _beat(self) -> None:
        while True:
            self._changed.wait(BEAT_S)
            with self._lock:
                if not self._descriptors:
                    self._thread = None
                    return
                for descriptor in self._descriptors:
                    with contextlib.suppress(OSError):  # a disk that is away for a while, or for good
                        os.utime(descriptor)


_hearts = _Hearts()


def forget_in_child() -> None:
    """A forked child holds nothing of its parent's: its inherited descriptors are closed."""
    global _hearts
    descriptors, _hearts = _hearts._descriptors, _Hearts()
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)


if hasattr(os, "register_at_fork"):
    # A forked data worker inherits the descriptors and with them the locks, which must not outlive their owners.
    os.register_at_fork(after_in_child=forget_in_child)


def _flock(descriptor: int, tries: int = 1, *, shared: bool = False) -> bool | None:
    """Takes the kernel's lock: whether it could be had, None where there are no such locks."""
    if fcntl is None:  # pragma: no cover
        return None
    how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB
    for left in range(tries, 0, -1):
        try:
            fcntl.flock(descriptor, how)
            return True
        except BlockingIOError:
            time.sleep(0.01 if left > 1 else 0)
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
                return None
            raise
    return False


def _open(path: Path) -> tuple[int, bool] | None:
    """Opens a lock's file and says whether it is new; None where it went in this moment."""
    with contextlib.suppress(FileExistsError):
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), True
    with contextlib.suppress(FileNotFoundError):
        return os.open(path, os.O_RDWR), False
    return None


def _move_away(path: Path, descriptor: int) -> None:
    """Removes a dead holder's file; of several who find it dead, one does."""
    aside = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, aside)
        if not _is_the_file(descriptor, aside):  # another one was quicker, and this is its file
            with contextlib.suppress(FileExistsError):
                os.link(aside, path)
        aside.unlink()


def _is_the_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _parse(data: bytes) -> Holder | None:
    if not data:  # given up
        return None
    try:
        found = json.loads(data.decode())
    except ValueError:
        return None
    return found if isinstance(found, dict) and isinstance(found.get("pid"), int) and "host" in found else None


@functools.cache
def _kernel() -> str:
    """Names the running kernel: containers and changed host names on it share its locks."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def _pid_space() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _of_this_kernel(found: Holder) -> bool:
    return bool(found["kernel"] == _kernel() if "kernel" in found else found["host"] == socket.gethostname())


def _is_here(found: Holder) -> bool:
    """Whether the holder's process id means a process of ours."""
    return _of_this_kernel(found) and found.get("space", _pid_space()) == _pid_space()


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
