"""Where a search keeps its trials: Optuna's journal in a file, made safe against kills, or a database by URL."""

import contextlib
import json
import os
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import optuna
from optuna.storages.journal import JournalFileBackend

from ai.lab.files.lock import Lock

if TYPE_CHECKING:
    from optuna.storages import BaseStorage


class FileLock:
    """A lock that is waited for, in the form that Optuna's journal takes.

    Optuna's own lock of a journal is a file, which a killed process leaves behind for the others to wait out.

    Args:
        path: The lock's file.
        journal: A file whose torn last line, left by a killed writer, is cut off once the lock is held: with one more
            line after it Optuna could not read the journal any more.
        timeout_s: How long to wait for the lock; each holds it for a fraction of a second.
    """

    def __init__(self, path: Path, journal: Path | None = None, *, timeout_s: float = 600.0) -> None:
        self._path = path
        self._lock = Lock(path, tries=1)
        self._journal = journal
        self._timeout_s = timeout_s

    def acquire(self) -> bool:
        """Waits for the lock.

        Raises:
            TimeoutError: another process has held it all the time.
        """
        deadline, pause_s = time.monotonic() + self._timeout_s, 0.0005
        while self._lock.try_acquire() is not None:
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"the lock {self._path} was held by another process for {self._timeout_s:g} s: is one stopped?"
                )
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 0.02)
        try:
            if self._journal is not None:
                _mend(self._journal)
        except BaseException:
            self.release()
            raise
        return True

    def release(self) -> None:
        """Gives the lock back; may be called twice."""
        self._lock.release()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Holds the lock inside a `with`."""
        self.acquire()
        try:
            yield
        finally:
            self.release()


def _mend(journal: Path) -> None:
    from ai.lab.files.metrics_file import cut_torn_line

    descriptor = os.open(journal, os.O_RDWR)
    try:
        cut_torn_line(descriptor)
    finally:
        os.close(descriptor)


_silencing = threading.Lock()
_silenced: list[int] = []


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Optuna says nothing meanwhile, in whatever thread: a trial's record, and our line, tell how it failed."""
    with _silencing:
        _silenced.append(_silenced[0] if _silenced else optuna.logging.get_verbosity())
        optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        with _silencing:
            before = _silenced.pop()
            if not _silenced:
                optuna.logging.set_verbosity(before)


def open_storage(folder: Path, url: str | None) -> "BaseStorage":
    """Returns the journal in `folder`, or the database at `url`.

    Raises:
        ValueError: `url` is that of no database.
        ModuleNotFoundError: what talks to such a database is not installed.
        ConnectionError: it does not answer as one.
    """
    if url is not None:
        storage = _database(url)
        weakref.finalize(storage, storage.engine.dispose)  # else its connections are left to who collects garbage
        return storage
    journal = folder / "optuna.log"
    journal.touch()
    return optuna.storages.JournalStorage(
        JournalFileBackend(str(journal), lock_obj=cast("Any", FileLock(folder / "optuna.lock", journal)))
    )


def _database(url: str) -> "optuna.storages.RDBStorage":
    import sqlalchemy

    try:
        place = sqlalchemy.make_url(url)
        return optuna.storages.RDBStorage(url)
    except (sqlalchemy.exc.ArgumentError, sqlalchemy.exc.NoSuchModuleError) as error:  # whose text may have a password
        like = "such as sqlite:////absolute/search.db or postgresql://user:password@host/name"
        raise ValueError(f"storage must be the URL of a database, {like}: {_first_line(error)}") from None
    except ImportError as error:  # Optuna's own, which does not name what is missing
        missing = error.__cause__ or error.__context__ or error
        raise ModuleNotFoundError(
            f"storage ({place.render_as_string()}) needs what talks to such a database: {_first_line(missing)}"
        ) from error
    except sqlalchemy.exc.DBAPIError as error:
        raise ConnectionError(
            f"storage ({place.render_as_string()}) must be a database that answers: {_first_line(error.orig or error)}"
        ) from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def open_study(
    folder: Path, url: str | None, name: str, directions: Sequence[Literal["minimize", "maximize"]]
) -> optuna.Study:
    """Returns the study of that name, made if missing."""
    try:
        with quiet():  # not a line per process that opens it
            return optuna.create_study(
                storage=open_storage(folder, url), study_name=name, directions=list(directions), load_if_exists=True
            )
    except json.JSONDecodeError as error:
        raise ValueError(f"{folder / 'optuna.log'} is damaged, a line of it is no JSON: {error}") from None


def load_study(folder: Path, url: str, name: str) -> optuna.Study | None:
    """Returns the study of that name in a database, None where there is none.

    Raises:
        FileNotFoundError: the database is a file, and is not there: to look into it would make it.
    """
    import sqlalchemy

    with contextlib.suppress(sqlalchemy.exc.ArgumentError):
        place = sqlalchemy.make_url(url)
        if place.get_backend_name() == "sqlite" and place.database and not place.query:
            if place.database != ":memory:" and not Path(place.database).exists():
                raise FileNotFoundError(f"storage must be a database that is there, and there is no {place.database}")
    try:
        return optuna.load_study(study_name=name, storage=open_storage(folder, url))
    except KeyError:
        return None


def delete_study(folder: Path, url: str, name: str) -> None:
    """Deletes the study of that name from a database, if it is there."""
    storage = open_storage(folder, url)
    with contextlib.suppress(KeyError):
        optuna.delete_study(study_name=name, storage=storage)
    storage.remove_session()
