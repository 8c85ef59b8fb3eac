"""The table of an experiment's trials."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ai.lab.report.table import Spread, Table

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
        runs: With several seeds, what each of them came to, of which the scores are the means.
    """

    number: int
    state: str
    score: float | None
    hparams: dict[str, Any]
    path: Path
    scores: tuple[float, ...] = ()
    runs: tuple[tuple[float, ...], ...] = ()

    def spreads(self) -> list[Spread]:
        """Returns mean and deviation of each objective over the seeds."""
        runs = self.runs or ((self.scores,) if self.scores else ())
        return [Spread.of(column) for column in zip(*runs, strict=True)]


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

    def table(self) -> Table:
        """Returns number, state, the scores (with several seeds mean ± deviation) and each hyper-parameter."""
        names = list(dict.fromkeys(name for row in self._rows for name in row.hparams))
        # A choice of None is one; a hyper-parameter that this trial never asked for is none.
        chosen = [["None" if r.hparams.get(name, 0) is None else r.hparams.get(name) for name in names] for r in self]
        rows = [[r.number, r.state, *self._scores(r), *c] for r, c in zip(self, chosen, strict=True)]
        return Table(["number", "state", *self._objectives, *names], rows)

    def pivot(self, row: str, column: str) -> Table:
        """Returns the score by two hyper-parameters, a grid's ablation table; what falls together as mean ± deviation.

        Raises:
            ValueError: no finished trial has one of them, or there are several objectives.
        """
        if len(self._objectives) > 1:
            raise ValueError(f"pivot needs one objective, got {', '.join(self._objectives)}")
        rows = [one for one in self._rows if one.scores and {row, column} <= one.hparams.keys()]
        if not rows:
            raise ValueError(f"row and column must be hyper-parameters of finished trials, got {row!r} and {column!r}")
        heads = sorted({one.hparams[column] for one in rows}, key=_order)
        sides = sorted({one.hparams[row] for one in rows}, key=_order)
        cells: dict[tuple[Any, Any], list[float]] = {}
        for one in rows:
            runs = [score for (score,) in one.runs] or [one.scores[0]]
            cells.setdefault((one.hparams[row], one.hparams[column]), []).extend(runs)
        body = [
            [side, *(Spread.of(cells[side, head]) if (side, head) in cells else None for head in heads)]
            for side in sides
        ]
        return Table(
            [f"{row} \\ {column}", *(f"{head:g}" if isinstance(head, float) else str(head) for head in heads)], body
        )

    def to_markdown(self, *, best: Mapping[str, str] | None = None) -> str:
        """Returns the table in Markdown; see `ai.lab.report.table.Table`."""
        return self.table().to_markdown(best=best)

    def to_latex(self, *, best: Mapping[str, str] | None = None) -> str:
        """Returns the table in LaTeX; see `ai.lab.report.table.Table`."""
        return self.table().to_latex(best=best)

    def to_pandas(self) -> "pd.DataFrame":
        """Returns a DataFrame: number, state, the scores and a column for each hyper-parameter."""
        return self.table().to_pandas()

    def frame(self) -> "pd.DataFrame":
        """Returns a DataFrame by number; see also `to_pandas`."""
        return self.to_pandas().set_index("number")

    def _scores(self, row: TrialRow) -> list[Any]:
        if not row.scores:
            return [None] * len(self._objectives)
        return list(row.spreads() if row.runs else row.scores)

    def __repr__(self) -> str:
        return repr(self.table())


def _order(value: object) -> tuple[bool, Any]:
    return (False, value) if isinstance(value, int | float) else (True, str(value))


def to_row(trial: "optuna.trial.FrozenTrial", path: Path) -> TrialRow:
    """Returns what the search holds of a trial as a row of the table."""
    scores = tuple(trial.values or ()) if trial.state.name == "COMPLETE" else ()
    score = scores[0] if len(scores) == 1 else None
    runs = tuple(map(tuple, trial.user_attrs.get("runs", ()))) if scores else ()
    return TrialRow(trial.number, _state(trial), score, dict(trial.params), path, scores, runs)


def _state(trial: "optuna.trial.FrozenTrial") -> str:
    if not trial.state.name == "COMPLETE" and trial.user_attrs.get("ended") is not None:
        return str(trial.user_attrs["ended"])
    names = {"COMPLETE": "finished", "PRUNED": "pruned", "RUNNING": "running", "FAIL": "failed", "WAITING": "waiting"}
    return names[trial.state.name]
