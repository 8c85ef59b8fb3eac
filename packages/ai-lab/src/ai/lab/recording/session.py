"""One process's turn at writing a trial: the lock, the metadata, the open files."""

import contextlib
import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ai.data.workers.error_text import error_text, traceback_text
from ai.lab.files.folder import remove_litter, write_json
from ai.lab.files.metrics_file import Row, read_rows
from ai.lab.files.metrics_writer import MetricsWriter
from ai.lab.files.ownership import Owner
from ai.lab.files.place import Place
from ai.lab.provenance.code_state import keep_code
from ai.lab.provenance.description import describe_session
from ai.lab.record import CONFIG, LOG, META, METRICS, SYSTEM, Record
from ai.lab.recording.console_log import TextLog
from ai.lab.recording.system_metrics import SystemSampler, now

T = TypeVar("T")
LOOK_S = 1.0
"""So often it is looked whether the folder is still there, while rows are written."""
Logger = Callable[[int, Mapping[str, float]], object]
"""Called with step and numbers of each row; one that has a `close` is closed at the end."""


class Closing:
    """A logger that is told its trial, and how the run ended."""

    def begin(self, record: Record) -> None:
        """Called before the first row with the trial that it belongs to; a resumed one begins again."""

    def close(self, state: str, error: BaseException | None = None) -> None:
        """Ends it: the state in which the run ended, and what it failed by."""

    def __call__(self, step: int, values: Mapping[str, float]) -> None:
        """Takes a row."""


