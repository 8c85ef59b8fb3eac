"""The table of an experiment's trials."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import optuna
    import pandas as pd  # type: ignore[import-untyped]


class TrialRow(NamedTuple):
    """One trial of an experiment as its table shows it.

    Attributes:
        number: Its place, from 0.
        state: As of `Trial`, or `waiting` in Optuna's queue.
        score: What the objective returned; None where it is not finished, or the experiment has several objectives.
        hparams: What it chose.
        path: Its folder.
        scores: One number an objective; empty where it is not finished.
    """

    number: int
    state: str
    score: float | None
    hparams: dict[str, Any]
    path: Path
    scores: tuple[float, ...] = ()


class Trials(Sequence[TrialRow]):
    """An experiment's trials by number; prints as a table.

    Args:
        rows: The trials.
        objectives: What the scores are called.
    """

    def __init__(self, rows: Sequence[TrialRow], objectives: Sequence[str] = ("score",)) -> None:
        self._rows, self._objectives = list(rows), list(objectives)

    def __getitem__(self, index: Any) -> Any:
        return self._rows[index]

    def __len__(self) -> int:
        return len(self._rows)

    def frame(self) -> "pd.DataFrame":
        """Returns a DataFrame: number, state, the scores and a column for each hyper-parameter."""
        import pandas as pd

        return pd.DataFrame(
            [{"number": r.number, "state": r.state, **self._scores(r), **r.hparams} for r in self]
        ).set_index("number")

    def _scores(self, row: TrialRow) -> dict[str, float | None]:
        return dict(zip(self._objectives, row.scores or [None] * len(self._objectives), strict=True))

    def __repr__(self) -> str:
        from ai.lab.report.text_table import format_table

        names = list(dict.fromkeys(name for row in self._rows for name in row.hparams))
        head = ["number", "state", *self._objectives, *names]
        # A choice of None is one; a hyper-parameter that this trial never asked for is none.
        chosen = [["None" if r.hparams.get(name, 0) is None else r.hparams.get(name) for name in names] for r in self]
        rows = [[r.number, r.state, *self._scores(r).values(), *c] for r, c in zip(self, chosen, strict=True)]
        return format_table(head, rows)


def to_row(trial: "optuna.trial.FrozenTrial", path: Path) -> TrialRow:
    """Returns what the search holds of a trial as a row of the table."""
    scores = tuple(trial.values or ()) if trial.state.name == "COMPLETE" else ()
    score = scores[0] if len(scores) == 1 else None
    return TrialRow(trial.number, _state(trial), score, dict(trial.params), path, scores)


def _state(trial: "optuna.trial.FrozenTrial") -> str:
    if trial.state.name == "FAIL" and trial.user_attrs.get("ended") is not None:
        return str(trial.user_attrs["ended"])
    names = {"COMPLETE": "finished", "PRUNED": "pruned", "RUNNING": "running", "FAIL": "failed", "WAITING": "waiting"}
    return names[trial.state.name]
