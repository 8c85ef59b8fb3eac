"""The table of an experiment's trials."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import optuna
    import pandas as pd  # type: ignore[import-untyped]


class TrialRow(NamedTuple):
    """One trial of an experiment as its table shows it."""

    number: int
    state: str
    score: float | None
    hparams: dict[str, Any]
    path: Path


class Trials(Sequence[TrialRow]):
    """An experiment's trials by number; prints as a table."""

    def __init__(self, rows: Sequence[TrialRow]) -> None:
        self._rows = list(rows)

    def __getitem__(self, index: Any) -> Any:
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def frame(self) -> "pd.DataFrame":
        """Returns a DataFrame: number, state, score and a column for each hyper-parameter."""
        import pandas as pd

        rows = [{"number": r.number, "state": r.state, "score": r.score, **r.hparams} for r in self._rows]
        return pd.DataFrame(rows).set_index("number")

    def __repr__(self) -> str:
        from ai.lab.report.text_table import format_table

        names = list(dict.fromkeys(name for row in self._rows for name in row.hparams))
        head = ["number", "state", "score", *names]
        return format_table(head, [[r.number, r.state, r.score, *map(r.hparams.get, names)] for r in self._rows])


def to_row(trial: "optuna.trial.FrozenTrial", path: Path) -> TrialRow:
    """Returns what the search holds of a trial as a row of the table."""
    score = trial.value if trial.state.name == "COMPLETE" else None
    return TrialRow(trial.number, _state(trial), score, dict(trial.params), path)


def _state(trial: "optuna.trial.FrozenTrial") -> str:
    if trial.state.name == "FAIL" and trial.user_attrs.get("ended") is not None:
        return str(trial.user_attrs["ended"])
    names = {"COMPLETE": "finished", "PRUNED": "pruned", "RUNNING": "running", "FAIL": "failed", "WAITING": "waiting"}
    return names[trial.state.name]
