"""Who writes a folder: one process at a time, and a dead one never blocks the next."""

import weakref
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import NoReturn

from ai.lab.files.lock import Holder, Lock, holder_of, named_in

FILE = "owner.json"


class OwnedError(RuntimeError):
    """The folder is being written by another live process."""


class Owner:
    """Holds the right to write `folder` until `release`, or the end of the process.

    Args:
        folder: An existing folder.

    Raises:
        OwnedError: another live process holds it; the message names its host and pid.

    Attributes:
        give_up: What ends the writing where nobody else will, so that the folder can be cleaned; None while it is used.
    """

    def __init__(self, folder: Path) -> None:
        self.give_up: weakref.WeakMethod[Callable[[], None]] | None = None
        self._lock = Lock(folder / FILE)
        found = self._lock.try_acquire()
        if found is not None:
            raise OwnedError(refusal(folder, found))
        _owners[folder] = self

    def is_of(self, folder: Path) -> bool:
        """Whether it holds this folder: what was moved away since is another's."""
        return self._lock.is_in(folder / FILE)

    def release(self) -> None:
        """Gives the right up; may be called twice."""
        self._lock.release()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "what is being written has one writer, and cannot be copied or pickled: end it, or pass its path"
        )

    def __enter__(self) -> "Owner":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.release()


def holder(folder: Path | str) -> Holder | None:
    """Returns host, pid and start of the live process that writes `folder`, None if there is none."""
    return holder_of(f"{folder}/{FILE}")


def last_holder(folder: Path) -> Holder | None:
    """Returns who took `folder` last and has not given it up, alive or dead."""
    return named_in(folder / FILE)


def give_up_left_open(folder: Path) -> None:
    """Ends what this process itself has left open in `folder`, as the object of an earlier notebook cell."""
    owner = _owners.get(folder)
    if owner is None or not owner.is_of(folder):
        return
    if owner.give_up is not None and (end := owner.give_up()) is not None:
        end()


_owners: weakref.WeakValueDictionary[Path, Owner] = weakref.WeakValueDictionary()


def refusal(folder: Path, found: Holder) -> str:
    """Returns the sentence that refuses a second writer."""
    who = f"process {found['pid']} on {found['host']}" if found else "another process"
    return f"{folder} is being written by {who}; stop it first, or choose another path"
