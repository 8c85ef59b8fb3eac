"""A run's snapshots, as its hook saves them: first of all, by one owner, with what was measured noted afterwards."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol
from uuid import uuid4

from ai.train.engine.run import Run
from ai.train.hooks.interval import Interval, as_interval


class SnapshotFolder(Protocol):
    """What `Save` asks of `ai.train.Snapshots`."""

    folder: Path

    def latest(self) -> Path | None:
        """The newest snapshot that is whole."""

    def own(self, run: Run) -> None:
        """Take the folder for this run."""

    def disown(self) -> None:
        """Give it up."""

    def load_newest(self, run: Run, *, settings: str) -> Path | None:
        """Put the newest snapshot into the run."""

    def save(self, run: Run, step: int, metrics: Mapping[str, float] | None = None) -> Path:
        """Save the run."""

    def note(self, path: Path, metrics: Mapping[str, float]) -> None:
        """Add metrics to a snapshot."""

    def check_metric(self, found: Mapping[str, float]) -> None:
        """Refuse a metric to rank by that nobody measures."""

    def make_ready(self, run: Run) -> None:
        """Have memory for copies ready."""

    def wait(self) -> None:
        """Wait for what is being written."""


class Save:
    """Saves a run, each step once.

    Args:
        snapshots: where.
        interval: when it is due.
        settings: of a resume, as `Run.load_state_dict` takes it.
    """

    name = "save"

    def __init__(self, snapshots: SnapshotFolder, interval: Interval | int | str | None, settings: str) -> None:
        self.snapshots, self._settings = snapshots, settings
        self.interval = as_interval(interval, "save_interval")
        self._saved_step: int | None = None
        self._path: Path | None = None

    @property
    def newest_step(self) -> int:
        """The step of the newest snapshot; -1 where there is none."""
        newest = self.snapshots.latest()
        return -1 if newest is None else int(newest.name)

    def resume(self, run: Run) -> None:
        """Put the newest snapshot into the run, if there is one."""
        if (newest := self.snapshots.load_newest(run, settings=self._settings)) is not None:
            run.saved = str(newest)

    def begin(self, run: Run, *, resume: bool) -> None:
        """Take the folder, and put its newest snapshot into the run if it is to resume.

        Raises:
            BlockingIOError: another run writes there.
            OSError: nothing can be written there.
        """
        self.snapshots.own(run)
        self._saved_step, self._path = None, None
        if resume and run.saved is None:
            self.resume(run)
        if run.saved is not None and Path(run.saved).parent == self.snapshots.folder:
            self._saved_step, self._path = run.step, Path(run.saved)
        elif run.resumed and run.saved is None:  # from a snapshot that the user has chosen
            self._saved_step = run.step
            if run.restored_from is not None and _is_in(Path(run.restored_from), self.snapshots.folder):
                self._path = Path(run.restored_from)  # it may lack what was measured of it
        if run.line is None and not run.resumed:
            run.line = uuid4().hex

    def save(self, run: Run) -> None:
        """Save, unless this step is saved already; raises where something is not finite."""
        if self._saved_step == run.step:
            return
        run.check_finite()
        self._path = self.snapshots.save(run, run.step, {})
        run.saved, self._saved_step = str(self._path), run.step

    def note(self, run: Run, metrics: Mapping[str, float]) -> None:
        """Note in the snapshot of this step, if there is one, what was measured on its weights."""
        if self._saved_step == run.step and self._path is not None:
            self.snapshots.wait()  # of several ranks all wait, since all write
            if run.ranks.rank == 0:
                self.snapshots.note(self._path, metrics)

    def check_metric(self, found: Mapping[str, float]) -> None:
        """Refuse to rank by a metric that nobody measures."""
        self.snapshots.check_metric(found)

    def make_ready(self, run: Run) -> None:
        """Once, after the first step: have memory ready for copies."""
        self.snapshots.make_ready(run)

    def end(self, run: Run) -> None:
        """Wait for what is being written, and give the folder up."""
        try:
            self.snapshots.wait()
        except Exception as failure:
            if run.error is None:
                raise
            run.error.add_note(f"and the last snapshot was not written: {failure}")  # what ended the run comes first
        finally:
            self.snapshots.disown()


def _is_in(path: Path, folder: Path) -> bool:
    return path.is_dir() and path.resolve().parent == folder.resolve()
