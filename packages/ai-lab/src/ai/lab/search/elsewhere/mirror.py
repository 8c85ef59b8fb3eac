"""A trial's folder on another machine, copied here while it is written: no disk need be shared.

`Mirror` is where the trial runs and says what is new; `Copy` (`trial_copy`) is where it is kept. Rows and logs travel
as the bytes appended to them, other files whole, a snapshot in parts and committed by a rename; rows come before the
snapshots that count on them, and last of all what `meta.json` said before the rest was looked at: nobody reads there
that a trial is finished of which something is still to come. So what is copied is a folder that a killed run might have
left here. Tags and note belong to who reads: of them travels what was changed there, and what was marked here stays. A
file that cannot be read there is left out, and the trial's log says so; the run and the search go on.

Where both sides see the trial's folder here (`meeting`), what is large takes the shorter way: the parts of a snapshot
are written straight to where they would be copied to. All else stays as it is: a snapshot is committed here, when its
worker says so and what that has written is here; else it is sent. A worker that is no longer heard can leave nothing
but a hidden folder of its own.
"""

import contextlib
import json
import os
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ai.lab.files.folder import MARKER
from ai.lab.files.marks import MARKS, load_marks
from ai.lab.record import LOG, META, METRICS, SNAPSHOTS, SYSTEM
from ai.lab.search.elsewhere.file_parts import (
    MANIFEST,
    OWN,
    PART_BYTES,
    flush,
    is_unfinished,
    parts,
    room,
    sizes,
    write_part,
)
from ai.lab.search.elsewhere.trial_copy import NotSeenError

SYNC_S = 1.0
"""Seconds between two looks at what is new."""
_TAIL_BYTES = 256  # by which an appended file is known again
_APPENDED = (METRICS, SYSTEM, LOG)

Send = Callable[..., object]


