"""The copy of a trial's folder, where it is kept: it does what the mirror says of the folder that is written elsewhere.

A snapshot is committed by a rename, once all of it is here. What a worker wrote straight to this folder (`meeting`) is
looked at before: where it is not what that says, it is sent after all.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ai.lab.files.folder import write_atomic
from ai.lab.files.marks import change_marks
from ai.lab.record import LOG, SNAPSHOTS
from ai.lab.search.elsewhere.file_parts import LOCKS, OWN, flush, is_unfinished, parts, room, sizes, write_part


class NotSeenError(Exception):
    """What a worker wrote straight to a copy is not there: the file system is no longer one, or late."""


class Copy:
    """The copy of a trial's folder.

    Args:
        folder: Where it is; it must exist.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._unreadable: set[str] = set()

    def parts(self) -> Iterator[tuple[str, int, bytes | None]]:
        """Yields name, position and bytes of all that a run goes on from; what cannot be read is told in its log.

        A file that fails half-way is read anew from its beginning, once; None for its bytes takes back what was sent.
        """
        log = self._folder / LOG
        for path in [*sorted(path for path in self._folder.rglob("*") if path != log), log]:
            name = path.relative_to(self._folder)
            try:
                if path.is_file() and path.name not in LOCKS and not is_unfinished(name):
                    yield from self._whole(str(name), path)
            except OSError as error:
                self._tell_unreadable(str(name), error)

    def _whole(self, name: str, path: Path) -> Iterator[tuple[str, int, bytes | None]]:
        for is_last in (False, True):
            n_sent = 0
            try:
                for at, data in parts(path):
                    yield name, at, data
                    n_sent += 1
                return
            except OSError:
                if n_sent:
                    yield name, 0, None
                if is_last or not n_sent:
                    raise

    def _tell_unreadable(self, name: str, error: OSError) -> None:
        if name not in self._unreadable:
            self._unreadable.add(name)
            line = f"ai.lab: {name} cannot be read and is not handed to who goes on: {error.strerror or error}\n"
            with contextlib.suppress(OSError), open(self._folder / LOG, "ab") as file:
                file.write(line.encode(errors="replace"))

    def clear(self) -> None:
        """Deletes what a run left that is not gone on from."""
        for path in self._folder.iterdir():
            if path.name not in OWN:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def take(self, kind: str, name: str, *content: Any) -> None:
        """Does what a mirror said.

        Raises:
            ValueError: it names something outside of the folder.
            NotSeenError: a snapshot that was not sent but written here is not what its worker wrote.
        """
        path = self._inside(name)
        if kind == "append":
            at, data = content
            with open(room(path), "ab") as file:
                file.truncate(at)  # rows that a resumed run has dropped
                file.write(data)
        elif kind == "whole":
            write_atomic(room(path), content[0])
        elif kind == "note":
            if path.is_file():  # else the snapshot was deleted here: one file does not make it
                write_atomic(path, content[0])
        elif kind == "marks":
            change_marks(self._folder, **content[0])
        elif kind == "part":
            write_part(room(path), *content)
        elif kind == "commit":
            partial, *written = content
            partial = self._inside(partial)
            try:  # before the snapshot that stands there goes
                if written and written != [sizes(partial)]:
                    raise NotSeenError
                for file_path in partial.rglob("*"):
                    flush(file_path)
            except OSError:
                if written:
                    raise NotSeenError from None
                raise
            shutil.rmtree(path, ignore_errors=True)
            os.replace(partial, path)
            flush(path.parent)
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                path.unlink()

    def forget_unfinished(self) -> None:
        """Deletes snapshots that were cut off on their way, and what was laid down for a worker that never came."""
        for path in (self._folder / SNAPSHOTS).glob(".*.partial"):
            shutil.rmtree(path, ignore_errors=True)

    def _inside(self, name: str) -> Path:
        path = self._folder / name
        if self._folder not in path.resolve().parents:
            raise ValueError(f"{name!r} must lie in the trial's folder {self._folder}")
        return path
