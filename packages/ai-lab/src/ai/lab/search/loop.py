"""The loop of a search in one process: take a trial, run it, tell its score."""

import contextlib
import math
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optuna.trial import FrozenTrial, TrialState

from ai.lab.files.folder import read_marker
from ai.lab.files.ownership import holder
from ai.lab.report.trial_table import TrialRow
from ai.lab.search.experiment_trial import ExperimentTrial, Objective
from ai.lab.search.optuna_storage import FileLock

if TYPE_CHECKING:
    import optuna

    from ai.lab.experiment import Experiment

Report = Callable[[TrialRow], None]


def work(
    experiment: "Experiment", n: int, fn: Objective, catch: tuple[type[BaseException], ...], report: Report
) -> None:
    """Runs trials until the experiment has `n`; see `Experiment.run`."""
    while (trial := take(experiment, n)) is not None:
        report(run_one(experiment, trial, fn, catch))


def take(experiment: "Experiment", n: int) -> ExperimentTrial | None:
    """Returns the next trial, its folder taken; None when `n` are there or under way.

    One process at a time does this, so that there are never more than `n`, and a trial without a live owner is one
    whose process died.
    """
    with FileLock(experiment.path / "take.lock").held():
        study = experiment.study
        everything = study.get_trials(deepcopy=False)
        counted = 0
        for one in everything:
            if one.state == TrialState.RUNNING and _is_dead(one, experiment.trial_path(one.number)):
                _write_off(experiment, one)
            elif counts(one):
                counted += 1
        if counted >= n:
            return None
        study.sampler = experiment.make_sampler(len(everything))
        asked = study.ask()
        asked.set_user_attr("host", socket.gethostname())
        trial = ExperimentTrial(
            experiment.trial_path(asked.number),
            asked,
            experiment.prune_by,
            experiment._trial_options,
            clean=read_marker(experiment.trial_path(asked.number)) is not None,
        )
        trial._open(number=asked.number, experiment=experiment.id)
        return trial


def counts(trial: FrozenTrial) -> bool:
    """Returns whether a trial is one of the `n`: not if its process died or its objective was at fault."""
    return trial.state != TrialState.FAIL or bool(trial.user_attrs.get("counts"))


def run_one(
    experiment: "Experiment", trial: ExperimentTrial, fn: Objective, catch: tuple[type[BaseException], ...]
) -> TrialRow:
    """Runs the objective on one trial and tells the search how it ended."""
    study = experiment.study
    try:
        score = _as_score(fn(trial))
    except BaseException as error:
        # SystemExit with 0 is how a training run ends that was asked to by a signal.
        interrupted = isinstance(error, KeyboardInterrupt | SystemExit)
        state = "interrupted" if interrupted else "failed"
        caught = isinstance(error, catch)
        _tell(study, trial, state, None, counts=caught)
        trial._finish(state, None if interrupted else error)
        if not caught:
            raise
        return TrialRow(trial.number, state, None, dict(trial.hp.chosen), trial.path)
    if trial.pruned:
        _tell(study, trial, "pruned", None, counts=True)
        trial._finish("pruned", None, score=_plain(score))
        return TrialRow(trial.number, "pruned", None, dict(trial.hp.chosen), trial.path)
    state = "failed" if math.isnan(score) else "finished"
    _tell(study, trial, state, score, counts=True)
    trial._finish(state, None, score=_plain(score))
    return TrialRow(trial.number, state, None if math.isnan(score) else score, dict(trial.hp.chosen), trial.path)


def report_line(row: TrialRow) -> None:
    """Prints one finished trial as a line."""
    hparams = ", ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in row.hparams.items()
    )
    score = "" if row.score is None else f" {row.score:.6g}"
    print(f"trial {row.number} {row.state}{score}  {hparams}", flush=True)


def _tell(study: "optuna.Study", trial: ExperimentTrial, state: str, score: float | None, *, counts: bool) -> None:
    if state == "finished":
        study.tell(trial.number, score)
    elif state == "pruned":
        study.tell(trial.number, state=TrialState.PRUNED)
    else:
        trial._optuna.set_user_attr("ended", state)
        trial._optuna.set_user_attr("counts", counts)
        study.tell(trial.number, state=TrialState.FAIL)


def _is_dead(trial: FrozenTrial, folder: Path) -> bool:
    """Whether a trial under way has lost its process; of another machine's, whose folder is not here, none can say."""
    here = trial.user_attrs.get("host") in (None, socket.gethostname())
    return (here or folder.exists()) and holder(folder) is None


def _write_off(experiment: "Experiment", dead: FrozenTrial) -> None:
    storage: Any = experiment.study._storage
    with contextlib.suppress(RuntimeError):  # it ended in this moment
        storage.set_trial_user_attr(dead._trial_id, "ended", "dead")
        storage.set_trial_state_values(dead._trial_id, TrialState.FAIL)


def _as_score(score: object) -> float:
    item = score.item() if hasattr(score, "item") else score
    if isinstance(item, bool) or not isinstance(item, int | float):
        raise TypeError(f"the objective must return one number as its score, got {score!r}")
    return float(item)


def _plain(score: float) -> float | str:
    return score if math.isfinite(score) else repr(score)
