"""A trial: one run of training, recorded in a folder of plain files, resumable bit for bit."""

import contextlib
import os
import sys
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypedDict, Unpack

from ai.lab.config import write_yaml
from ai.lab.files.folder import mark, read_marker, resolve
from ai.lab.files.ownership import Owner
from ai.lab.files.removal import remove_unowned
from ai.lab.record import CONFIG, SAMPLES, SNAPSHOTS, Metrics, Record
from ai.lab.recording.outcome import outcome_of
from ai.lab.recording.resumed_rows import MetricsPosition, take_up
from ai.lab.recording.session import Logger, Session

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from ai.lab.recording.hook import TrialHook
    from ai.train import Interval, Run, Snapshots
    from ai.train.engine.run import Stateful

    Models = nn.Module | Mapping[str, nn.Module]
    Optimizers = Optimizer | Mapping[str, Optimizer]


Stopper = Callable[[int, dict[str, float]], bool]


class HookOptions(TypedDict, total=False):
    """What `Trial.hook` and `Experiment` take to change what the trial itself was given; see `Trial`."""

    val_data: Iterable[Any] | None
    sampler: Callable[[Any, int], Any] | None
    task: Callable[[Any, int], Mapping[str, float]] | None
    save_snapshots: "bool | Snapshots"
    stopper: Callable[[int, dict[str, float]], bool] | None
    log_interval: "Interval | int | str | None"
    val_interval: "Interval | int | str | None"
    sample_interval: "Interval | int | str | None"
    task_interval: "Interval | int | str | None"
    save_interval: "Interval | int | str | None"
    stateful: "Sequence[Stateful]"
    progress: bool


