"""A search in one process: Optuna's own loop, each trial's folder taken under a lock and given up with its score.

What runs is `optuna.Study.optimize`: its callbacks, `stop`, timeouts, states and queue are Optuna's. Ours is when it
ends (at `n` trials over all processes and calls), what a lost trial is replaced by, and the recording.
"""

import errno
import math
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import optuna
from optuna.samplers import GridSampler
from optuna.trial import FrozenTrial, TrialState

from ai.data.workers.error_text import error_text
from ai.lab.files.folder import read_marker
from ai.lab.files.ownership import Owner, last_holder
from ai.lab.record import Record
from ai.lab.recording.options import HookOptions
from ai.lab.report.table import Spread
from ai.lab.report.trial_table import TrialRow, to_row
from ai.lab.search.beats import Beat, Watch
from ai.lab.search.evaluation import Outcome, evaluate, record
from ai.lab.search.experiment_trial import ExperimentTrial, Objective, PruneRule
from ai.lab.search.losses import ELSEWHERE, OWNER, counts, is_dead, put_back, scores_in, try_again
from ai.lab.search.optuna_storage import FileLock, open_study, quiet
from ai.lab.search.sampler import SeededSampler, as_sampler

if TYPE_CHECKING:
    from optuna.pruners import BasePruner

Report = Callable[[TrialRow], None]
Callback = Callable[[optuna.Study, FrozenTrial], None]


@dataclass
class Run:
    """What `Experiment.run` was asked for.

    Attributes:
        n: How many trials there shall be.
        fn: The objective.
        catch: Its exceptions that count as a failed trial.
        callbacks: Called with Optuna's study and trial after each.
        timeout_s: No trial begins later than this.
    """

    n: int
    fn: Objective
    catch: tuple[type[BaseException], ...] = ()
    callbacks: Sequence[Callback] = ()
    timeout_s: float | None = None