class Mirror:
    """Says what is new in a folder, from a thread.

    Args:
        folder: The trial's.
        send: Called with kind, name and content; may wait.
        seen: The copy's folder, where it is seen from here.
    """

    def __init__(self, folder: Path, send: Send, seen: Path | None = None) -> None:
        self._folder, self._hand_over, self._seen = folder, send, seen
        self._token = secrets.token_hex(8)  # no two workers write to one place
        self._unreadable: dict[str, str] = {}
        self._sent: dict[str, Any] = {}
        self._error: BaseException | None = None
        self._one_at_a_time, self._stop = threading.Lock(), threading.Event()
        for name, path in self._files():  # what is here came from there
            with self._read(name):
                data = path.read_bytes() if name in _APPENDED else b""
                self._sent[name] = (len(data), data[-_TAIL_BYTES:]) if name in _APPENDED else _stamp(path)
        for name, at in self._snapshots():
            with self._read(name):
                self._sent[name] = (_stamp(at / MANIFEST), _contents(at))
        self._marks, _ = load_marks(folder)
        self._thread = threading.Thread(target=self._loop, name="ai-lab mirror", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Sends what is left."""
        self._stop.set()
        self._thread.join()
        if self._error is not None:
            raise self._error
        self.sync()

    def sync(self) -> None:
        """Sends what is new.

        Raises:
            OSError: it cannot be sent.
        """
        try:
            with self._one_at_a_time:
                self._sync()
        except _NotSentError as failed:
            raise failed.error from None

    def _sync(self) -> None:
        meta = self._changed_meta()
        snapshots = self._snapshots()
        for name, path in self._files():
            with self._read(name):
                if name in _APPENDED:
                    self._append(name, path)
                elif name != META and self._sent.get(name) != (stamp := _stamp(path)):
                    self._send("whole", name, path.read_bytes())
                    self._sent[name] = stamp
        with self._read(MARKS):
            self._changed_marks()
        for name, folder in snapshots:
            with self._read(name):  # only the last few are kept
                self._snapshot(name, folder)
        for name in [name for name in self._sent if _is_gone(self._folder / name)]:
            self._send("remove", name)
            del self._sent[name]
        self._tell_unreadable()
        if meta is not None:
            stamp, data = meta
            self._send("whole", META, data)
            self._sent[META] = stamp

    def _send(self, kind: str, name: str, *content: Any) -> None:
        try:
            self._hand_over(kind, name, *content)
        except OSError as error:  # which is not that of a file that is read
            raise _NotSentError(error) from error

    @contextlib.contextmanager
    def _read(self, name: str) -> Iterator[None]:
        """Passes over a file that goes meanwhile, and notes one that cannot be read."""
        try:
            yield
        except FileNotFoundError:
            pass
        except OSError as error:
            self._unreadable.setdefault(name, f"{name} cannot be read and is not copied: {error.strerror or error}")

    def _tell_unreadable(self) -> None:
        """Has the trial's log say once of each file that it is missing where the search is."""
        news = [text for text in self._unreadable.values() if text]
        if news:
            with self._read(LOG):
                path = self._folder / LOG
                with open(path, "ab") as file:
                    file.write("".join(f"ai.lab: {text}\n" for text in news).encode(errors="replace"))
                self._append(LOG, path)
            self._unreadable = dict.fromkeys(self._unreadable, "")

    def _changed_meta(self) -> tuple[tuple[int, int, int], bytes] | None:
        path = self._folder / META
        with self._read(META):
            if self._sent.get(META) != (stamp := _stamp(path)):
                return stamp, path.read_bytes()
        return None

    def _changed_marks(self) -> None:
        before, (now, problems) = self._marks, load_marks(self._folder)
        if now != before and not problems:
            change = {
                "add": [tag for tag in now["tags"] if tag not in before["tags"]],
                "remove": [tag for tag in before["tags"] if tag not in now["tags"]],
                "note": None if now["note"] == before["note"] else now["note"],
            }
            self._send("marks", MARKS, change)
            self._marks = now

    def _append(self, name: str, path: Path) -> None:
        sent, tail = self._sent.get(name, (0, b""))
        with open(path, "rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, sent - len(tail)))
            if size < sent or file.read(len(tail)) != tail:
                sent, tail = 0, b""  # cut by a resumed run, and perhaps grown again since: all of it anew
                if size == 0:
                    self._send("append", name, 0, b"")
            file.seek(sent)
            while size > sent:
                data = file.read(min(PART_BYTES, size - sent))
                if not data:  # cut meanwhile: the next look sees it
                    break
                self._send("append", name, sent, data)
                sent, tail = sent + len(data), (tail + data)[-_TAIL_BYTES:]
        self._sent[name] = sent, tail

    def _snapshot(self, name: str, folder: Path) -> None:
        sent, stamp = self._sent.get(name), _stamp(folder / MANIFEST)
        if sent is not None and sent[0] == stamp:
            return
        contents = _contents(folder)
        if sent is not None and sent[1] == contents:  # what was measured on it is noted there later
            self._send("note", f"{name}/{MANIFEST}", (folder / MANIFEST).read_bytes())
        else:
            try:
                self._whole_snapshot(name, folder, contents)
            except (_NotWrittenError, NotSeenError):  # by one side alone; else the other says so when it is sent
                self._seen = None
                self._whole_snapshot(name, folder, contents)
        self._sent[name] = stamp, contents

    def _whole_snapshot(self, name: str, folder: Path, contents: Any) -> None:
        partial = str(Path(name).with_name(f".{folder.name}.{self._token}.partial"))
        try:
            for path in sorted(folder.rglob("*")):
                if path.is_file() and not is_unfinished(path.relative_to(self._folder)):
                    for at, data in parts(path):
                        self._part(f"{partial}/{path.relative_to(folder)}", at, data)
            written = () if self._seen is None else (self._flushed(self._seen / partial),)
            if _contents(folder) != contents:
                raise FileNotFoundError("another snapshot has taken its place")  # of which the next look is
            self._send("commit", name, partial, *written)
        except (OSError, _NotWrittenError, NotSeenError):
            if self._seen is not None:
                shutil.rmtree(self._seen / partial, ignore_errors=True)
            self._send("remove", partial)
            raise

    def _part(self, name: str, at: int, data: bytes) -> None:
        if self._seen is None:
            self._send("part", name, at, data)
            return
        try:
            os.stat(self._seen / MARKER)  # a folder that was deleted there is not made again
            write_part(room(self._seen / name), at, data)
        except OSError as error:
            raise _NotWrittenError from error

    def _flushed(self, partial: Path) -> dict[str, int]:
        try:
            for path in partial.rglob("*"):
                flush(path)
            return sizes(partial)
        except OSError as error:
            raise _NotWrittenError from error

    def _files(self) -> list[tuple[str, Path]]:
        found = []
        for parent, folders, names in os.walk(self._folder, onerror=self._note_folder):
            at = Path(parent).relative_to(self._folder)
            folders[:] = [each for each in folders if not each.startswith(".") and at / each != Path(SNAPSHOTS)]
            for name in names:
                path = Path(parent, name)
                if not name.startswith(".") and name not in OWN and os.path.isfile(path):
                    found.append((str(at / name), path))
        return sorted(found)

    def _snapshots(self) -> list[tuple[str, Path]]:
        folders = sorted((self._folder / SNAPSHOTS).glob("[0-9]*"))
        return [(f"{SNAPSHOTS}/{folder.name}", folder) for folder in folders if os.path.isfile(folder / MANIFEST)]

    def _note_folder(self, error: OSError) -> None:
        with self._read(os.path.relpath(error.filename, self._folder)):
            raise error

    def _loop(self) -> None:
        try:
            while not self._stop.wait(SYNC_S):
                self.sync()
        except BaseException as error:  # raised by `close`, in the thread that ends with it
            self._error = error


class _NotSentError(Exception):
    """What was read could not be sent."""

    def __init__(self, error: OSError) -> None:
        self.error = error


class _NotWrittenError(Exception):
    """A copy that is seen from here could not be written to."""


def _is_gone(path: Path) -> bool:
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:  # there, as far as one may know
        return False
    return False


def _contents(snapshot: Path) -> Any:
    """What tells a snapshot from another one of its step: the checksums of its files."""
    text = (snapshot / MANIFEST).read_bytes()
    try:
        return json.dumps(json.loads(text)["files"], sort_keys=True)  # in which NaN is itself
    except (ValueError, TypeError, KeyError, RecursionError):  # a damaged one is like no other
        return text


def _stamp(path: Path) -> tuple[int, int, int]:
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
