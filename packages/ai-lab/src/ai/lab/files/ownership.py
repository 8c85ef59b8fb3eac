"""Who writes a folder: one process at a time, and a dead one never blocks the next.

The lock is an advisory lock of the kernel, which falls with its process, however that ends. The file also names the
holder (host, pid), for the refusal's message and for disks shared by machines that do not share locks: there the
holder's heartbeat counts.
"""

import contextlib
import json
import os
import socket
import threading
import time
import weakref
from pathlib import Path
from types import TracebackType
from typing import Any

from ai.lab.files.folder import find, remove

try:
    import fcntl
except ImportError:  # pragma: no cover  (no such locks on Windows: host, pid and heartbeat alone decide)
    fcntl = None  # type: ignore[assignment]

HEARTBEAT_S = 60.0
"""A holder on another host that has not been heard of for this long counts as dead."""


class OwnedError(RuntimeError):
    """The folder is being written by another live process."""


class Owner:
    """Holds the right to write `folder` until `release`, or the end of the process.

    Args:
        folder: An existing folder.

    Raises:
        OwnedError: another live process holds it; the message names its host and pid.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "owner.json"
        self._released = threading.Event()
        self._beating: threading.Thread | None = None
        self._file = open(self._path, "a+b", buffering=0)
        try:
            self._acquire(folder)
        except BaseException:
            self._file.close()
            raise

    def _acquire(self, folder: Path) -> None:
        self._file.seek(0)
        holder = _parse(self._file.read())
        if not _lock(self._file.fileno()):
            raise OwnedError(_refusal(folder, holder))
        host, pid = socket.gethostname(), os.getpid()
        if holder and holder["host"] != host and _age_s(self._path) < HEARTBEAT_S:
            raise OwnedError(_refusal(folder, holder))
        if fcntl is None and holder and holder["host"] == host and _alive(holder["pid"]):
            raise OwnedError(_refusal(folder, holder))  # pragma: no cover
        _owners.add(self)
        self._file.truncate(0)
        self._file.write(json.dumps({"host": host, "pid": pid, "since": time.time()}).encode())

    def keep_beating(self) -> None:
        """Tells other hosts from now on that the holder lives, from a thread, until `release`."""
        self._beating = threading.Thread(
            target=_beat, args=(self._path, self._released), name="ai-lab heartbeat", daemon=True
        )
        self._beating.start()

    def release(self) -> None:
        """Gives the right up; may be called twice."""
        self._released.set()
        _owners.discard(self)
        if not self._file.closed:
            self._file.truncate(0)
            self._file.close()

    def __enter__(self) -> "Owner":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.release()


def holder(folder: Path) -> dict[str, Any] | None:
    """Returns host, pid and start of the live process that writes `folder`, None if there is none."""
    path = folder / "owner.json"
    try:
        with open(path, "rb", buffering=0) as file:
            found = _parse(file.read())
            if not found:
                return None
            if found["host"] != socket.gethostname():
                return found if _age_s(path) < HEARTBEAT_S else None
            if fcntl is None:  # pragma: no cover
                return found if _alive(found["pid"]) else None
            # A shared lock asks without writing: a reader of a read-only folder may ask too.
            try:
                fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return found
            except OSError:
                return found if _alive(found["pid"]) else None
            return None
    except OSError:
        return None


def remove_unowned(folder: Path) -> None:
    """Deletes a marked folder and all in it, unless a live process writes a trial there; of several ranks rank 0 does.

    Raises:
        OwnedError: one does.
        ValueError: the folder carries no marker.
    """
    if int(os.environ.get("RANK") or 0) > 0:
        return
    for trial in find(folder, "trial"):
        if (found := holder(trial)) is not None:
            raise OwnedError(_refusal(trial, found))
    remove(folder)


def _beat(path: Path, released: threading.Event) -> None:
    while not released.wait(HEARTBEAT_S / 4):
        with contextlib.suppress(OSError):  # a disk that is away for a while, or for good
            os.utime(path)


def _close_all() -> None:
    for owner in list(_owners):
        owner._file.close()


_owners: weakref.WeakSet[Owner] = weakref.WeakSet()
if hasattr(os, "register_at_fork"):
    # A forked data worker inherits the descriptors and with them the locks, which must not outlive their owners.
    os.register_at_fork(after_in_child=_close_all)


def _lock(descriptor: int) -> bool:
    if fcntl is None:  # pragma: no cover
        return True
    # Someone who only asks (`holder`) keeps the lock for microseconds: a few tries tell them from a writer.
    for _ in range(5):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.01)
        except OSError:  # a disk without locks: host, pid and heartbeat decide
            return True
    return False


def _parse(data: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(data)
        return found if isinstance(found, dict) and {"host", "pid"} <= found.keys() else None
    except ValueError:
        return None


def _refusal(folder: Path, found: dict[str, Any] | None) -> str:
    who = f"process {found['pid']} on {found['host']}" if found else "another process"
    return f"{folder} is being written by {who}; stop it first, or choose another path"


def _age_s(path: Path) -> float:
    return time.time() - path.stat().st_mtime


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