@dataclass
class Search:
    """What one process needs to take trials and run them; it pickles.

    Attributes:
        path: The experiment's folder.
        identity: The experiment's.
        directions: `'min'` or `'max'` by the objective's name.
        seed: Of the sampler.
        search: What `Experiment` takes as `search`.
        pruner: What `Experiment` takes as `pruner`.
        prune: What the pruner compares; None where nothing is pruned.
        storage: A database, or None for a journal in the folder.
        trial_options: What each trial is told.
        seeds: How often each configuration is run.
        device: This process's.
    """

    path: Path
    identity: str
    directions: dict[str, str]
    seed: int = 0
    search: Any = "tpe"
    pruner: "str | BasePruner | None" = None
    prune: PruneRule | None = None
    storage: str | None = None
    trial_options: HookOptions = field(default_factory=lambda: HookOptions())
    seeds: int = 1
    device: str | None = None
    _study: optuna.Study | None = field(default=None, repr=False)
    _watch: Watch = field(default_factory=Watch, repr=False)
    _held: list[Owner] = field(default_factory=list, repr=False)
    _beat: Beat | None = field(default=None, repr=False)
    _is_copy: bool = field(default=False, repr=False)

    @property
    def study(self) -> optuna.Study:
        """Optuna's study."""
        if self._study is None:
            directions: list[Literal["minimize", "maximize"]] = [
                "minimize" if direction == "min" else "maximize" for direction in self.directions.values()
            ]
            name = self.study_name(self.path, self.identity, self.storage)
            self._study = open_study(self.path, self.storage, name, directions)
            self._study.pruner = _as_pruner(self.pruner)
            self._study.sampler = as_sampler(self.search, self.seed)
            if self._is_copy:  # one of several processes: a sampler of the user's own would draw the same in each
                self._study.sampler.reseed_rng()
        return self._study

    @staticmethod
    def study_name(path: Path, identity: str, storage: str | None) -> str:
        """Returns the name of Optuna's study: in a database that machines share, the folder's."""
        return f"ai-lab-{identity if storage is None else path.name}"

    def trial_path(self, number: int) -> Path:
        """Returns the folder of a trial."""
        return self.path / "trials" / f"{number:05d}"

    def rows(self) -> list[TrialRow]:
        """Returns all trials by number."""
        return [to_row(one, self.trial_path(one.number)) for one in self.study.get_trials(deepcopy=False)]

    def work(self, run: Run, report: Report, stopping: Callable[[], bool] = lambda: False) -> bool:
        """Runs trials until there are `n`, and returns whether there are.

        A callback, the sampler or the time may end it earlier. One process at a time takes a trial, so that there are
        never more than `n`; of machines that share a database and no folder, two in the same moment may take one more.
        """
        lock = FileLock(self.path / "take.lock")
        enough = False
        ends = None if run.timeout_s is None else time.monotonic() + run.timeout_s

        def objective(asked: optuna.Trial) -> float | Sequence[float]:
            if self.storage is None:
                self.note(asked)
                return run_trial(asked)
            with Beat(asked) as self._beat:
                self.note(asked)
                return run_trial(asked)

        def run_trial(asked: optuna.Trial) -> float | Sequence[float]:
            folder = self.trial_path(asked.number)

            def begun() -> None:
                if self.storage is not None:
                    asked.set_user_attr(OWNER, last_holder(folder))
                lock.release()

            if self.seeds == 1:
                return _as_told(self.run_one(asked, 0, run, begun))
            folder.mkdir(parents=True, exist_ok=True)
            self._held.append(Owner(folder))  # also between its runs
            begun()
            runs = [self._one_of_several(asked, seed, run) for seed in range(self.seeds)]
            asked.set_user_attr("runs", runs)
            means = [Spread.of(column).mean for column in zip(*runs, strict=True)]
            if any(map(math.isnan, means)):  # of both infinities: no score, though no run failed
                asked.set_user_attr("counts", True)
            return _as_told(means)

        def after(study: optuna.Study, ended: FrozenTrial) -> None:
            nonlocal enough
            self._release()
            report(to_row(ended, self.trial_path(ended.number)))
            lock.acquire()
            enough = self.has(run.n) or self._is_walked()
            if enough or stopping():
                study.stop()

        def take() -> bool:
            lock.acquire()
            if self.has(run.n) or self._is_walked():
                return True
            with quiet():
                self.study.optimize(
                    objective,
                    timeout=None if ends is None else max(0.0, ends - time.monotonic()),
                    catch=(_Caught,),
                    callbacks=[*run.callbacks, after],
                )
            return enough

        while True:
            try:
                return take()
            except TakenOver:
                continue
            except (_Exit, Left) as ended:
                raise ended.error from ended.error.__cause__
            except Exception as error:
                if self.path.is_dir():
                    raise
                what = "the folder was moved or deleted while it was searched; run the search again where it is"
                raise FileNotFoundError(errno.ENOENT, what, str(self.path)) from error
            finally:
                self._release()
                lock.release()

    def is_under_way(self) -> bool:
        """Whether trials are under way or wait to be taken up, by whatever process."""
        unfinished = (TrialState.RUNNING, TrialState.WAITING)
        return bool(self.study.get_trials(deepcopy=False, states=unfinished))

    def has(self, n: int) -> bool:
        """Whether `n` trials are there or under way; to be asked under the lock. If not, what was lost is queued again.

        A trial without a live owner is one whose process died.
        """
        trials = self.study.get_trials(deepcopy=False)
        for one in trials:
            folder = self.trial_path(one.number)
            if one.state == TrialState.RUNNING and is_dead(one, folder, self._watch if self.storage else None):
                scores = self._scores_in(folder, one.number)
                put_back(self.study, one, folder, scores, shared=self.storage is None)
        trials = self.study.get_trials(deepcopy=False)
        counted = [one for one in trials if one.state != TrialState.WAITING and counts(one)]
        if len(counted) >= n:
            return True
        replaced = {number for one in trials for number in one.system_attrs.get("retry_history", [])}
        for one in trials:
            if one.state == TrialState.FAIL and not counts(one) and "place" in one.user_attrs:
                if one.number not in replaced:
                    try_again(self.study, one, self.study.sampler)
        if isinstance(self.study.sampler, SeededSampler) and self.storage is not None:
            self.study.sampler.place = None  # no lock is shared by those that ask
        elif isinstance(self.study.sampler, SeededSampler):
            waiting = [one for one in self.study.get_trials(deepcopy=False) if one.state == TrialState.WAITING]
            taken = {one.user_attrs.get("place", one.number) for one in counted}
            taken |= {one.user_attrs["place"] for one in waiting if "place" in one.user_attrs}
            self.study.sampler.place = next(place for place in range(len(taken) + 1) if place not in taken)
        return False

    def _is_walked(self) -> bool:
        """Whether a grid has no point left to take, and nothing is queued; Optuna would take those under way again."""
        sampler, trials = self.study.sampler, self.study.get_trials(deepcopy=False)
        if not isinstance(sampler, GridSampler) or any(one.state == TrialState.WAITING for one in trials):
            return False
        known = [one.system_attrs for one in trials if "grid_id" in one.system_attrs]
        taken = {attrs["grid_id"] for attrs in known if sampler._same_search_space(attrs["search_space"])}
        return sampler.is_exhausted(self.study) or len(taken) >= len(sampler._all_grids)

    def note(self, asked: optuna.Trial) -> None:
        """Notes which machine a trial is on, and its place in the search."""
        asked.set_user_attr("host", socket.gethostname())
        sampler, place = self.study.sampler, asked.user_attrs.get("place", asked.number)
        if isinstance(sampler, SeededSampler) and sampler.place is not None and "place" not in asked.user_attrs:
            place = sampler.place
        asked.set_user_attr("place", place)
        asked.set_user_attr("ended", None)
        if asked.user_attrs.get(ELSEWHERE):
            asked.set_user_attr(ELSEWHERE, False)

    def run_one(self, asked: optuna.Trial, seed: int, run: Run, begun: Callable[[], None]) -> list[float]:
        """Runs a trial, or one of its runs, and returns its scores; `begun` is called once its folder is taken."""
        trial = self.begin(asked, seed)
        begun()
        return self.score(trial, run)

    def begin(self, asked: optuna.Trial, seed: int = 0) -> ExperimentTrial:
        """Returns the trial that was asked for, its folder taken; one of its runs with several seeds."""
        path = self.run_path(asked.number, seed)
        goes_on = self.goes_on(asked, path)
        trial = ExperimentTrial(
            path,
            asked,
            self.prune,
            self.trial_options,
            seed=seed,
            device=self.device,
            goes_on=goes_on,
            reported=self.reported(asked),
            clean=not goes_on and read_marker(path) is not None,
        )
        trial.begin(experiment=self.identity, **({"seed": seed} if self.seeds > 1 else {}))
        return trial

    def reported(self, asked: optuna.Trial) -> list[int]:
        """Returns the steps of which the search knows a score already: Optuna takes one only once."""
        if not asked.user_attrs.get("taken_up"):
            return []
        return list(self.study._storage.get_trial(asked._trial_id).intermediate_values)

    def _one_of_several(self, asked: optuna.Trial, seed: int, run: Run) -> list[float]:
        """Returns the scores of a run; one that was finished before its process was lost is not run again."""
        path = self.run_path(asked.number, seed)
        known = self._scores_in(path, asked.number) if asked.user_attrs.get("taken_up") else None
        return known if known is not None else self.run_one(asked, seed, run, lambda: None)

    def run_path(self, number: int, seed: int) -> Path:
        """Returns the folder of a trial, or of one of its runs with several seeds."""
        path = self.trial_path(number)
        return path / str(seed) if self.seeds > 1 else path

    def goes_on(self, asked: optuna.Trial, path: Path) -> bool:
        """Whether a folder holds what a process that was lost left of this very trial, with snapshots to go on from."""
        if not asked.user_attrs.get("taken_up") or read_marker(path) is None:
            return False
        found = Record(path)
        mine = found.meta.get("experiment") == self.identity and found.meta.get("number") == asked.number
        return mine and bool(found.snapshots())

    def score(self, trial: ExperimentTrial, run: Run) -> list[float]:
        """Runs the objective on one trial, records how it ended, and returns the scores or raises as Optuna expects."""
        outcome = evaluate(trial, run.fn, list(self.directions), run.catch)
        self._held += [owner for owner in [record(trial, outcome, list(self.directions))] if owner is not None]
        return self.tell(trial.optuna, outcome)

    def tell(self, asked: optuna.Trial, outcome: Outcome) -> list[float]:
        """Notes how a trial ended, and returns its scores or raises what has Optuna note the same.

        The folder is held meanwhile: nobody takes the trial for dead before Optuna knows. Where another machine has
        done so, the trial is that one's, whatever became of it here.
        """
        if self.storage is not None and self._beat is not None and not self._beat.is_ours():
            raise TakenOver
        if outcome.state == "pruned":
            raise optuna.TrialPruned
        if outcome.state != "finished":
            asked.set_user_attr("ended", outcome.state)
            asked.set_user_attr("counts", outcome.counts)
        if outcome.error is not None and outcome.counts:  # its class may be another here than where it was raised
            raise _Caught(error_text(outcome.error)) from outcome.error
        if outcome.state == "interrupted":
            raise Left(outcome.error)
        if isinstance(outcome.error, Exception | KeyboardInterrupt) and _can_be_shown(outcome.error):
            raise outcome.error
        if outcome.error is not None:
            raise _Exit(outcome.error) from None
        assert outcome.scores is not None
        return outcome.scores

    def _release(self) -> None:
        while self._held:
            self._held.pop().release()

    def _scores_in(self, path: Path, number: int) -> list[float] | None:
        return scores_in(path, number, self.identity, list(self.directions))

    def __getstate__(self) -> dict[str, Any]:  # an open storage stays in its process
        return {**self.__dict__, "_study": None, "_held": [], "_beat": None, "_watch": Watch(), "_is_copy": True}


