"""Trials that lost their process: how they are known, and how they come back under their number."""

import contextlib
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from ai.lab.files.folder import find
from ai.lab.files.ownership import holder, last_holder
from ai.lab.record import Record
from ai.lab.search.beats import Watch, take_over
from ai.lab.search.sampler import SeededSampler

MAX_LOSSES = 3
"""A trial that takes more processes with it than this, with no newer snapshot in between, counts as failed."""
OWNER = "owner"
"""The attribute of a database's trial that says whom the lock of its folder names."""

ELSEWHERE = "elsewhere"
"""The attribute of a trial whose objective runs in no process of the search itself, and so cannot have killed it."""


def is_dead(lost: FrozenTrial, folder: Path, watch: Watch | None) -> bool:
    """Whether a trial under way has lost its process.

    Where it lies in a shared folder, its lock decides. In a database, which has a `watch`, so does the lock if it is
    seen here: if it names the process that the database names, and not one that had the trial before. Else the beat.
    """
    if watch is None:
        return holder(folder) is None
    owner = lost.user_attrs.get(OWNER)
    if owner is not None and last_holder(folder) == owner:
        return holder(folder) is None
    return lost.user_attrs.get("ended") == "interrupted" or watch.has_stopped(lost)


def put_back(study: optuna.Study, lost: FrozenTrial, folder: Path, scores: list[float] | None, *, shared: bool) -> None:
    """Has a trial whose process is gone taken up again, with its number, its choices and its folder.

    One that had its scores keeps them. One that takes its processes with it again and again counts as failed.
    Without a `shared` folder, whose lock is held for it, one of all who find a trial dead puts it back.
    """
    storage: Any = study._storage
    with contextlib.suppress(RuntimeError):  # it ended in this moment
        if not shared and not take_over(study, lost):
            return
        if scores is not None:
            storage.set_trial_state_values(lost._trial_id, TrialState.COMPLETE, scores)
            return
        # It saved, and left by itself; or who asked for it died, and not who ran it, if it had begun at all.
        if lost.user_attrs.get("ended") == "interrupted" or lost.user_attrs.get(ELSEWHERE):
            storage.set_trial_user_attr(lost._trial_id, "taken_up", True)
            storage.set_trial_state_values(lost._trial_id, TrialState.WAITING)
            return
        step = saved_step(folder)
        before, at = lost.user_attrs.get("losses", [0, -1])
        losses = 1 if step > at else before + 1
        storage.set_trial_user_attr(lost._trial_id, "losses", [losses, step])
        storage.set_trial_user_attr(lost._trial_id, "taken_up", True)
        storage.set_trial_user_attr(lost._trial_id, "ended", "dead")
        if losses > MAX_LOSSES:
            storage.set_trial_user_attr(lost._trial_id, "counts", True)
            storage.set_trial_state_values(lost._trial_id, TrialState.FAIL)
        else:
            storage.set_trial_state_values(lost._trial_id, TrialState.WAITING)


def saved_step(folder: Path) -> int:
    """Returns how far a trial's snapshots reach, over all its runs; -1 without any."""
    return sum(max(Record(run).snapshots(), default=-1) + 1 for run in find(folder, "trial")) - 1


def scores_in(path: Path, number: int, experiment: str, objectives: list[str]) -> list[float] | None:
    """Returns the scores that a finished run of an experiment recorded in a folder, None where there are none."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        found = Record(path)
        meta = found.meta
        if found.state == "finished" and meta["number"] == number and meta["experiment"] == experiment:
            scores = [meta["score"]] if len(objectives) == 1 else [meta["scores"][name] for name in objectives]
            return [float(score) for score in scores]
    return None


def counts(trial: FrozenTrial) -> bool:
    """Returns whether a trial is one of the `n`: not if its process died or its objective was at fault."""
    return trial.state != TrialState.FAIL or bool(trial.user_attrs.get("counts"))


def try_again(study: optuna.Study, failed: FrozenTrial, sampler: BaseSampler) -> None:
    """Puts a failed trial into the queue again, as Optuna's own callback for stale trials does.

    What was chosen stays, so that the search goes on as if nothing had happened: a seeded sampler chooses it anew
    from the same seed. Where the objective was at fault, its choices may be what was wrong.
    """
    known = {}
    if not isinstance(sampler, SeededSampler) and failed.user_attrs.get("ended") != "failed":
        known = failed.params
    study.add_trial(
        optuna.create_trial(
            state=TrialState.WAITING,
            params=known,
            distributions={name: failed.distributions[name] for name in known},
            user_attrs={"place": failed.user_attrs["place"]},
            system_attrs={
                "failed_trial": failed.number,
                **failed.system_attrs,
                "retry_history": [*failed.system_attrs.get("retry_history", []), failed.number],
            },
        )
    )
