"""What every run of an example has: its options, and the trial that records it."""

import json
import os
import shlex
import sys
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Literal, Protocol, Unpack, get_args, get_origin, get_type_hints

from ai.lab import Trial
from ai.lab.files.folder import Kind, find, read_marker, resolve
from ai.lab.files.ownership import OwnedError, give_up_left_open, holder, refusal
from ai.lab.record import METRICS, SNAPSHOTS
from ai.lab.recording.options import TrialOptions
from ai.lab.recording.writer import rank
from ai.model.saved import committed

GIVEN = "given from Python"
"""What a trial's configuration has as `data` where its run was given a dataset."""


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What every run that learns from stored data needs; every field is an option of the command line."""

    data: str = ""
    """Your own images instead: a folder, with a folder for each class where classes are learnt."""
    trial: str = "run"
    """The trial's folder, relative to $AI_LAB_PATH (else ./ai-lab) unless absolute."""
    resume: bool = False
    """Go on from the trial's last snapshot instead of starting anew."""
    clean: bool = False
    """Delete what an earlier run left in the trial's folder, which is else kept beside it."""
    minutes: float | None = None
    """Stop earlier, after this time; a schedule follows the steps all the same."""
    seed: int = 0
    """Seeds the weights, the order of the data and whatever else is drawn."""
    device: str = "cpu"
    """A torch device."""

    def __post_init__(self) -> None:
        if not isinstance(self.data, str | os.PathLike):
            raise TypeError(f"data must be a path, or '' for none, got {self.data!r}")
        object.__setattr__(self, "data", os.fspath(self.data))
        for name, hint in get_type_hints(type(self)).items():
            if get_origin(hint) is Literal and getattr(self, name) not in get_args(hint):
                known = ", ".join(map(repr, get_args(hint)))
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}")

    @property
    def timelimit(self) -> float | None:
        """The seconds that `minutes` allow."""
        return 60 * self.minutes if self.minutes else None

    def record(self, interval: int, given: object = None, **what: Unpack[TrialOptions]) -> Trial:
        """Returns the run's trial: new, or the one to resume.

        Args:
            interval: Steps between two snapshots, and between whatever else `what` says is to happen.
            given: The data that the run was given from Python, if any: then the recorded `data` says so.
            what: Options of a trial, such as `val_data`, `sampler` or `task`.
        """
        how: TrialOptions = {
            "save_snapshots": True,
            "log_interval": 20,
            "val_interval": interval,
            "sample_interval": interval,
            "task_interval": interval,
            "save_interval": interval,
            **what,
        }
        config = self if given is None else replace(self, data=GIVEN)
        return open_trial(self, config, **how)

    def keep(self, trial: Trial, name: str, value: str | list[str]) -> None:
        """Keeps as `NAME.json` of a trial what its model's numbers mean: a resumed run must mean the same by them.

        Raises:
            ValueError: The run to resume was of other data.
        """
        file = trial.path / f"{name}.json"
        if self.resume and file.exists():
            before = json.loads(file.read_text(encoding="utf-8"))
            if before != value:
                raise ValueError(
                    f"data must have the {name} of the trial to resume, {_short(before)}, got {_short(value)}"
                )
        file.write_text(json.dumps(value), encoding="utf-8")


class RecordedConfig(Protocol):
    """What the options of every run say of its trial."""

    @property
    def trial(self) -> str:
        """The trial's folder."""

    @property
    def resume(self) -> bool:
        """Whether to go on from its last snapshot."""

    @property
    def clean(self) -> bool:
        """Whether to delete what an earlier run left there."""


def open_trial(how: RecordedConfig, config: object, **what: Unpack[TrialOptions]) -> Trial:
    """Returns the trial of a run: the one to resume, or a new one, beside which an earlier run of its name is kept.

    Args:
        how: The run's options.
        config: What the trial records of them.
        what: Options of a trial.

    Raises:
        ValueError: The run is to resume and to begin anew, or the folder holds another record.
        OwnedError: A live process writes the trial.
    """
    if how.resume and how.clean:
        raise ValueError("resume goes on with the trial that clean deletes: give one of the two")
    if not (how.resume or how.clean):
        keep_earlier(how.trial)
    return Trial(how.trial, clean=not how.resume, config=config, **what)


def keep_earlier(name: str, kind: Kind = "trial") -> None:
    """Renames a record that has something to lose, and says so; of several ranks rank 0 does.

    Args:
        name: The folder of a record that is about to begin anew.
        kind: What it holds, if anything; a record of another kind is left to whoever takes the folder.
    """
    folder = resolve(name)
    if rank() > 0 or not _has_something_to_lose(folder, kind):
        return
    for trial in find(folder, "trial"):
        give_up_left_open(trial)
        if (found := holder(trial)) is not None:
            raise OwnedError(refusal(trial, found))
    name = os.path.normpath(name)
    kept = next(one for n in count(1) if not os.path.lexists(resolve(one := f"{name}.{n}")))
    try:
        folder.rename(resolve(kept))
    except OSError:
        if resolve(kept).exists():  # another process, which begins at the same moment, has kept it
            return
        raise
    again = f"; --trial {shlex.quote(kept)} --resume goes on with it" if kind == "trial" else ""
    print(f"the earlier run of {name} is kept as {kept}{again} (--clean deletes it)", file=sys.stderr)


def _has_something_to_lose(folder: Path, kind: Kind) -> bool:
    marker = read_marker(folder)
    if marker is None or marker["kind"] != kind:
        return False
    return any(
        (rows.exists() and rows.stat().st_size) or committed(trial / SNAPSHOTS)
        for trial in find(folder, "trial")
        for rows in [trial / METRICS]
    )


def _short(value: str | list[str]) -> str:
    text = value if isinstance(value, str) else ", ".join(value)
    return repr(text if len(text) <= 60 else f"{text[:57]}…")