class Left(BaseException):
    """Carries an interruption through Optuna: the trial stays under way there, and is taken up again."""

    def __init__(self, error: BaseException | None) -> None:
        super().__init__("" if error is None else error_text(error))
        self.error = error or KeyboardInterrupt()


class _Caught(Exception):  # noqa: N818  (it tells of one)
    """Has Optuna note a trial as failed whose exception is among those that count."""


class TakenOver(BaseException):
    """Leaves a trial that another machine has taken up, since this process gave no sign for too long."""


class _Exit(Exception):  # noqa: N818  (it carries one)
    """Carries an exception through Optuna, which tells no end of a trial for `SystemExit` and writes all others."""

    def __init__(self, error: BaseException) -> None:
        super().__init__(error_text(error))
        self.error = error


def _can_be_shown(error: BaseException) -> bool:
    try:
        repr(error)
    except Exception:  # Optuna would raise it in the place of the error
        return False
    return True


def report_line(row: TrialRow) -> None:
    """Prints one finished trial as a line."""
    hparams = ", ".join(
        f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in row.hparams.items()
    )
    score = "".join(f" {score:.6g}" for score in row.scores)
    print(f"trial {row.number} {row.state}{score}  {hparams}", flush=True)


def _as_pruner(pruner: "str | BasePruner | None") -> "BasePruner":
    if pruner is None:
        return optuna.pruners.NopPruner()
    if pruner == "median":
        return optuna.pruners.MedianPruner()
    if pruner == "halving":
        return optuna.pruners.SuccessiveHalvingPruner()
    assert not isinstance(pruner, str)
    return pruner


def _as_told(scores: list[float]) -> float | Sequence[float]:
    return scores[0] if len(scores) == 1 else scores
