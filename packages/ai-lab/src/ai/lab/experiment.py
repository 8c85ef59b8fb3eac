"""An experiment: a search for the hyper-parameters with the best score, each trial of it a recorded `Trial`."""

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack

from ai.lab.arguments import (
    as_callables,
    as_choices,
    as_exceptions,
    check_callable,
    check_seconds,
    check_switch,
    check_text,
    check_texts,
)
from ai.lab.files.alias import point_alias
from ai.lab.files.folder import find, mark, read_marker, resolve, write_json
from ai.lab.files.load import load_json
from ai.lab.files.metrics_writer import as_step
from ai.lab.files.removal import remove_unowned
from ai.lab.record import EXPERIMENT, Record
from ai.lab.recording.options import HookOptions, check_options
from ai.lab.report.trial_table import TrialRow, Trials
from ai.lab.search.experiment_trial import Objective, PruneRule

if TYPE_CHECKING:
    import optuna
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler

    from ai.data.workers.engine import Engine
    from ai.lab.search.loop import Callback


Direction = Literal["min", "max"]


class Experiment:
    """A search over hyper-parameters, kept in a folder, resumable after a kill, with several processes at once.

    Args:
        path: The folder; a relative one starts at `$AI_LAB_PATH`, else at `./ai-lab`.
        direction: Whether `'min'` or `'max'` is the best score; of several objectives a dict, such as
            `{'accuracy': 'max', 'parameters': 'min'}`.
        search: `'tpe'`, `'random'`; a dict of lists, whose grid is walked whole; an Optuna sampler; or a function
            from a seed to one.
        pruner: None, `'median'`, `'halving'`, or an Optuna pruner; asked after each evaluation of a trial's hook.
        prune_by: The metric that pruning compares; `'val_loss'` where the smallest score is the best, else to be named.
        prune_direction: Whether `'min'` or `'max'` is the best of `prune_by`; by default as `direction`.
        seed: With one process at a time the same seed makes the same search.
        seeds: How often each configuration is run, with `trial.seed` from 0 on; its score is the mean.
        storage: A database URL, for machines that share no folder: each then keeps the trials that it ran, and folders
            of the same name are one search. By default a journal file in the folder.
        clean: Delete an earlier experiment in this folder.
        trial_options: What every trial's hook is told, as in `Trial` (`val_data`, `log_interval`, …).

    Raises:
        TypeError: `seed` or `seeds` is no whole number.
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
        direction: Direction | Mapping[str, Direction] = "min",
        *,
        search: "str | Mapping[str, Sequence[Any]] | BaseSampler | Callable[[int], BaseSampler]" = "tpe",
        pruner: "str | BasePruner | None" = None,
        prune_by: str | None = None,
        prune_direction: Direction | None = None,
        seed: int = 0,
        seeds: int = 1,
        storage: str | None = None,
        clean: bool = False,
        **trial_options: Unpack[HookOptions],
    ) -> None:
        directions = _directions(direction)
        is_sampler = callable(getattr(search, "sample_independent", None))
        if not is_sampler and not isinstance(search, str | Mapping) and not callable(search):
            raise TypeError(
                "search must be 'tpe', 'random', a dict of lists, an Optuna sampler or a function from a seed, "
                f"got {search!r}"
            )
        if isinstance(search, str) and search not in ("tpe", "random"):
            raise ValueError(
                "search must be 'tpe', 'random', a dict of lists, an Optuna sampler or a function from a seed, "
                f"got {search!r}"
            )
        is_pruner = isinstance(pruner, str | None) or callable(getattr(pruner, "prune", None))
        if not is_pruner or isinstance(pruner, type):
            raise TypeError(f"pruner must be None, 'median', 'halving' or an Optuna pruner, got {pruner!r}")
        if isinstance(pruner, str) and pruner not in ("median", "halving"):
            raise ValueError(f"pruner must be None, 'median', 'halving' or an Optuna pruner, got {pruner!r}")
        if isinstance(search, Mapping):
            for name in search:
                if not isinstance(name, str):
                    raise TypeError(f"search must name hyper-parameters by text, got {name!r}")
            search = {name: as_choices(f"search[{name!r}]", choices) for name, choices in search.items()}
        if isinstance(search, Mapping) and (not search or not all(len(choices) for choices in search.values())):
            raise ValueError(
                f"search must name at least one hyper-parameter, each with at least one choice, got {search}"
            )
        check_text(or_none=True, prune_by=prune_by, prune_direction=prune_direction, storage=storage)
        check_switch(clean=clean)
        if prune_direction not in (None, "min", "max"):
            raise ValueError(f"prune_direction must be 'min' or 'max', got {prune_direction!r}")
        prune = None if pruner is None else _prune_rule(directions, prune_by, prune_direction)
        seed, seeds = as_step(seed, "seed"), as_step(seeds, "seeds")
        if seeds < 1:
            raise ValueError(f"seeds must be at least 1, got {seeds}")
        if seed < 0:
            raise ValueError(f"seed must be at least 0, got {seed}")
        check_options(trial_options, HookOptions, "trial")
        self.path = resolve(path)
        self.direction, self.seed = direction, seed
        trial_options.setdefault("progress", False)
        from ai.lab.search.loop import Search

        if clean and read_marker(self.path) is not None:
            remove_unowned(self.path)
            if storage is not None:
                from ai.lab.search.optuna_storage import delete_study

                delete_study(self.path, storage, Search.study_name(self.path, "", storage))
        self.id = mark(self.path, "experiment")
        file = self.path / EXPERIMENT
        if file.exists():
            recorded = load_json(file)
            if recorded.get("direction") is None:
                raise ValueError(f"{file} is damaged: direction is missing")
            if _directions(recorded["direction"]) != directions:
                was = recorded["direction"]
                raise ValueError(f"direction of {self.path} is {was!r}, got {direction!r}; choose another path")
        else:
            write_json(
                file,
                {
                    "direction": direction if isinstance(direction, str) else directions,
                    "prune_by": prune.by if prune else None,
                    "seed": seed,
                    "seeds": seeds,
                },
            )
        self._search = Search(
            self.path,
            self.id,
            directions,
            seed=seed,
            search=search,
            pruner=pruner,
            prune=prune,
            storage=storage,
            trial_options=trial_options,
            seeds=seeds,
        )

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    def run(
        self,
        n: int,
        fn: Objective,
        n_jobs: int | None = None,
        *,
        catch: Iterable[type[BaseException]] | type[BaseException] = (),
        callbacks: "Iterable[Callback]" = (),
        timeout_s: float | None = None,
        devices: Sequence[str] = (),
        engine: "Engine | None" = None,
        progress: bool = True,
    ) -> Self:
        """Runs trials until the experiment has `n` of them, and returns itself.

        Its folder's `@best` then leads to the best trial, or its first run: `ai-infer serve m=search@best`.

        Run again after a kill, it goes on: a trial whose process died is written off, and another one takes its place,
        with its choices where one process searches. The same may run on several machines that share the folder. What
        waits in Optuna's queue (`search.study.enqueue_trial`) comes first.

        Args:
            n: How many trials the experiment shall have, those of earlier calls included.
            fn: Takes a trial, returns its score, or one number for each of several objectives. A NaN score counts as a
                failed trial, `optuna.TrialPruned` as a pruned one.
            n_jobs: Processes at once; 1 by default, or as many as `devices`. They do not import your script: what `fn`
                needs is sent to them by value.
            catch: Exceptions of `fn` that count as a failed trial; any other ends the run.
            callbacks: Called with Optuna's study and trial after each trial, as by `optuna.Study.optimize`;
                `study.stop()` ends the run.
            timeout_s: No trial begins later than so many seconds after the call.
            devices: Names such as `'cuda:1'`: each process gets one in turn, as `trial.device`.
            engine: Where the processes are, such as `ai.data.Ray(num_gpus=0.5)`: on the machines of a cluster, which
                need not share a folder. Study, journal and folders are written here; what a trial writes there is
                copied here while it runs, and a trial whose machine is lost goes on elsewhere from that copy.
            progress: Whether to print a line a trial.

        Raises:
            TypeError: `n` or `n_jobs` is no whole number, `devices` is a text, or `engine` is none.
            ValueError: `devices` are given with an `engine`; `n` or `n_jobs` is below 1; `timeout_s` is not positive;
                the trials before were run with other `seeds`; or no evaluation of a trial measures what is pruned by.
            RuntimeError: a worker process failed; the message holds its traceback or the end of its output. Or this
                is one of several ranks, each of which would draw a search of its own.
        """
        if (world := int(os.environ.get("WORLD_SIZE") or 1)) > 1:
            raise RuntimeError(
                f"a search is run by one process, and this is one of {world} ranks: fn may start torchrun, once a trial"
            )
        check_texts(devices=devices)
        n, n_jobs = as_step(n, "n"), as_step(n_jobs if n_jobs is not None else max(1, len(devices)), "n_jobs")
        if n < 1 or n_jobs < 1:
            raise ValueError(f"n and n_jobs must be at least 1, got {n} and {n_jobs}")
        check_seconds(timeout_s=timeout_s)
        check_switch(progress=progress)
        check_callable(fn=fn)
        caught, called = as_exceptions("catch", catch), as_callables("callbacks", callbacks)
        if engine is not None:
            from ai.data.workers.engine import check_engine

            check_engine(engine)
        if engine is not None and devices:
            raise ValueError(f"devices must be empty with an engine, which shows each worker its own, got {devices}")
        self._check_seeds()
        from ai.lab.search import loop

        how = loop.Run(n, fn, caught, called, timeout_s)
        report = loop.report_line if progress else lambda row: None
        places = [devices[index % len(devices)] if devices else None for index in range(n_jobs)]
        if engine is not None:
            from ai.lab.search.elsewhere.driver import run_elsewhere

            run_elsewhere(self._search, how, n_jobs, engine, report)
        elif n_jobs == 1:
            self._search.device = places[0]
            self._search.work(how, report)
        else:
            from ai.lab.search.worker_pool import run_workers

            run_workers(self._search, how, places, report)
        self._point_best()
        return self

    def offer(
        self,
        n: int,
        fn: Objective,
        *,
        catch: Iterable[type[BaseException]] | type[BaseException] = (),
        callbacks: "Iterable[Callback]" = (),
    ) -> Self:
        """Leaves a search to `ai-lab work EXPERIMENT` on any machine that shares the folder or database; runs nothing.

        What `fn` needs travels with it by value. Offered again, the new `n` and `fn` are for who comes from then on.

        Args:
            n: As of `run`; so are the others.
            fn: As above.
            catch: As above.
            callbacks: As above.

        Raises:
            ValueError: `n` is below 1.
            TypeError: `fn` cannot be sent by value; the message says what of it.
        """
        n = as_step(n, "n")
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        check_callable(fn=fn)
        caught, called = as_exceptions("catch", catch), as_callables("callbacks", callbacks)
        self._check_seeds()
        from ai.lab.search.loop import Run
        from ai.lab.search.offer import write_offer

        write_offer(self._search, Run(n, fn, caught, called))
        return self

    def _check_seeds(self) -> None:
        """Raises where the trials before were run with other seeds: scores would be means over other numbers of runs.

        Raises:
            ValueError: they were.
        """
        if (seeds := load_json(self.path / EXPERIMENT).get("seeds", 1)) != self._search.seeds:
            raise ValueError(f"seeds of {self.path} is {seeds}, got {self._search.seeds}; choose another path")

    def _point_best(self) -> None:
        """Has `@best` lead to the best trial, where there is one on this machine."""
        with contextlib.suppress(ValueError, OSError):  # none is the best; a disk without links
            for run in [*find(self.best_row.path, "trial")][:1]:
                point_alias(self.path, "best", run)

    # -- results

    def trials(self) -> Trials:
        """Returns the table of all trials by number."""
        return Trials(self._search.rows(), list(self._search.directions))

    @property
    def best_row(self) -> TrialRow:
        """The finished trial with the best score, of those that keep their constraints if there are any.

        Raises:
            ValueError: no trial has finished, or there are several objectives.
        """
        if len(self._search.directions) > 1:
            raise ValueError(f"experiment {self.path} has several objectives: best_rows are those that none surpasses")
        if not any(row.score is not None for row in self.trials()):
            raise ValueError(f"experiment {self.path} has no finished trial yet")
        try:
            return self._row(self.study.best_trial)
        except ValueError as error:
            raise ValueError(f"experiment {self.path} has no finished trial that keeps its constraints") from error

    @property
    def best_rows(self) -> Trials:
        """The trials that none surpasses in every objective; with one objective those with the best score."""
        return Trials([self._row(one) for one in self.study.best_trials], list(self._search.directions))

    def _row(self, trial: "optuna.trial.FrozenTrial") -> TrialRow:
        return next(row for row in self.trials() if row.number == trial.number)

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
        """The best trial, for reading; with several seeds the first run of the best configuration.

        Raises:
            FileNotFoundError: it has no folder here, as one that was added to Optuna's study by `add_trial`.
        """
        if not (runs := self.best_runs):
            raise FileNotFoundError(f"the best trial, {self.best_row.number}, has no folder in {self.path}")
        return runs[0]

    @property
    def best_runs(self) -> list[Record]:
        """The runs of the best configuration, for reading; with one seed there is one."""
        return [Record(path) for path in find(self.best_row.path, "trial")]

    def plot(self, path: str | Path | None = None) -> Path:
        """Draws the score over the trials and against each hyper-parameter; returns the picture's path."""
        from ai.lab.report.plots import plot_experiment

        return plot_experiment(self.trials(), str(self.direction), path or self.path / "experiment.png")

    def trial_path(self, number: int) -> Path:
        """Returns the folder of a trial."""
        return self._search.trial_path(number)

    @property
    def study(self) -> "optuna.Study":
        """Optuna's study underneath, for what is not offered here."""
        return self._search.study

    def __repr__(self) -> str:
        return f"Experiment({str(self.path)!r}, {self.direction!r})"


def _directions(direction: object) -> dict[str, str]:
    """Returns `'min'` or `'max'` by the objective's name."""
    directions = dict(direction) if isinstance(direction, Mapping) else {"score": direction}
    if not directions or any(one not in ("min", "max") for one in directions.values()):
        raise ValueError(f"direction must be 'min' or 'max', or a dict of them by objective, got {direction!r}")
    return {str(name): str(one) for name, one in directions.items()}


def _prune_rule(directions: Mapping[str, str], by: str | None, wanted: str | None) -> PruneRule:
    """Returns what the pruner compares; it must be clear, or the best trials would be the ones given up."""
    if len(directions) > 1:
        raise ValueError(f"pruner must be None with several objectives ({', '.join(directions)}): Optuna prunes by one")
    (direction,) = directions.values()
    if by is None and direction == "max":
        raise ValueError("prune_by must name the metric that the pruner compares when direction is 'max'")
    by = by or "val_loss"
    if wanted is None and direction == "max" and "loss" in by:
        raise ValueError(
            f"prune_by {by!r} would be the better the larger, as direction is 'max': "
            "pass prune_direction='min' or 'max'"
        )
    return PruneRule(by, 1 if wanted in (None, direction) else -1)
