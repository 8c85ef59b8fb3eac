"""Who writes a folder: one process at a time, and a dead one never blocks the next."""

from pathlib import Path
from types import TracebackType

from ai.lab.files.lock import Holder, Lock, holder_of

FILE = "owner.json"


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
        self._lock = Lock(folder / FILE)
        found = self._lock.try_acquire()
        if found is not None:
            raise OwnedError(refusal(folder, found))

    def release(self) -> None:
        """Gives the right up; may be called twice."""
        self._lock.release()

    def __enter__(self) -> "Owner":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.release()


def holder(folder: Path) -> Holder | None:
    """Returns host, pid and start of the live process that writes `folder`, None if there is none."""
    return holder_of(folder / FILE)


def refusal(folder: Path, found: Holder) -> str:
    """Returns the sentence that refuses a second writer."""
    who = f"process {found['pid']} on {found['host']}" if found else "another process"
    return f"{folder} is being written by {who}; stop it first, or choose another path"
