"""An experiment: a search for the hyper-parameters with the best score, each trial of it a recorded `Trial`."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack

from ai.lab.files.folder import mark, read_marker, resolve, write_json
from ai.lab.files.ownership import remove_unowned
from ai.lab.record import EXPERIMENT, Record
from ai.lab.report.trial_table import TrialRow, Trials, to_row
from ai.lab.search.experiment_trial import Objective
from ai.lab.trial import HookOptions

if TYPE_CHECKING:
    import optuna
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler


Direction = Literal["min", "max"]


class Experiment:
    """A search over hyper-parameters, kept in a folder, resumable after a kill, with several processes at once.

    Args:
        path: The folder; a relative one starts at `$AI_LAB_PATH`, else at `./ai-lab`.
        direction: Whether `'min'` or `'max'` is the best score.
        search: `'tpe'`, `'random'`, or a function from a seed to an Optuna sampler.
        pruner: None, `'median'`, `'halving'`, or an Optuna pruner; asked after each evaluation of a trial's hook.
        prune_by: The metric that pruning compares.
        seed: With one process at a time the same seed makes the same search.
        storage: A database URL, for machines that share no folder: each then keeps the trials that it ran, and folders
            of the same name are one search. By default a journal file in the folder.
        clean: Delete an earlier experiment in this folder.
        trial_options: What every trial's hook is told, as in `Trial` (`val_data`, `log_interval`, …).

    Raises:
        ValueError: an argument is none of its choices, or the folder's experiment has another direction.
        OwnedError: `clean` is asked for and a live process writes one of its trials.

    Example:
        >>> import tempfile
        >>> experiment = Experiment(tempfile.mkdtemp() + "/search", search="random")
        >>> experiment.run(5, lambda trial: (trial.hp.lin("x", -1, 1) - 0.5) ** 2, progress=False).best_score < 0.3
        True
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        direction: Direction = "min",
        *,
        search: "str | Callable[[int], BaseSampler]" = "tpe",
        pruner: "str | BasePruner | None" = None,
        prune_by: str = "val_loss",
        seed: int = 0,
        storage: str | None = None,
        clean: bool = False,
        **trial_options: Unpack[HookOptions],
    ) -> None:
        if direction not in ("min", "max"):
            raise ValueError(f"direction must be 'min' or 'max', got {direction!r}")
        if isinstance(search, str) and search not in ("tpe", "random"):
            raise ValueError(f"search must be 'tpe', 'random' or a function from a seed, got {search!r}")
        if isinstance(pruner, str) and pruner not in ("median", "halving"):
            raise ValueError(f"pruner must be None, 'median', 'halving' or an Optuna pruner, got {pruner!r}")
        if unknown := trial_options.keys() - HookOptions.__annotations__.keys():
            options = ", ".join(HookOptions.__annotations__)
            raise TypeError(f"trial options must be of {options}; got {', '.join(sorted(unknown))}")
        self.path = resolve(path)
        self.direction, self.prune_by, self.seed = direction, prune_by, seed
        self._search, self._pruner, self._storage = search, pruner, storage
        self._trial_options = trial_options
        self._trial_options.setdefault("progress", False)
        if clean and read_marker(self.path) is not None:
            remove_unowned(self.path)
            if storage is not None:
                from ai.lab.search.optuna_storage import delete_study

                delete_study(self.path, storage, self._study_name(""))
        self.id = mark(self.path, "experiment")
        about = {"direction": direction, "prune_by": prune_by, "seed": seed}
        file = self.path / EXPERIMENT
        if file.exists():
            recorded = json.loads(file.read_bytes())["direction"]
            if recorded != direction:
                raise ValueError(f"direction of {self.path} is {recorded!r}, got {direction!r}; choose another path")
        else:
            write_json(file, about)
        self._study_cache: optuna.Study | None = None

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    def run(
        self,
        n: int,
        fn: Objective,
        n_jobs: int = 1,
        *,
        catch: tuple[type[BaseException], ...] = (),
        progress: bool = True,
    ) -> Self:
        """Runs trials until the experiment has `n` of them, and returns itself.

        Run again after a kill, it goes on: a trial whose process died is written off and replaced. The same may run on
        several machines that share the folder.

        Args:
            n: How many trials the experiment shall have, those of earlier calls included.
            fn: Takes a trial, returns its score. A NaN score counts as a failed trial.
            n_jobs: Processes at once. They do not import your script: what `fn` needs is sent to them by value.
            catch: Exceptions of `fn` that count as a failed trial; any other ends the run.
            progress: Whether to print a line a trial.

        Raises:
            ValueError: `n` or `n_jobs` is below 1.
            RuntimeError: a worker process failed; the message holds its traceback or the end of its output.
        """
        if n < 1 or n_jobs < 1:
            raise ValueError(f"n and n_jobs must be at least 1, got {n} and {n_jobs}")
        from ai.lab.search import loop as search

        if n_jobs == 1:
            search.work(self, n, fn, catch, search.report_line if progress else lambda row: None)
        else:
            from ai.lab.search.worker_pool import run_workers

            run_workers(self, n, fn, n_jobs, catch, search.report_line if progress else lambda row: None)
        return self

    # -- results

    def trials(self) -> Trials:
        """Returns the table of all trials by number."""
        return Trials([to_row(one, self.trial_path(one.number)) for one in self.study.get_trials(deepcopy=False)])

    @property
    def best_row(self) -> TrialRow:
        """The finished trial with the best score.

        Raises:
            ValueError: no trial has finished.
        """
        rows = [row for row in self.trials() if row.score is not None]
        if not rows:
            raise ValueError(f"experiment {self.path} has no finished trial yet")
        return (min if self.direction == "min" else max)(rows, key=lambda row: row.score or 0.0)

    @property
    def best_hparams(self) -> dict[str, Any]:
        """The hyper-parameters of the best trial."""
        return self.best_row.hparams

    @property
    def best_score(self) -> float:
        """The best score."""
        score = self.best_row.score
        assert score is not None
        return score

    @property
    def best_trial(self) -> Record:
        """The best trial, for reading."""
        return Record(self.best_row.path)

    def plot(self, path: str | Path | None = None) -> Path:
        """Draws the score over the trials and against each hyper-parameter; returns the picture's path."""
        from ai.lab.report.plots import plot_experiment

        return plot_experiment(self.trials(), self.direction, path or self.path / "experiment.png")

    # -- its parts

    def trial_path(self, number: int) -> Path:
        """Returns the folder of a trial."""
        return self.path / "trials" / f"{number:05d}"

    @property
    def study(self) -> "optuna.Study":
        """Optuna's study underneath, for what is not offered here."""
        if self._study_cache is None:
            from ai.lab.search.optuna_storage import open_study

            self._study_cache = open_study(
                self.path,
                self._storage,
                self._study_name(self.id),
                "minimize" if self.direction == "min" else "maximize",
                pruner=self._make_pruner(),
            )
        return self._study_cache

    def _study_name(self, identity: str) -> str:
        return f"ai-lab-{identity if self._storage is None else self.name}"

    def make_sampler(self, number: int) -> "BaseSampler":
        """Returns the sampler that chooses for trial `number`, seeded by it: a resumed search chooses the same."""
        import numpy as np
        import optuna

        seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        if self._search == "tpe":
            return optuna.samplers.TPESampler(seed=seed)
        if self._search == "random":
            return optuna.samplers.RandomSampler(seed=seed)
        assert callable(self._search)
        return self._search(seed)

    def _make_pruner(self) -> "BasePruner":
        import optuna

        if self._pruner is None:
            return optuna.pruners.NopPruner()
        if self._pruner == "median":
            return optuna.pruners.MedianPruner()
        if self._pruner == "halving":
            return optuna.pruners.SuccessiveHalvingPruner()
        assert not isinstance(self._pruner, str)
        return self._pruner

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_study_cache": None}  # an open storage stays in its process

    def __repr__(self) -> str:
        return f"Experiment({str(self.path)!r}, {self.direction!r})"
