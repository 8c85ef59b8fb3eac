"""What writes a trial's folder in this process: opened when there is something to write, closed however that ends."""

import builtins
import contextlib
import json
import os
import shutil
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ai.data.workers.error_text import error_text
from ai.lab.configuration.plain_values import to_plain
from ai.lab.configuration.yaml_file import read_yaml, write_yaml
from ai.lab.files.folder import write_atomic
from ai.lab.files.metrics_writer import as_row
from ai.lab.files.ownership import Owner
from ai.lab.record import CONFIG, SAMPLES, SNAPSHOTS, Record
from ai.lab.recording.options import SESSION_DEFAULTS, SessionOptions
from ai.lab.recording.outcome import last_exit, outcome_of, watch_exit
from ai.lab.recording.resumed_rows import ByHand, Resumed, give_way, start_anew, take_up
from ai.lab.recording.session import Logger, Session

if TYPE_CHECKING:
    from ai.train import Run


_opening = threading.RLock()


def _open_in_child() -> None:
    """A forked child has no thread that would give the lock back."""
    global _opening
    _opening = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_open_in_child)


class TrialWriter:
    """Writes one trial; on ranks above 0 it only refuses.

    Args:
        path: The trial's folder, marked.
        config: What the user gave as configuration, or None.
        loggers: As of `Trial`.
        how: How it is recorded.

    Attributes:
        resumed_from: The step of the last `resume`; None where there was none, or once its run began.
        is_left_over: Whether the folder holds what a lost process wrote of this very trial: kept where `resume` is the
            first that is asked for, else written anew.
    """

    def __init__(self, path: Path, config: object, loggers: Sequence[str | Logger], how: SessionOptions) -> None:
        self._path = path
        self.resumed_from: int | None = None
        self._awaited: Resumed | None = None
        self._by_hand: ByHand | None = None
        self.is_left_over = False
        self._config, self._loggers = config, list(loggers)
        self._how: SessionOptions = {**SESSION_DEFAULTS, **how}
        self._session: Session | None = None
        self._process = os.getpid()
        self._began: int | None = None
        self._kept: set[tuple[int, str]] = set()
        self._left_open: weakref.finalize[Any, Any] | None = None

    @property
    def path(self) -> Path:
        """Where the trial's folder is; one that is written is followed where it is moved to."""
        with contextlib.suppress(FileNotFoundError):  # deleted: it is told where something is to be written
            return self.find()
        return self._path

    def find(self) -> Path:
        """Returns where the trial's folder is.

        Raises:
            FileNotFoundError: it was deleted while it was written.
        """
        if self._session is not None and self._process == os.getpid():
            self._path = self._session.folder
        return self._path

    @property
    def is_open(self) -> bool:
        """Whether this process is writing the trial."""
        return self._session is not None

    def open(self, *, in_use: bool = False, **fields: object) -> Session:
        """Takes the folder, unless that is done, and returns the session.

        Args:
            in_use: Whether someone ends it: a run, a `with` block. What is only logged to by hand gives way to who
                cleans the folder.
            fields: Further ones of `meta.json`.
        """
        if self._session is not None and self._process != os.getpid():
            raise RuntimeError(
                f"process {os.getpid()} must not write the trial {self.path}: "
                f"process {self._process}, which forked it, does"
            )
        if (session := self._session) is None:
            with _opening:  # of threads that log at once one opens it
                session = self._session or self._open(fields)
        if in_use:
            session.owner.give_up = None
        return session

    def _open(self, fields: Mapping[str, object]) -> Session:
        if rank() > 0:
            raise RuntimeError(f"rank {rank()} must not write the trial {self.path}: rank 0 does")
        from ai.lab.recording.trackers import as_logger

        record = Record(self.path)
        keep_config(self.path, self._config)
        config = self._config if self._config is not None else record.config
        loggers = [as_logger(logger, record, config) for logger in self._loggers]
        how: dict[str, Any] = {**self._how, **fields}
        self._process, self._began, self._kept = os.getpid(), None, set()
        session = Session(record, loggers=loggers, **how)
        self._left_open = weakref.finalize(self, _end_left_open, session, os.getpid())
        session.owner.give_up = weakref.WeakMethod(self._give_up)
        watch_exit()
        self._session = session
        return session

    def settle(self) -> None:
        """Before the first word of an objective: drops what a lost process left, unless there was a `resume`."""
        if not self.is_left_over:
            return
        with _opening:  # the first words may come from several threads
            if self.is_left_over and (self._awaited is None or not self._awaited.has_snapshot):
                start_anew(self.open())
                shutil.rmtree(self.path / SNAPSHOTS, ignore_errors=True)
            self.is_left_over = False

    def go_on_by_hand(self, step: int, said: set[str]) -> None:
        """Before a word of a loop of the user's own: as `settle`, and has what came after a `resume` give way."""
        self.settle()
        if self._awaited is None:
            return
        with _opening:
            if (resumed := self._awaited) is not None:
                self._by_hand = give_way(self.open(), resumed, step, said)
                self._awaited, self._began = None, resumed.step

    def resumed(self, step: int, snapshot: Path | None) -> None:
        """Called when a script has asked the trial to resume, and got `step`."""
        if rank() == 0:
            self._awaited, self._by_hand = Resumed.at(step, snapshot), None
        self.resumed_from = step

    def begin(self, run: "Run") -> None:
        """Opens the trial for a training run."""
        self.settle()
        session, resumed_from = self.open(in_use=True), self.resumed_from
        self.resumed_from, self._awaited, self._began = None, None, run.step
        by_hand, self._by_hand = self._by_hand, None
        try:
            take_up(session, run, starts_again=resumed_from == 0, by_hand=by_hand)
        except ValueError:
            self.end(str(session.meta["before"]))
            raise

    def end(
        self, state: str, error: BaseException | None = None, *, release: bool = True, **fields: object
    ) -> Owner | None:
        """Records how it ended and gives the folder up, unless its owner is to be released by the caller, who gets it.

        Does nothing where it is not open.
        """
        session, self._session = self._session, None
        if session is None:
            return None
        self._path = session.record.path
        if self._left_open is not None:
            self._left_open.detach()
        session.close(state, error, release=release, **fields)
        return session.owner

    def _give_up(self) -> None:
        self.end("interrupted")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one row."""
        if self._awaited is not None:
            self.go_on_by_hand(int(as_row(step, values)["step"]), {f"row.{key}" for key in values})
        self.settle()
        self.open().write(step, values)

    def sample(self, step: int, images: Any) -> Path:
        """Writes images as the PNG page of `step` and returns its path."""
        from ai.lab.media.image_page import encode_page
        from ai.lab.media.kept import page_step

        step, page = page_step(step), encode_page(images)
        self.go_on_by_hand(step, set())
        name = f"{step:09d}.png"

        def write(trial: Path) -> Path:
            (trial / SAMPLES).mkdir(exist_ok=True)
            write_atomic(trial / SAMPLES / name, page)
            return trial / SAMPLES / name

        return self.open().write_in_folder(write)

    def keep(self, step: int, name: str, value: object, layout: str | None) -> Path:
        """Writes a value as a file of `step`.

        A run that goes on makes the evaluations of the step where it begins again, and what it was killed for: there
        what an earlier session kept gives way.
        """
        from ai.lab.media.kept import as_file

        file = as_file(step, name, value, layout)
        self.go_on_by_hand(file.step, {f"kept.{name}"})
        session = self.open()
        replace = self._began is not None and file.step >= self._began and (file.step, name) not in self._kept
        path = session.write_in_folder(lambda trial: file.write(trial, replace=replace))
        self._kept.add((file.step, name))
        return path

    def note(self, fields: Mapping[str, object]) -> None:
        """Keeps fields in `meta.json` under `notes`."""
        plain = {name: _as_note(name, value) for name, value in fields.items()}
        session = self.open()
        session.update(notes={**session.meta.get("notes", {}), **plain})


def _as_note(name: str, value: object) -> Any:
    """Returns a field as `meta.json` will have it: what its owner changes later is no note."""

    def object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("has two keys that are the same as text")
        return found

    try:
        return json.loads(json.dumps(value, default=str), object_pairs_hook=object_of)
    except (TypeError, ValueError, RecursionError) as error:
        kind = next(one for one in (TypeError, RecursionError, ValueError) if isinstance(error, one))
        what = error_text(error).removeprefix(f"{type(error).__name__}: ")
        raise kind(f"note {name!r} must be what JSON can hold: {what}") from None


def keep_config(path: Path, config: object) -> None:
    """Writes the configuration unless there is none, or it is the recorded one."""
    if config is None:
        return
    file = path / CONFIG
    if not file.exists() or read_yaml(file) != to_plain(config):
        write_yaml(file, config)


def rank() -> int:
    """Returns this process's place among those of a run: 0 alone writes."""
    return int(os.environ.get("RANK") or 0)


def _end_left_open(session: Session, pid: int) -> None:
    """Ends what was logged by hand and never closed, once nobody can log any more; not in a forked child."""
    if os.getpid() != pid:
        return
    # What ended the script, as the interpreter keeps it; at a prompt it is an error that was survived.
    at_prompt = hasattr(sys, "ps1") or hasattr(builtins, "__IPYTHON__")
    error = None if at_prompt else getattr(sys, "last_value", None) or last_exit()
    try:
        session.close(*outcome_of(error))
    except OSError as failure:
        if session.record.path.exists():  # else it was deleted, and there is no end to record
            print(f"ai.lab: the end of {session.record.path} could not be recorded: {failure}", file=sys.stderr)
