"""A trial: one run of training, recorded in a folder of plain files, resumable bit for bit."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack, cast

from ai.lab.arguments import check_switch
from ai.lab.config import check_config
from ai.lab.files.folder import mark, read_marker, resolve
from ai.lab.files.removal import remove_unowned
from ai.lab.record import CONFIG, Metrics, Record
from ai.lab.recording.options import HOOK_DEFAULTS, HookOptions, SessionOptions, Stopper, TrialOptions, check_options
from ai.lab.recording.outcome import outcome_of
from ai.lab.recording.session import Logger
from ai.lab.recording.snapshots import TrialSnapshots
from ai.lab.recording.writer import TrialWriter, keep_config, rank

if TYPE_CHECKING:
    from torch import nn

    from ai.lab.recording.hook import TrialHook
    from ai.lab.recording.snapshots import Models, Optimizers
    from ai.train import Run, Snapshots
    from ai.train.engine.run import Stateful


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
        loggers: Sequence[str | Logger] = (),
        **how: Unpack[TrialOptions],
    ) -> None:
        check_options(how, TrialOptions, "trial")
        check_switch(clean=clean)
        check_config(config)
        if loggers != ():
            from ai.lab.recording.trackers import check_loggers

            check_loggers(loggers)
        folder = resolve(path)
        self._config = config
        hook_how = {key: value for key, value in how.items() if key in HookOptions.__annotations__}
        self._how: HookOptions = {**HOOK_DEFAULTS, **cast(HookOptions, hook_how)}
        session_how = {key: value for key, value in how.items() if key in SessionOptions.__annotations__}
        self._writer = TrialWriter(folder, config, loggers, cast(SessionOptions, session_how))
        given = self._how["save_snapshots"]
        self._snapshots = TrialSnapshots(self._writer, given, how.get("keep_last", 3))
        if rank() > 0:
            return  # rank 0 alone writes; the others only train
        marker = read_marker(folder)
        if clean and marker is not None and marker["kind"] == "trial":
            remove_unowned(folder)
        mark(folder, "trial")
        if not (folder / CONFIG).exists():
            keep_config(folder, config)

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

        check_options(changes, HookOptions, "hook")
        self._how = {**self._how, **changes}
        self._snapshots.given = self._how["save_snapshots"]
        how: dict[str, Any] = {**self._how, "stopper": self._stopper(self._how["stopper"])}
        snapshots = self.snapshots if how.pop("save_snapshots") else None
        happens = {"val": how["val_data"], "sample": how["sampler"], "task": how["task"], "save": snapshots}
        for name, what in happens.items():  # a trial's interval waits for a hook that has something to do at it
            if what is None and f"{name}_interval" not in changes:
                del how[f"{name}_interval"]
        return TrialHook(
            self._begin,
            self._end,
            lambda: self._writer.resumed_from is not None,
            log=self._writer.log,
            sample=self._writer.sample if how["sampler"] is not None else None,
            snapshots=snapshots,
            **how,
        )

    def resume(self, model: "Models", opt: "Optimizers", *stateful: "Stateful") -> int:
        """Puts the newest whole snapshot back and returns its step; 0 if there is nothing to resume.

        Train on with `trainer.train(model, opt, trial.hook(), step=step)`: the weights become those of a run that was
        never interrupted, bit for bit. What was logged after that snapshot is dropped when training begins.
        A loop without a trainer drops it too, and says so, once it logs one of those steps anew; what it logs at the
        last one or later, such as an evaluation, is added.

        Args:
            model: A module, or the dict of modules of a `MultiTrainer`.
            opt: Its optimiser, or the dict of optimisers.
            stateful: The objects that the hook held as `stateful`, in the same order; if it held none, the loader.

        Raises:
            OwnedError: another live process writes the trial.
        """
        return self._snapshots.resume(model, opt, stateful)

    # -- recording by hand

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one row of numbers.

        Raises:
            TypeError: a value is not one number.
            ValueError: a key is empty, `step` or `time`.
            OSError: the file cannot be written; earlier rows are intact.
        """
        self._writer.log(step, values)

    def save_sample(self, step: int, images: Any) -> Path:
        """Writes images as the PNG page of `step` and returns its path; see `ai.lab.media.image_page.to_page`."""
        return self._writer.sample(step, images)

    def keep(self, step: int, name: str, value: object, *, layout: str | None = None) -> Path:
        """Keeps something to look at as a file of `step`, and returns its path; the page shows it by name and step.

        Args:
            step: The step.
            name: Letters, digits, spaces and any of `_.+-`; each once a step.
            value: A matplotlib figure; an array or tensor of one image or several, as of `save_sample`; text; an
                `ai.lab.Audio`, `Confusion`, `Histogram`, `PrecisionRecall`, `Rows` or `Video`; or the `pathlib.Path` of
                an image, sound or video, which is copied.
            layout: The axes of images where their shape does not tell, such as `'NHWC'`.

        Raises:
            ValueError: the name is kept already at this step, or is none.
            TypeError: the value is none of these.
        """
        return self._writer.keep(step, name, value, layout)

    def save_snapshot(self, model: "Models", opt: "Optimizers", step: int, *stateful: "Stateful") -> Path:
        """Saves a snapshot outside a trainer's run and returns its path; `resume` and `load_snapshot` read it."""
        return self._snapshots.save(model, opt, step, stateful)

    def load_snapshot(self, model: "Models", opt: "Optimizers", *stateful: "Stateful", step: int | None = None) -> int:
        """Puts the snapshot of `step` back, or the newest whole one, without going on with its rows.

        Raises:
            FileNotFoundError: there is none.
        """
        return self._snapshots.load(model, opt, stateful, step)

    def note(self, **fields: object) -> None:
        """Keeps fields, such as a score, in `meta.json` under `notes`."""
        self._writer.note(fields)

    def __enter__(self) -> Self:
        self._writer.open(in_use=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._end(*outcome_of(error))

    def close(self) -> None:
        """Ends recording by hand; the trial counts as finished.

        So it does when the script ends, or nothing refers to it any more. A script that an error, or `sys.exit` with a
        code, ends fails its trials.
        """
        self._end("finished")

    # -- reading

    @property
    def path(self) -> Path:
        """The trial's folder; where it is moved or renamed while it is written, the trial goes on there."""
        return self._writer.path

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
        return self._snapshots.store

    def model_path(self, step: int | None = None) -> Path:
        """Returns the model file of the snapshot of `step`, or of the newest whole one: for `model.init(path)`.

        Raises:
            FileNotFoundError: there is none.
        """
        return self._snapshots.at(step) / "model.safetensors"

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

        return build(self._snapshots.at(step)).eval()

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

    def _begin(self, run: "Run") -> None:
        """Called when a training run begins."""
        self._writer.begin(run)

    def _end(self, state: str, error: BaseException | None = None, **fields: Any) -> None:
        """Called when a training run, or a `with` block, ends."""
        self._writer.end(state, error, **fields)
