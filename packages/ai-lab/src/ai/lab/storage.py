"""Where a search keeps its trials: Optuna's journal in a file, made safe against kills, or a database by URL."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import optuna
from optuna.storages.journal import JournalFileBackend

if TYPE_CHECKING:
    from optuna.storages import BaseStorage


class FileLock:
    """A lock between processes that the kernel takes back from a dead one.

    Optuna's own lock of a journal is a file, which a killed process leaves behind for the others to wait out.

    Args:
        path: The lock's file.
        journal: A file whose torn last line, left by a killed writer, is cut off once the lock is held: with one more
            line after it Optuna could not read the journal any more.
    """

    def __init__(self, path: Path, journal: Path | None = None) -> None:
        self._path = path
        self._journal = journal
        self._descriptor = -1

    def acquire(self) -> bool:
        """Waits for the lock."""
        import fcntl

        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        if self._journal is not None:
            from ai.lab.metrics import cut_torn_line

            descriptor = os.open(self._journal, os.O_RDWR)
            try:
                cut_torn_line(descriptor)
            finally:
                os.close(descriptor)
        return True

    def release(self) -> None:
        """Gives the lock back."""
        os.close(self._descriptor)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Holds the lock inside a `with`."""
        self.acquire()
        try:
            yield
        finally:
            self.release()


def open_storage(folder: Path, url: str | None) -> "BaseStorage":
    """Returns the journal in `folder`, or the database at `url`."""
    if url is not None:
        return optuna.storages.RDBStorage(url)
    journal = folder / "optuna.log"
    journal.touch()
    return optuna.storages.JournalStorage(
        JournalFileBackend(str(journal), lock_obj=cast("Any", FileLock(folder / "optuna.lock", journal)))
    )


def open_study(
    folder: Path, url: str | None, name: str, direction: Literal["minimize", "maximize"], **how: Any
) -> optuna.Study:
    """Returns the study of that name, made if missing."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # not a line per process that opens it
    try:
        return optuna.create_study(
            storage=open_storage(folder, url), study_name=name, direction=direction, load_if_exists=True, **how
        )
    finally:
        optuna.logging.set_verbosity(verbosity)


def delete_study(folder: Path, url: str, name: str) -> None:
    """Deletes the study of that name from a database, if it is there."""
    storage = open_storage(folder, url)
    with contextlib.suppress(KeyError):
        optuna.delete_study(study_name=name, storage=storage)
    storage.remove_session()
