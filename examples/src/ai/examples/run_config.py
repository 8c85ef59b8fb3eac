"""What every run of an example has: its options, and the trial that records it."""

import json
import os
from dataclasses import dataclass, replace
from typing import Literal, Unpack, get_args, get_origin, get_type_hints

from ai.lab import Trial
from ai.lab.recording.options import TrialOptions

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
        return Trial(self.trial, clean=not self.resume, config=config, **how)

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


def _short(value: str | list[str]) -> str:
    text = value if isinstance(value, str) else ", ".join(value)
    return repr(text if len(text) <= 60 else f"{text[:57]}…")
