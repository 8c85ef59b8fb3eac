"""Hooks: everything that a training run does beside training."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, Any

from ai.train.engine.evaluate import refuse_endless
from ai.train.engine.run import Run, StopTraining
from ai.train.monitoring.hook_interface import HookInterface as HookInterface
from ai.train.monitoring.interval import Due, Interval, as_interval
from ai.train.state.stateful import Stateful

if TYPE_CHECKING:
    from ai.train.monitoring.progress import Progress
    from ai.train.snapshot import Snapshots

Metrics = dict[str, float]


class Hook(HookInterface):
    """Logging, validation, samples, tasks, early stopping, snapshots and a progress bar, each on its own interval.

    An interval is an int (every n steps), a string (`'30s'`, `'5m'`, `'1h'`), or made by `every`, `logarithmic` or
    `seconds`. Everything is evaluated with moving averages swapped in, on its own random seed, and leaves training
    untouched. Under several ranks all ranks take part, and rank 0 alone calls `log` and `sample` and shows progress.

    Args:
        log: called with (step, numbers) for every logged step and every evaluation.
        log_interval: which steps are logged: mean loss since the last one, learning rate, gradient norm, steps per
            second, and whatever the environment logs.
        val_data: iterated whole at each validation; its loss arrives as `val_loss`, other numbers as `val_*`.
        val_interval: when to validate.
        sampler: (model, step) -> images, or any value that `sample` takes; the model is a dict under `MultiTrainer`.
        sample: called with (step, images).
        sample_interval: when to sample.
        task: (model, step) -> dict of numbers, logged as they are.
        task_interval: when to run the task.
        snapshots: where to save; nothing is saved while something is not finite.
        save_interval: when to save; also at the end, and after SIGTERM or Ctrl-C. A snapshot has the metrics that were
            measured at its own step: to keep the best, save where you validate.
        stopper: (step, metrics) -> bool, asked after each evaluation, such as `EarlyStopping`.
        progress: whether to show a bar in a terminal or notebook.
        resume: whether to continue from the newest snapshot in `snapshots`, if there is one.
        stateful: further objects saved and restored with the run, such as a replay buffer.

    >>> import torch
    >>> from ai.train import Classify, Trainer, opt
    >>> model = torch.nn.Linear(2, 3)
    >>> batch = (torch.ones(4, 2), torch.zeros(4, dtype=torch.uint8))
    >>> lines = {}
    >>> hook = Hook(log=lambda step, numbers: lines.setdefault(step, {}).update(numbers), log_interval=2,
    ...             val_data=[batch], val_interval=2)
    >>> Trainer(Classify(), [batch] * 4).train(model, opt.sgd(model), hook)
    4
    >>> sorted(lines), 'val_accuracy' in lines[2]
    ([0, 2, 4], True)
    """

    def __init__(
        self,
        *,
        log: Callable[[int, Metrics], object] | None = None,
        log_interval: Interval | int | str | None = 100,
        val_data: Iterable[Any] | None = None,
        val_interval: Interval | int | str | None = 1000,
        sampler: Callable[[Any, int], Any] | None = None,
        sample: Callable[[int, Any], object] | None = None,
        sample_interval: Interval | int | str | None = 1000,
        task: Callable[[Any, int], Mapping[str, float]] | None = None,
        task_interval: Interval | int | str | None = 1000,
        snapshots: "Snapshots | None" = None,
        save_interval: Interval | int | str | None = 1000,
        stopper: Callable[[int, Metrics], bool] | None = None,
        progress: bool = False,
        resume: bool = False,
        stateful: Sequence[Stateful] = (),
    ) -> None:
        if val_data is not None:
            refuse_endless(val_data)
        if resume and snapshots is None:
            raise ValueError("resume=True needs snapshots: the folder to continue from")
        if (sampler is None) != (sample is None):
            raise ValueError("sampler and sample go together: one makes the images, the other takes them")
        self._log, self._val_data, self._sampler, self._sample = log, val_data, sampler, sample
        self._task, self._snapshots, self._stopper = task, snapshots, stopper
        self._show_progress, self._resume, self._stateful = progress, resume, stateful
        self._intervals = {
            "log": as_interval(log_interval),
            "validate": as_interval(val_interval) if val_data is not None else None,
            "sample": as_interval(sample_interval) if sampler is not None else None,
            "task": as_interval(task_interval) if task is not None else None,
            "save": as_interval(save_interval) if snapshots is not None else None,
        }
        self._last: dict[str, int] = {}
        self._metrics: Metrics = {}
        self._measured: Metrics = {}
        self._measured_step = 0
        self._pending: Metrics = {}
        # Where it stood when it was given: each new run begins with it there.
        self._fresh_stopper = copy.deepcopy(stopper.state_dict()) if isinstance(stopper, Stateful) else None
        self._run: Run | None = None
        self._bar: Progress | None = None
        self._has_resumed = False

    @property
    def resumes(self) -> bool:
        """Whether its next `setup` moves the run to a snapshot: once, at the beginning of a script's first run."""
        return self._resume and not self._has_resumed

    # -- what the trainer calls

    def setup(self, run: Run) -> None:
        """Take up the run, from its newest snapshot with `resume=True`."""
        self._run = run
        self._last, self._metrics, self._pending = {}, {}, {}
        self._measured, self._measured_step = {}, run.step
        self._log_now = False
        self._time = run.time
        if run.step == 0 and isinstance(self._stopper, Stateful):
            self._stopper.load_state_dict(copy.deepcopy(self._fresh_stopper))
        for index, stateful in enumerate(self._stateful):
            run.add_state(f"stateful.{index}", stateful)
        run.add_state(run.free_name("hook"), self)
        if self.resumes and self._snapshots is not None and (newest := self._snapshots.load_newest(run)) is not None:
            run.saved = str(newest)
        self._has_resumed = self.resumes
        if run.resumed:
            # What was due at this step was done before its snapshot was taken.
            self._last = dict.fromkeys(self._intervals, run.step)
        now = self._time()
        self._due = {what: Due(interval, run.step, now) for what, interval in self._intervals.items()}
        self._logged_step, self._logged_time = run.step, now
        log = self._intervals["log"]
        # The first step is always logged; after a resume just those that would have been without it.
        if log is not None and (not run.resumed or log.next_step(run.step - 1) == run.step):
            self._due["log"].next_step = run.step
        self._due["make ready"] = Due(None, run.step, now)
        if self._intervals["save"] is not None:
            self._due["make ready"].next_step = run.step + 1
        self._bar = None
        if self._show_progress and run.ranks.rank == 0:
            from ai.train.monitoring import progress

            self._bar = progress.Progress(run)
        self._look_ahead()

    def step(self, step: int) -> bool | None:
        """Do what is due; True when the stopper says so."""
        if self._pending:
            self._flush()
        if self._bar is not None:
            self._bar.step(step)
        self._log_now = False
        if step < self._next_step:
            if self._next_time == inf:
                return None
            now = self._time()
            if now < self._next_time:
                return None
        else:
            now = self._time()
        self._log_now = self._due["log"].at(step, now)
        if step >= self._due["make ready"].next_step:
            self._make_ready()
        stop = False
        if step > 0 or any(self._due[what].next_time <= now for what in ("validate", "sample", "task", "save")):
            stop = self._evaluate({what for what in ("validate", "sample", "task") if self._due[what].at(step, now)})
            if self._due["save"].at(step, now) or (stop and self._snapshots is not None):
                self._save()
        self._look_ahead()
        return stop or None

    def wants_log(self, step: int) -> bool:
        """Whether `step` found that logging is due."""
        return self._log_now

    def log(self, key: str, value: float) -> None:
        """Collect one number; the step's numbers go out together."""
        self._pending[key] = value

    def done(self) -> None:
        """Finish: last evaluations and snapshot as the outcome allows, and close the progress bar."""
        run = self._run
        if run is None:
            return
        self._run = None  # a second call, or a run that never was set up, does nothing
        try:
            if self._pending:
                self._run = run
                self._flush()
            if not hasattr(self, "_due"):
                return
            self._run = run
            if run.outcome in ("finished", "stopped"):
                wanted = {what for what in ("validate", "sample", "task") if self._intervals[what] is not None}
                self._evaluate(wanted if run.step > 0 else set())
            if run.outcome != "error" and run.step > 0:
                with suppress(StopTraining):  # stopped for something not finite: there is nothing good to save
                    self._save()
        finally:
            self._run = None
            if self._bar is not None:
                self._bar.close()
            if self._snapshots is not None:
                self._wait_for_snapshots(run)

    def _wait_for_snapshots(self, run: Run) -> None:
        assert self._snapshots is not None
        try:
            self._snapshots.wait()
        except Exception as failure:
            if run.error is None:
                raise
            run.error.add_note(f"and the last snapshot was not written: {failure}")  # what ended the run comes first

    # -- its parts

    def _look_ahead(self) -> None:
        self._next_step = min(due.next_step for due in self._due.values())
        self._next_time = min(due.next_time for due in self._due.values())

    def _flush(self) -> None:
        assert self._run is not None
        numbers, self._pending = self._pending, {}
        step, now = self._run.step, self._time()
        if now > self._logged_time and step > self._logged_step:
            numbers["steps_per_s"] = (step - self._logged_step) / (now - self._logged_time)
        self._logged_step, self._logged_time = step, now
        if self._bar is not None:
            self._bar.show(numbers)
        self._send(step - 1, numbers)  # they belong to the step that was made from batch step - 1

    def _send(self, step: int, numbers: Metrics) -> None:
        assert self._run is not None
        if self._log is not None and self._run.ranks.rank == 0 and numbers:
            self._log(step, numbers)

    def _evaluate(self, wanted: set[str]) -> bool:
        """Validate, sample and run the task where wanted and not yet done at this step; whether to stop."""
        run = self._run
        assert run is not None
        wanted = {what for what in wanted if self._last.get(what) != run.step}
        if not wanted:
            return False
        self._last |= dict.fromkeys(wanted, run.step)
        model = next(iter(run.models.values())) if len(run.models) == 1 else run.models
        metrics: Metrics = {}
        if "validate" in wanted:
            assert self._val_data is not None
            metrics |= {f"val_{key}": value for key, value in run.validate(self._val_data).items()}
        if "task" in wanted:
            assert self._task is not None
            with run.evaluating():
                metrics |= {key: float(value) for key, value in self._task(model, run.step).items()}
        if "sample" in wanted:
            assert self._sampler is not None
            assert self._sample is not None
            with run.evaluating():
                images = self._sampler(model, run.step)
            if run.ranks.rank == 0:
                self._sample(run.step, images)
        if not metrics:
            return False
        self._metrics |= metrics
        if self._measured_step != run.step:
            self._measured, self._measured_step = {}, run.step
        self._measured |= metrics
        self._send(run.step, metrics)
        return self._stopper is not None and self._stopper(run.step, self._metrics)

    def _make_ready(self) -> None:
        """Once, after the first step."""
        self._due["make ready"].next_step = inf
        if self._snapshots is not None and self._run is not None:
            self._snapshots.make_ready(self._run)

    def _save(self) -> None:
        run = self._run
        assert run is not None
        if self._snapshots is None or self._last.get("save") == run.step:
            return
        run.check_finite()
        # What was measured on other weights says nothing about these.
        metrics = self._measured if self._measured_step == run.step else {}
        run.saved = str(self._snapshots.save(run, run.step, metrics))
        self._last["save"] = run.step

    def state_dict(self) -> dict[str, Any]:
        """The latest metrics and the stopper's state."""
        stopper = self._stopper.state_dict() if isinstance(self._stopper, Stateful) else None
        return {"metrics": dict(self._metrics), "stopper": stopper}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put a state back."""
        self._metrics = dict(state["metrics"])
        if isinstance(self._stopper, Stateful) and state["stopper"] is not None:
            self._stopper.load_state_dict(state["stopper"])