class Trial:
    """One recorded run of training.

    An interval is an int (every n steps), text (`'30s'`, `'5m'`), an `ai.train.Interval`, or None for never.

    Args:
        path: The folder; a relative one starts at `$AI_LAB_PATH`, else at `./ai-lab`.
        clean: Delete what an earlier trial left in this folder. Only folders that the lab made are deleted.
        config: A dataclass or a dict of plain values, kept in `config.yaml`.
        val_data: Iterated whole at each validation.
        sampler: `(model, step) -> images`, `(n, 1|3|4, height, width)` in [-1, 1] or uint8, kept as a PNG page.
        task: `(model, step) -> dict of numbers`, logged as they are.
        save_snapshots: Whether to save what resuming needs; or a `ai.train.Snapshots` that says how.
        stopper: `(step, metrics) -> bool`, asked after each evaluation, such as `ai.train.EarlyStopping`.
        loggers: Where rows go besides: `'tensorboard'`, `'wandb'`, `'mlflow'`, or any `(step, numbers)` callable.
        log_interval: When numbers are logged.
        val_interval: When to validate.
        sample_interval: When to sample.
        task_interval: When to run the task.
        save_interval: When to save; also at the end and after SIGTERM or Ctrl-C.
        keep_last: How many of the newest snapshots are kept; None keeps all.
        progress: Whether to show a progress bar where there is a terminal or notebook.
        system_interval_s: Seconds between two rows of system metrics; None for none.
        capture: Whether what the process prints during training is copied to `log.txt`.

    Raises:
        ValueError: the folder holds something that the lab did not make, or another kind of record.
        OwnedError: `clean` is asked for and a live process writes the trial.

    Example:
        >>> import tempfile
        >>> trial = Trial(tempfile.mkdtemp() + "/first", config={"lr": 0.1}, system_interval_s=None)
        >>> with trial:
        ...     trial.log(0, {"loss": 0.5})
        >>> trial.state, trial.metrics()["loss"].values.tolist()
        ('finished', [0.5])
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        clean: bool = False,
        config: object = None,
        val_data: Iterable[Any] | None = None,
        sampler: Callable[[Any, int], Any] | None = None,
        task: Callable[[Any, int], Mapping[str, float]] | None = None,
        save_snapshots: "bool | Snapshots" = False,
        stopper: Callable[[int, dict[str, float]], bool] | None = None,
        loggers: Sequence[str | Logger] = (),
        log_interval: "Interval | int | str | None" = 100,
        val_interval: "Interval | int | str | None" = 1000,
        sample_interval: "Interval | int | str | None" = 1000,
        task_interval: "Interval | int | str | None" = 1000,
        save_interval: "Interval | int | str | None" = 1000,
        keep_last: int | None = 3,
        progress: bool = True,
        system_interval_s: float | None = 10.0,
        capture: bool = True,
    ) -> None:
        self.path = resolve(path)
        self._config = config
        self._how: HookOptions = {
            "save_snapshots": save_snapshots,
            "log_interval": log_interval,
            "val_data": val_data,
            "val_interval": val_interval,
            "sampler": sampler,
            "sample_interval": sample_interval,
            "task": task,
            "task_interval": task_interval,
            "save_interval": save_interval,
            "stopper": stopper,
            "progress": progress,
        }
        self._keep_last = keep_last
        self._loggers = list(loggers)
        self._session_how = {"system_interval_s": system_interval_s, "capture": capture}
        self._session: Session | None = None
        self._left_open: weakref.finalize[Any, Any] | None = None
        self._resumed_from: int | None = None
        if _rank() > 0:
            return  # rank 0 alone writes; the others only train
        if clean and read_marker(self.path) is not None:
            remove_unowned(self.path)
        mark(self.path, "trial")
        if config is not None and not (self.path / CONFIG).exists():
            write_yaml(self.path / CONFIG, config)

    # -- training

    def hook(self, **changes: Unpack[HookOptions]) -> "TrialHook":
        """Returns the hook that records a training run here: `trainer.train(model, opt, trial.hook())`.

        Args:
            changes: What this run does otherwise than the trial was told, such as `val_data=…`; and `stateful=[…]`,
                objects that go into the snapshots beside model, optimiser and data, such as a replay buffer: pass the
                same ones, in the same order, to `resume`.

        Raises:
            TypeError: one of them is no option of a trial's hook.
        """
        from ai.lab.recording.hook import TrialHook

        if unknown := changes.keys() - HookOptions.__annotations__.keys():
            options = ", ".join(HookOptions.__annotations__)
            raise TypeError(f"hook options must be of {options}; got {', '.join(sorted(unknown))}")
        self._how = {**self._how, **changes}
        how: dict[str, Any] = {**self._how, "stopper": self._stopper(self._how.get("stopper"))}
        return TrialHook(
            self._begin,
            self._end,
            log=self._write,
            sample=self._save_sample if how["sampler"] is not None else None,
            snapshots=self.snapshots if how.pop("save_snapshots") else None,
            **how,
        )

    def resume(self, model: "Models", opt: "Optimizers", *stateful: "Stateful") -> int:
        """Puts the newest whole snapshot back and returns its step; 0 if there is nothing to resume.

        Train on with `trainer.train(model, opt, trial.hook(), step=step)`: the weights become those of a run that was
        never interrupted, bit for bit. What was logged after that snapshot is dropped when training begins.

        Args:
            model: A module, or the dict of modules of a `MultiTrainer`.
            opt: Its optimiser, or the dict of optimisers.
            stateful: The objects that the hook held as `stateful`, in the same order; if it held none, the loader.

        Raises:
            OwnedError: another live process writes the trial.
        """
        from ai.train import snapshot

        if _rank() == 0 and self._session is None:
            Owner(self.path).release()  # refuses while another process writes
        newest = self.snapshots.latest()
        step = snapshot.restore(newest, model, opt, *stateful) if newest is not None else 0
        self._resumed_from = step
        return step

    # -- recording by hand

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one row of numbers.

        Raises:
            TypeError: a value is not one number.
            ValueError: a key is empty, `step` or `time`.
            OSError: the file cannot be written; earlier rows are intact.
        """
        self._open().write(step, values)

    def save_sample(self, step: int, images: Any) -> Path:
        """Writes images as the PNG page of `step` and returns its path; see `ai.lab.recording.image_page.save_page`."""
        self._open()
        return self._save_sample(step, images)

    def save_snapshot(self, model: "Models", opt: "Optimizers", step: int, *stateful: "Stateful") -> Path:
        """Saves a snapshot outside a trainer's run and returns its path; `resume` and `load_snapshot` read it."""
        from ai.train import Run

        models = dict(model) if isinstance(model, Mapping) else {"model": model}
        optimizers = dict(opt) if isinstance(opt, Mapping) else {"model": opt}
        run = Run(models, optimizers, data=(), step=step)
        for index, one in enumerate(stateful):
            run.add_state(f"stateful.{index}", one)
        run.add_state("trial", MetricsPosition(self._open()))
        return self.snapshots.save(run, step)

    def load_snapshot(self, model: "Models", opt: "Optimizers", *stateful: "Stateful", step: int | None = None) -> int:
        """Puts the snapshot of `step` back, or the newest whole one, without going on with its rows.

        Raises:
            FileNotFoundError: there is none.
        """
        from ai.train import snapshot

        return snapshot.restore(self._snapshot(step), model, opt, *stateful)

    def note(self, **fields: object) -> None:
        """Keeps fields, such as a score, in `meta.json` under `notes`."""
        session = self._open()
        session.update(notes={**session.meta.get("notes", {}), **fields})

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._end(*outcome_of(error))

    def close(self) -> None:
        """Ends recording by hand; the trial counts as finished.

        So it does when the script ends, or nothing refers to it any more. A script that an error ends fails its trials.
        """
        self._end("finished")

    # -- reading

    @property
    def record(self) -> Record:
        """The trial for reading: metrics, samples, snapshots, metadata."""
        return Record(self.path)

    @property
    def id(self) -> str:
        """The trial's identity, which stays when its folder is moved or renamed."""
        return self.record.id

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def state(self) -> str:
        """`created`, `running`, `finished`, `stopped`, `pruned`, `interrupted`, `failed`, or `dead` (killed)."""
        return self.record.state

    @property
    def config(self) -> Any:
        """The configuration as it was given; the recorded values where none was."""
        return self._config if self._config is not None else self.record.config

    def metrics(self) -> Metrics:
        """Returns what was logged: `trial.metrics()['loss'].values`; `.frame()` makes a DataFrame."""
        return self.record.metrics()

    @property
    def snapshots(self) -> "Snapshots":
        """The trial's snapshots, as `ai.train` sees them."""
        from ai.train import Snapshots

        given = self._how["save_snapshots"]
        if isinstance(given, Snapshots):
            return given
        return Snapshots(self.path / SNAPSHOTS, keep_last=self._keep_last)

    def model_path(self, step: int | None = None) -> Path:
        """Returns the model file of the snapshot of `step`, or of the newest whole one: for `model.init(path)`.

        Raises:
            FileNotFoundError: there is none.
        """
        return self._snapshot(step) / "model.safetensors"

    def load_model(self, step: int | None = None) -> "nn.Module":
        """Returns the model of a snapshot, built as its manifest says and filled with its weights.

        A class with plain arguments is imported and constructed; any other model, such as `m.Model(m.seq(…))` or one
        whose class stands in a script, comes from `structure.pkl`, under the same minor version of Python. Both run
        code that the folder names: open only trials that you trust.

        Raises:
            FileNotFoundError: there is no snapshot.
            ValueError: the snapshot does not say how to build the model; saving it warned of that.
            SnapshotError: the snapshot is damaged.
        """
        from ai.model.saved import build

        return build(self._snapshot(step)).eval()

    def plot(self, keys: Sequence[str] = (), *, path: str | Path | None = None) -> Path:
        """Draws the metrics over the steps and returns the picture's path, `metrics.png` in the folder by default."""
        from ai.lab.report.plots import plot_trial

        return plot_trial(self.record, keys, path)

    def __repr__(self) -> str:
        return f"Trial({str(self.path)!r})"

    # -- its parts

    def _stopper(self, stopper: Stopper | None) -> Stopper | None:
        """What the hook asks after each evaluation; a search asks it for pruning too."""
        return stopper

    def _open(self, **fields: object) -> Session:
        if self._session is None:
            if _rank() > 0:
                raise RuntimeError(f"rank {_rank()} must not write the trial {self.path}: rank 0 does")
            from ai.lab.recording.trackers import as_logger

            if self._config is not None:
                _keep_config(self.path, self._config)
            loggers = [as_logger(logger, self.record, self.config) for logger in self._loggers]
            self._session = Session(self.record, loggers=loggers, **self._session_how, **fields)  # type: ignore[arg-type]
            self._left_open = weakref.finalize(self, _end_left_open, self._session, os.getpid())
        return self._session

    def _begin(self, run: "Run") -> None:
        """Called when a training run begins."""
        session, resumed_from = self._open(), self._resumed_from
        self._resumed_from = None
        try:
            take_up(session, run, starts_again=resumed_from == 0)
        except ValueError:
            self._end(str(session.meta["before"]))
            raise

    def _end(self, state: str, error: BaseException | None = None, **fields: object) -> None:
        session, self._session = self._session, None
        if session is not None:
            if self._left_open is not None:
                self._left_open.detach()
            _close(session, state, error, **fields)

    def _write(self, step: int, values: Mapping[str, float]) -> None:
        session = self._session
        assert session is not None
        session.write(step, values)

    def _save_sample(self, step: int, images: Any) -> Path:
        from ai.lab.recording.image_page import save_page

        folder = self.path / SAMPLES
        folder.mkdir(exist_ok=True)
        path = folder / f"{step:09d}.png"
        save_page(path, images)
        return path

    def _snapshot(self, step: int | None) -> Path:
        if step is None:
            found = self.snapshots.latest()
            if found is None:
                raise FileNotFoundError(f"trial {self.path} has no snapshot; record it with save_snapshots=True")
            return found
        known = self.record.snapshots()
        if step not in known:
            steps = ", ".join(map(str, known)) or "none"
            raise FileNotFoundError(f"trial {self.path} has no snapshot of step {step}; it has: {steps}")
        return known[step]


def _close(session: Session, state: str, error: BaseException | None, **fields: object) -> None:
    for logger in session.loggers:
        with contextlib.suppress(Exception):
            getattr(logger, "close", lambda: None)()
    session.close(state, error, **fields)


def _end_left_open(session: Session, pid: int) -> None:
    """Ends what was logged by hand and never closed, once nobody can log any more; not in a forked child."""
    if os.getpid() != pid:
        return
    # What ended the script, as the interpreter keeps it; at a prompt it is an error that was survived.
    error = None if hasattr(sys, "ps1") else getattr(sys, "last_value", None)
    try:
        _close(session, *outcome_of(error))
    except OSError as failure:
        if session.record.path.exists():  # else it was deleted, and there is no end to record
            print(f"ai.lab: the end of {session.record.path} could not be recorded: {failure}", file=sys.stderr)


def _rank() -> int:
    return int(os.environ.get("RANK") or 0)


def _keep_config(path: Path, config: object) -> None:
    """Writes the configuration unless it is the recorded one."""
    from ai.lab.config import read_yaml, to_plain

    file = path / CONFIG
    if not file.exists() or read_yaml(file) != to_plain(config):
        write_yaml(file, config)
