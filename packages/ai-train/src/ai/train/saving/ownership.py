"""One run at a time writes into a folder of snapshots: a lock that ends with the process, however that ends."""

import math
import os
import tempfile
import weakref
from itertools import chain, count
from pathlib import Path

from ai.model.saved import line_of, sequence_of

try:
    import fcntl
except ImportError:  # a system without such locks; nothing is refused there
    fcntl = None  # type: ignore[assignment]


class Ownership:
    """A lock on a folder, which is made if it is missing.

    Args:
        folder: what is owned.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     first, second = Ownership(Path(folder)), Ownership(Path(folder))
    ...     first.take()
    ...     try:
    ...         second.take()
    ...     except BlockingIOError:
    ...         print('taken')
    ...     first.give_up()
    taken
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._descriptor: int | None = None
        _all.add(self)

    def take(self) -> None:
        """Own the folder from here on.

        Raises:
            BlockingIOError: another process, or another run of this one, owns it.
            OSError: nothing can be written there.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise OSError(error.errno, f"snapshots cannot be written in {self.folder}: {reason}") from error
        if fcntl is None or self._descriptor is not None:
            return
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise BlockingIOError(
                f"another run writes its snapshots in {self.folder}: give each run a folder of its own; processes of "
                "torchrun that are to train together need parallel='ddp' or 'fsdp'"
            ) from None
        except OSError:  # a file system without locks
            os.close(descriptor)
            return
        self._descriptor = descriptor

    def give_up(self) -> None:
        """Let others take it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def place_aside(target: Path, line: str | None) -> Path | None:
    """Where a snapshot of another run is kept, in whose place one of the run named `line` is to be saved.

    None where there is nothing to keep: no snapshot, one of the same run, or one that cannot be read.
    """
    if not target.exists() or line is None or sequence_of(target) == math.inf or line_of(target) == line:
        return None
    names = (
        f"{target.name}.{(line_of(target) or 'unnamed')[:8]}{more}" for more in chain([""], map("-{}".format, count(2)))
    )
    return next(path for name in names if not (path := target.with_name(name)).exists())


_all: "weakref.WeakSet[Ownership]" = weakref.WeakSet()


def _forget_in_child() -> None:
    # A worker that outlives its process must not hold the lock.
    for ownership in list(_all):
        ownership.give_up()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