class Session:
    """Owns a trial's folder from its making until `close`.

    Args:
        record: The trial.
        system_interval_s: Seconds between two rows of system metrics; None for none.
        capture: Whether what the process prints is copied to `log.txt`.
        loggers: Called with (step, numbers) for each row, after it was written.
        fields: Further ones of `meta.json`.

    Raises:
        OwnedError: another live process writes the trial.
        OSError: the folder cannot be written.
    """

    def __init__(
        self,
        record: Record,
        *,
        system_interval_s: float | None,
        capture: bool,
        loggers: Sequence[Logger] = (),
        **fields: object,
    ) -> None:
        self.record = record
        self._place = Place(record.path)
        self._looked = 0.0
        self._log: TextLog | None = None
        self._system: SystemSampler | None = None
        self.loggers = list(loggers)
        before, begun = record.state, list[Logger]()
        try:
            self.owner = Owner(record.path)
        except BaseException:
            self._place.close()
            raise
        try:
            self.metrics = MetricsWriter(record.path / METRICS)
            self._meta = {"id": record.id, "state": "created", "sessions": [], **record.meta}
            self._meta["config"] = _config_copy(record)
            described = keep_code(record.path, describe_session())
            self._meta["before"] = before
            self._meta.pop("last", None)  # rows may be cut and written anew
            remove_litter(record.path)
            self._meta.setdefault("created", described["time"])
            self._meta["sessions"] = [*self._meta["sessions"], described]
            for logger in self.loggers:
                if isinstance(logger, Closing):
                    logger.begin(record)
                    begun.append(logger)
            self.update(state="running", **fields)
        except BaseException as error:
            _close_all(begun, "failed", error)
            self.owner.release()
            self._place.close()
            raise
        self._log = TextLog(record.path / LOG) if capture else None
        self._system = SystemSampler(record.path / SYSTEM, system_interval_s) if system_interval_s else None

    @property
    def folder(self) -> Path:
        """Where the trial is by now: a folder that is moved or renamed meanwhile is followed.

        Raises:
            FileNotFoundError: it was deleted.
        """
        before, now = self.record.path, self._place.now()
        if now != before:
            self.record.path = now
            self.metrics.move_to(now / METRICS)
            if self._system is not None:
                self._system.move_to(now / SYSTEM)
            self.event(f"moved from {before} to {now}")
        return now

    @property
    def meta(self) -> dict[str, Any]:
        """The metadata as last written."""
        return self._meta

    def update(self, **fields: object) -> None:
        """Writes fields of `meta.json`."""
        changed = {**self._meta, **fields}
        self.write_in_folder(lambda folder: write_json(folder / META, changed))
        self._meta = changed

    def write_in_folder(self, write: Callable[[Path], T]) -> T:
        """Returns what `write` does with the folder; where that is moved in the midst of it, it is done again.

        Raises:
            FileNotFoundError: the folder was deleted.
        """
        folder = self.folder
        try:
            return write(folder)
        except FileNotFoundError:
            if self.folder == folder:
                raise
            return write(self.folder)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends a row of metrics and hands it to the loggers."""
        row = self.metrics.write(step, values)
        if not 0 <= row["time"] - self._looked < LOOK_S:
            self._looked = row["time"]
            self.folder  # noqa: B018  (rows must not go on into a file that was deleted)
        if self.loggers:
            self._hand_on(row)

    def _hand_on(self, row: Row) -> None:
        numbers = {key: value for key, value in row.items() if key not in ("step", "time")}
        for logger in list(self.loggers):
            try:
                logger(int(row["step"]), dict(numbers))
            except Exception as error:  # another tracker's trouble is none of the run's
                self.loggers.remove(logger)
                print(f"ai.lab: a logger failed and gets no more rows: {error_text(error)}", file=sys.stderr)

    def rewound(self) -> None:
        """Tells the loggers which rows were dropped, once it is known what stays."""
        step = self.metrics.dropped_from
        rewinders = [rewind for one in self.loggers if (rewind := getattr(one, "rewind", None)) is not None]
        if step is not None and rewinders:
            kept = [row for row in read_rows(self.record.path / METRICS) if row["step"] >= step]
            for rewind in rewinders:
                rewind(step, kept)

    def event(self, text: str) -> None:
        """Appends a line to `log.txt`."""
        if self._log is not None:
            self._log.event(text)

    def close(self, state: str, error: BaseException | None = None, *, release: bool = True, **fields: object) -> None:
        """Records how it ended, closes the files and gives the folder up, or leaves that to who has the `owner`.

        Raises:
            OSError: the end cannot be recorded, and there is no `error` that matters more.
        """
        _close_all(self.loggers, state, error)
        if self._log is not None:
            self._log.end_lines()
        if error is not None:
            fields["error"] = error_text(error)
            if self._log is not None:
                self._log.write(traceback_text(error))
        self.event(state)
        try:
            self._record_end(state, fields)
        except Exception as failure:  # a full disk, say: then the trial shows as dead
            if error is None:
                raise
            what = f"the end of {self.record.path} could not be recorded"
            print(f"ai.lab: {what}: {error_text(failure)}", file=sys.stderr)
        finally:
            if self._log is not None:
                self._log.close()
            if release:
                self.owner.release()
            self._place.close()

    def _record_end(self, state: str, fields: dict[str, object]) -> None:
        if self._system is not None:
            self._system.close()
        last = self.metrics.last()
        self.metrics.close()
        *before, session = self._meta["sessions"]
        session = {**session, "end": describe_end(last.get("step")), "state": state}
        self.update(state=state, sessions=[*before, session], last=last, **fields)


def _close_all(loggers: Sequence[Logger], state: str, error: BaseException | None) -> None:
    for logger in loggers:
        with contextlib.suppress(Exception):
            logger.close(state, error) if isinstance(logger, Closing) else getattr(logger, "close", lambda: None)()


def _config_copy(record: Record) -> dict[str, Any] | None:
    """Returns what `config.yaml` holds for `meta.json`: YAML takes a hundred times as long to read."""
    try:
        data = (record.path / CONFIG).read_bytes()
        return {"sha1": hashlib.sha1(data).hexdigest(), "values": record.load_config({})}
    except (OSError, ValueError):
        return None


def describe_end(step: float | None) -> dict[str, Any]:
    """Returns the time and the last step at a session's end."""
    return {"time": now(), "step": step}
