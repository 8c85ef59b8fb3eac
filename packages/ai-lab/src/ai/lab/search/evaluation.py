"""What an objective made of a trial: its scores, or why there are none. Nothing here knows of the search."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna

from ai.lab.files.load import is_number
from ai.lab.files.ownership import Owner
from ai.lab.recording.outcome import outcome_of
from ai.lab.search.experiment_trial import ExperimentTrial, Objective


@dataclass(frozen=True)
class Outcome:
    """How a trial, or one of its runs, ended.

    Attributes:
        state: `finished`, `pruned`, `failed` or `interrupted`.
        scores: One number an objective, in their order; None where the objective returned none.
        error: What it raised.
        counts: Whether a failed trial is one of those that were asked for.
    """

    state: str
    scores: list[float] | None = None
    error: BaseException | None = None
    counts: bool = False


def evaluate(
    trial: ExperimentTrial, fn: Objective, objectives: Sequence[str], catch: tuple[type[BaseException], ...]
) -> Outcome:
    """Runs the objective on a trial that is open, and returns what came of it, whatever that is."""
    scores = None
    try:
        scores = as_scores(fn(trial), objectives)
        if trial.pruned:
            return Outcome("pruned", scores)
        if (unseen := trial.unseen_metric()) is not None:
            raise ValueError(
                f"prune_by must be a metric that evaluations measure ({', '.join(trial.evaluated)}), got {unseen!r}"
            )
    except optuna.TrialPruned:
        return Outcome("pruned", scores)
    except BaseException as error:
        state, _ = outcome_of(error)
        state = "interrupted" if state == "finished" else state  # left by `sys.exit()`, without a score
        return Outcome(state, scores, error, isinstance(error, catch))
    if any(map(math.isnan, scores)):
        return Outcome("failed", scores, counts=True)
    return Outcome("finished", scores)


def record(trial: ExperimentTrial, outcome: Outcome, objectives: Sequence[str]) -> Owner | None:
    """Records in its folder how a trial ended; the owner keeps the folder until the search knows it too."""
    known = {} if outcome.scores is None else as_told(outcome.scores, objectives)
    _, shown = outcome_of(outcome.error)
    return trial.finish(outcome.state, shown, **known)


def as_scores(score: object, objectives: Sequence[str]) -> list[float]:
    """Returns what an objective returned as one number an objective, in their order.

    Raises:
        TypeError: it is not one number for each.
    """
    if len(objectives) == 1:
        return [_as_number(score)]
    if isinstance(score, Mapping):
        if set(score) != set(objectives):
            raise TypeError(f"the objective must return {', '.join(objectives)}, got {', '.join(map(str, score))}")
        return [_as_number(score[name]) for name in objectives]
    if not isinstance(score, Sequence) or isinstance(score, str) or len(score) != len(objectives):
        raise TypeError(f"the objective must return one number for each of {', '.join(objectives)}, got {score!r}")
    return [_as_number(one) for one in score]


def as_told(scores: Sequence[float], objectives: Sequence[str]) -> dict[str, Any]:
    """Returns scores as the trial's metadata holds them."""
    plain = [score if math.isfinite(score) else repr(score) for score in scores]
    return {"score": plain[0]} if len(plain) == 1 else {"scores": dict(zip(objectives, plain, strict=True))}


def _as_number(score: object) -> float:
    item = score.item() if hasattr(score, "item") else score
    if isinstance(item, bool) or not isinstance(item, int | float):
        raise TypeError(f"the objective must return one number as its score, got {score!r}")
    if not is_number(item):
        raise ValueError(
            f"the objective must return a score that a float holds, got one of {int(item).bit_length()} bits"
        )
    return float(item)
