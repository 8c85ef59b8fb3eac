"""Hooks: everything that a training run does beside training."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, Any

from ai.model.arguments import check_instance, check_whole
from ai.train.engine.run import Run, StopTraining
from ai.train.hooks.duties import Duty, Every, Metrics, RunTask, Sample, Validate
from ai.train.hooks.hook_interface import HookInterface as HookInterface
from ai.train.hooks.interval import Due, as_log_interval, every
from ai.train.hooks.rows import Rows
from ai.train.hooks.save_and_resume import Save
from ai.train.hooks.stopping import Stopper, Stopping
from ai.train.state.optimizer_state import check_settings
from ai.train.state.stateful import Stateful

if TYPE_CHECKING:
    from ai.train.hooks.progress import Progress
    from ai.train.snapshot import Snapshots

_NOT_GIVEN = every(1000)  # the default of intervals, known by its identity


class Hook(HookInterface):
    """Logging, validation, samples, tasks, early stopping, snapshots and a progress bar, each on its own interval.

    An interval is an int (every n steps), a string (`'30s'`, `'5m'`, `'1h'`, `'1 epoch'`), or made by `every`,
    `logarithmic`, `seconds` or `epochs`. Everything is evaluated with moving averages swapped in, on its own random
    seed, and leaves training untouched. A step is saved before it is evaluated, so that an error in a task costs no
    training. Under several ranks all ranks take part, and rank 0 alone calls `log` and `sample` and shows progress.

    Args:
        log: called with (step, numbers) for every logged step and every evaluation.
        log_interval: which steps are logged: mean loss since the last one, learning rate, gradient norm, steps per
            second, and whatever the environment logs. The first step is logged, too, and the last, where it is known;
            and of every n >= 100 steps also the 10th, 20th and 50th.
        val_data: iterated whole at each validation; its loss arrives as `val_loss`, other numbers as `val_*`.
        val_interval: when to validate; this and each other interval is 1000 steps where none is given.
        sampler: (model, step) -> images, or any value that `sample` takes; the model is a dict under `MultiTrainer`.
        sample: called with (step, images).
        sample_interval: when to sample.
        task: (model, step) -> dict of numbers, logged as they are.
        task_interval: when to run the task.
        snapshots: where to save; nothing is saved while something is not finite.
        save_interval: when to save; also at the end, after SIGTERM or Ctrl-C, and where an evaluation fails. A snapshot
            has the metrics that were measured at its own step: to keep the best, save where you validate.
        stopper: (step, metrics) -> bool, asked after each evaluation with what it measured, such as `EarlyStopping`.
        progress: whether to show a bar in a terminal or notebook.
        resume: whether to continue from the newest snapshot in `snapshots`, if there is one; once, at the first run.
        settings: of a resume: whose learning rate and other settings of the optimiser hold, `'snapshot'`'s or
            `'script'`'s.
        stateful: further objects saved and restored with the run, such as a replay buffer.
        sanity: whether to try each part before the first step of a run that begins at step 0: a batch of `val_data`,
            the task, the sampler, the stopper's key. What they give is thrown away.
        exit_status: of the process, where a signal ends a run that is saved; a queue that starts preempted jobs again
            may want another than 0.

    >>> import torch
    >>> from ai.train import Classify, Trainer
    >>> from ai.train import opt
    >>> model = torch.nn.Linear(2, 3)
    >>> batch = (torch.ones(4, 2), torch.zeros(4, dtype=torch.uint8))
    >>> lines = {}
    >>> hook = Hook(log=lambda step, numbers: lines.setdefault(step, {}).update(numbers), log_interval=2,
    ...             val_data=[batch], val_interval=2)
    >>> Trainer(Classify(), [batch] * 5).train(model, opt.sgd(model), hook)
    5
    >>> sorted(lines), 'val_accuracy' in lines[2]
    ([0, 2, 4, 5], True)
    """

    def __init__(
        self,
        *,
        log: Callable[[int, Metrics], object] | None = None,
        log_interval: Every = 100,
        val_data: Iterable[Any] | None = None,
        val_interval: Every = _NOT_GIVEN,
        sampler: Callable[[Any, int], Any] | None = None,
        sample: Callable[[int, Any], object] | None = None,
        sample_interval: Every = _NOT_GIVEN,
        task: Callable[[Any, int], Mapping[str, float]] | None = None,
        task_interval: Every = _NOT_GIVEN,
        snapshots: "Snapshots | None" = None,
        save_interval: Every = _NOT_GIVEN,
        stopper: Stopper | None = None,
        progress: bool = False,
        resume: bool = False,
        settings: str = "snapshot",
        stateful: Sequence[Stateful] = (),
        sanity: bool = True,
        exit_status: int = 0,
    ) -> None:
        if resume and snapshots is None:
            raise ValueError("resume=True needs snapshots: the folder to continue from")
        check_settings(settings)
        check_whole(exit_status=exit_status)
        check_instance(val_data=val_data, snapshots=snapshots)
        for index, one in enumerate(stateful):
            check_instance(**{f"stateful[{index}]": one})
        _refuse_uncallable(log=log, sampler=sampler, sample=sample, task=task, stopper=stopper)
        if snapshots is not None and not callable(getattr(snapshots, "load_newest", None)):
            raise TypeError(f"snapshots must be a Snapshots, such as Snapshots(folder), not {type(snapshots).__name__}")
        if (sampler is None) != (sample is None):
            raise ValueError("sampler and sample go together: one makes the images, the other takes them")
        _refuse_idle(
            val=(val_interval, val_data, "val_data: there is nothing to validate on"),
            sample=(sample_interval, sampler, "a sampler"),
            task=(task_interval, task, "a task"),
            save=(save_interval, snapshots, "snapshots: the folder to save in"),
        )
        if hasattr(stopper, "key") and val_data is None and task is None:
            raise ValueError(f"stopper ({type(stopper).__name__}) needs val_data or a task: nothing is measured")
        self._duties: list[Duty] = []
        if val_data is not None:
            self._duties.append(Validate(val_data, val_interval))
        if task is not None:
            self._duties.append(RunTask(task, task_interval))
        if sampler is not None and sample is not None:
            self._duties.append(Sample(sampler, sample, sample_interval))
        self._save = None if snapshots is None else Save(snapshots, save_interval, settings)
        self._log, self._log_interval = log, as_log_interval(log_interval)
        self._stopping, self._show_progress, self._resume = Stopping(stopper), progress, resume
        self._stateful, self._sanity, self._exit_status = stateful, sanity, exit_status
        self._run: Run | None = None
        self._bar: Progress | None = None
        self._has_resumed = False
        self._log_now = False
        self._done: dict[str, int | None] = {}
        self._next_step = self._next_time = self._ready_step = inf

    @property
    def resumes(self) -> bool:
        """Whether its next `setup` moves the run to a snapshot: once, at the beginning of a script's first run."""
        return self._resume and not self._has_resumed

    @property
    def resume_step(self) -> int:
        """The step that `resume` moves a run to; -1 where there is no snapshot."""
        return -1 if self._save is None else self._save.newest_step

    @property
    def is_at_work(self) -> bool:
        """Whether it is in a run that has not ended."""
        return self._run is not None

    def resume(self, run: Run) -> None:
        """Move the run to the newest snapshot, if there is one; `setup` does so unless another hook has done it."""
        if self._save is not None:
            self._save.resume(run)

    # -- what the trainer calls

    def setup(self, run: Run) -> None:
        """Take up the run, from its newest snapshot with `resume=True`; try each part of a new one."""
        self._run, self._bar = run, None
        self._rows: Rows | None = None
        self._metrics: Metrics = {}
        self._unfinished: list[str] = []
        self._stopping.begin(anew=run.step == 0)
        for index, stateful in enumerate(self._stateful):
            run.add_state(run.free_name(f"stateful.{index}"), stateful)
        run.add_state(run.free_name("hook"), self)
        run.exit_status = self._exit_status or run.exit_status  # of several hooks the one that was told decides
        if self._save is not None:
            self._save.begin(run, resume=self.resumes)
            run.to_go_on = run.to_go_on or (
                "run the same command to go on" if self._resume else "to go on from there give it resume=True"
            )
        self._has_resumed = self.resumes
        self._time, now = run.time, run.time()
        # What was due at a snapshot's step was done, but for what it was saved before.
        self._done = {
            duty.name: run.step if run.resumed and duty.name not in self._unfinished else None for duty in self._duties
        }
        self._resumed_at = run.step if run.resumed and run.ranks.rank == 0 else -1
        self._schedule(run, now)
        if self._show_progress and run.ranks.rank == 0:
            from ai.train.hooks import progress

            bar = progress.Progress(run)
            self._bar = bar if bar.is_shown else None  # one that nobody sees would read the loss for nothing
        self._rows = Rows(run, self._log, None if self._bar is None else self._bar.show)
        if self._sanity and run.step == 0 and not run.resumed:
            self._try_out(run)

    def step(self, step: int) -> bool | None:
        """Do what is due; True when the stopper says so."""
        assert self._rows is not None
        if self._rows.pending:
            self._rows.flush()
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
        self._log_now = self._due_log.at(step, now)
        if step == self._last_step and not self._log_now and self._run is not None:
            # Were the run to go on from here, its next row would count from the row before.
            self._log_now = self._run.keeps_sums = True
        if step >= self._ready_step and self._save is not None and self._run is not None:
            self._ready_step = inf
            self._save.make_ready(self._run)
        stop = self._stopping.ends_again(step)
        if not stop and (step > 0 or min((due.next_time for due in self._due.values()), default=inf) <= now):
            stop = self._do([name for name, due in self._due.items() if due.at(step, now)])
        if stop and step == self._resumed_at:
            self._stopping.say_nothing_is_left(step)
        self._look_ahead(step)
        return stop or None

    def wants_log(self, step: int) -> bool:
        """Whether `step` found that logging is due."""
        return self._log_now

    def log(self, key: str, value: float) -> None:
        """Collect one number; the step's numbers go out together."""
        assert self._rows is not None
        self._rows.pending[key] = value

    def done(self) -> None:
        """Finish: snapshot, then the last evaluations, as the outcome allows; and close the progress bar."""
        run, self._run = self._run, None  # a second call, or a run that never was set up, does nothing
        if run is None:
            return
        try:
            if self._rows is None:
                return
            self._rows.flush()
            ended = run.outcome in ("finished", "stopped") and run.step > 0
            if ended:  # in a run that went on these would be made at this step, too
                self._unfinished = [name for name in self._done if self._is_still_due(name, run.step)]
            if run.outcome != "error" and run.step > 0 and self._save is not None:
                with suppress(StopTraining):  # stopped for something not finite: there is nothing good to save
                    self._save.save(run)
            if ended:
                self._evaluate(run, [duty for duty in self._duties if duty.interval is not None], self._unfinished)
                self._unfinished = []  # should a hook after this one save
                self._stopping.say_if_blind(self._metrics)
        finally:
            if self._bar is not None:
                self._bar.close(run.step)
            if self._save is not None:
                self._save.end(run)

    # -- its parts

    def _schedule(self, run: Run, now: float) -> None:
        parts: list[Any] = [*self._duties] if self._save is None else [*self._duties, self._save]
        self._due = {part.name: Due(part.interval, run.step, now, run.steps_per_epoch) for part in parts}
        for name in self._unfinished:
            self._due[name].next_step = run.step
        self._due_log = Due(self._log_interval, run.step, now, run.steps_per_epoch)
        # The first step is always logged; after a resume just those that would have been without it.
        if self._log_interval is not None and (not run.resumed or self._due_log.is_due_at(run.step)):
            self._due_log.next_step = run.step
        self._last_step = -1 if run.last_step is None or self._log_interval is None else run.last_step
        self._ready_step = inf if self._save is None or self._save.interval is None else run.step + 1
        self._look_ahead(run.step - 1)
        if self._stopping.told is not None:
            self._next_step = run.step

    def _look_ahead(self, step: int) -> None:
        dues = [*self._due.values(), self._due_log]
        last = self._last_step if self._last_step > step else inf
        self._next_step = min(self._ready_step, last, *(due.next_step for due in dues))
        self._next_time = min(due.next_time for due in dues)

    def _do(self, names: list[str]) -> bool:
        """Save first, then evaluate what is wanted and was not yet at this step; whether to stop."""
        run = self._run
        assert run is not None
        duties = [duty for duty in self._duties if duty.name in names and self._done[duty.name] != run.step]
        self._unfinished = [duty.name for duty in duties]
        if self._save is not None and self._save.name in names:
            self._save.save(run)
        if not duties:
            return False
        try:
            stop, metrics = self._evaluate(run, duties, self._unfinished)
        except Exception:
            if self._save is not None and run.step > 0:
                self._save.save(run)
            raise
        self._unfinished = []
        if stop and self._save is not None:
            self._save.save(run)
            self._save.note(run, metrics)
        return stop

    def _is_still_due(self, name: str, step: int) -> bool:
        return self._done[name] != step and self._due[name].is_due_at(step)

    def _evaluate(self, run: Run, duties: Sequence[Duty], regular: Sequence[str]) -> tuple[bool, Metrics]:
        """Do what was not done at this step.

        Returns:
            Whether to stop, by what those named in `regular` have measured; what all have measured.
        """
        metrics: Metrics = {}
        counting: Metrics = {}
        for duty in duties:
            if self._done[duty.name] != run.step:
                found = duty.do(run)
                self._done[duty.name] = run.step
                metrics |= found
                counting |= found if duty.measures and duty.name in regular else {}
        if not metrics:
            return False, metrics
        self._metrics |= metrics
        if self._rows is not None:
            self._rows.send(run.step, metrics)
        run.report(metrics)
        if self._save is not None:
            self._save.note(run, metrics)
        return self._stopping.wants_end(run.step, counting), metrics

    def _try_out(self, run: Run) -> None:
        found: Metrics = {}
        everything = True
        for duty in self._duties:
            tried = duty.try_out(run)
            everything = everything and tried is not None
            found |= tried or {}
        if everything:
            self._stopping.check(found)
        if everything and found and self._save is not None:
            self._save.check_metric(found)

    def state_dict(self) -> dict[str, Any]:
        """The latest metrics, the stopper's state, what it ended the run by, and the evaluations still due here."""
        unfinished = list(self._unfinished)
        if self._run is not None and self._run.step > 0:  # a hook before this one saves, at a step not yet looked at
            due = [name for name in self._done if self._is_still_due(name, self._run.step)]
            unfinished += [name for name in due if name not in unfinished]
        return {
            "metrics": dict(self._metrics),
            "stopper": self._stopping.state_dict(),
            "ended": self._stopping.told,
            "unfinished": unfinished,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put a state back."""
        self._metrics = dict(state["metrics"])
        self._unfinished = list(state.get("unfinished", []))
        self._stopping.load_state_dict(state["stopper"], state.get("ended"))


def _refuse_idle(**intervals: tuple[Every, object, str]) -> None:
    """Raise for an interval that was given without what is to happen at it."""
    for name, (interval, what, needed) in intervals.items():
        if what is None and interval is not None and interval is not _NOT_GIVEN:
            raise ValueError(f"{name}_interval ({interval}) needs {needed}")


def _refuse_uncallable(**given: object) -> None:
    for name, value in given.items():
        check_instance(**{name: value})
        if value is not None and not callable(value):
            raise TypeError(f"{name} must be callable, not {type(value).__name__}")
