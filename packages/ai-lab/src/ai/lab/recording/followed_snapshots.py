"""Snapshots that go where their trial's folder goes."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ai.lab.record import SNAPSHOTS
from ai.lab.recording.writer import TrialWriter
from ai.train import Run, Snapshots


class FollowedSnapshots(Snapshots):
    """The snapshots of a trial, whose folder may be moved while it is written.

    Args:
        writer: Who writes the trial.
        how: As of `ai.train.Snapshots`.
    """

    def __init__(self, writer: TrialWriter, **how: Any) -> None:
        self._writer = writer
        super().__init__(writer.path / SNAPSHOTS, **how)

    @property
    def folder(self) -> Path:
        """Where the snapshots are."""
        return self._writer.find() / SNAPSHOTS

    @folder.setter
    def folder(self, folder: str | os.PathLike[str]) -> None:
        pass  # it is the trial's

    def save(self, run: Run, step: int, metrics: Mapping[str, float] | None = None) -> Path:
        """See `ai.train.Snapshots`; what was being written while the folder was moved is written again where it is."""
        before = self.folder
        try:
            path = super().save(run, step, metrics)
        except OSError:
            if self.folder == before or run.ranks.world > 1:
                raise
            path = super().save(run, step, metrics)
        return self.folder / path.name

    def note(self, path: str | os.PathLike[str], metrics: Mapping[str, float]) -> None:
        """See `ai.train.Snapshots`."""
        super().note(self.folder / Path(path).name, metrics)
