"""Mirrors: rows of metrics handed on to other trackers, without ever stopping or slowing the run.

A mirror has a thread and a bounded queue of its own. When the other tracker is slow, rows are left out there (and
counted); when it fails, mirroring ends with one warning. The trial's own files are complete in either case, and
`export` fills any tracker from them afterwards.
"""

import importlib.util
import queue
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from ai.lab.config import flatten, to_plain
from ai.lab.files.metrics_file import Row, read_rows
from ai.lab.record import METRICS, Record
from ai.lab.recording.session import Logger

QUEUE_ROWS = 1000
"""So many rows may wait for a slow tracker before further ones are left out."""
CLOSE_S = 15.0
"""So long a run's end waits for a slow tracker."""


class Tracker(Protocol):
    """Another tracker, open for one run."""

    def write(self, rows: Iterable[Row]) -> None:
        """Takes rows, each with `step` and `time` besides its numbers."""

    def close(self) -> None:
        """Ends the run there."""


class TensorBoard:
    """Event files in the trial's `tensorboard` folder."""

    def __init__(self, record: Record, config: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(record.path / "tensorboard"))
        lines = "\n".join(f"    {key}: {value}" for key, value in config.items())
        self._writer.add_text("config", lines)

    def write(self, rows: Iterable[Row]) -> None:
        """Takes rows; see `Tracker`."""
        for row in rows:
            for key, value in _values(row):
                self._writer.add_scalar(key, value, int(row["step"]), row["time"])

    def close(self) -> None:
        """Ends the run there."""
        self._writer.close()


class Wandb:
    """A Weights & Biases run, under the trial's identity; offline with `WANDB_MODE=offline`."""

    def __init__(self, record: Record, config: Mapping[str, Any]) -> None:
        import wandb  # type: ignore[import-not-found]

        self._run = wandb.init(
            id=record.id, name=record.name, dir=str(record.path), config=dict(config), resume="allow", reinit=True
        )

    def write(self, rows: Iterable[Row]) -> None:
        """Takes rows; see `Tracker`."""
        for row in rows:
            # Its own step may not go backwards, which a validation's does; so ours is a number like the others.
            self._run.log({**dict(_values(row)), "step": row["step"], "_timestamp": row["time"]})

    def close(self) -> None:
        """Ends the run there."""
        self._run.finish()


class Mlflow:
    """An MLflow run on the tracking server that MLflow's own settings name, written in batches."""

    BATCH = 1000

    def __init__(self, record: Record, config: Mapping[str, Any]) -> None:
        import mlflow  # type: ignore[import-not-found]

        self._client = mlflow.MlflowClient()
        found = self._client.get_experiment_by_name("ai-lab")
        experiment = found.experiment_id if found else self._client.create_experiment("ai-lab")
        run = self._client.create_run(experiment, run_name=record.name, tags={"ai-lab.id": record.id})
        self._run_id = run.info.run_id
        params = [mlflow.entities.Param(key[:250], str(value)[:6000]) for key, value in config.items()]
        for start in range(0, len(params), 100):
            self._client.log_batch(self._run_id, params=params[start : start + 100])
        self._metric: Callable[..., Any] = mlflow.entities.Metric

    def write(self, rows: Iterable[Row]) -> None:
        """Takes rows; see `Tracker`."""
        metrics = [
            self._metric(key, float(value), int(row["time"] * 1000), int(row["step"]))
            for row in rows
            for key, value in _values(row)
        ]
        for start in range(0, len(metrics), self.BATCH):
            self._client.log_batch(self._run_id, metrics=metrics[start : start + self.BATCH])

    def close(self) -> None:
        """Ends the run there."""
        self._client.set_terminated(self._run_id)


TRACKERS: dict[str, Callable[[Record, Mapping[str, Any]], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "mlflow": Mlflow,
}


class Mirror:
    """A logger that hands rows to another tracker from a thread.

    Args:
        name: The tracker's, for warnings.
        open_tracker: Opens it; called in the thread.
        queue_rows: How many rows may wait.

    Attributes:
        dropped: How many rows were left out because the tracker was too slow.
    """

    def __init__(self, name: str, open_tracker: Callable[[], Tracker], queue_rows: int = QUEUE_ROWS) -> None:
        self.dropped = 0
        self._name = name
        self._open = open_tracker
        self._queue: queue.Queue[Row | None] = queue.Queue(queue_rows)
        self._failed = False
        self._thread = threading.Thread(target=self._run, name=f"ai-lab mirror {name}", daemon=True)
        self._thread.start()

    def __call__(self, step: int, values: Mapping[str, float]) -> None:
        """Queues one row; never waits."""
        if self._failed:
            return
        from ai.lab.recording.system_metrics import now

        try:
            self._queue.put_nowait({"step": step, "time": now(), **values})
        except queue.Full:
            self.dropped += 1

    def _run(self) -> None:
        try:
            tracker = self._open()
            try:
                ended = False
                while not ended:
                    rows = [self._queue.get()]
                    while not self._queue.empty() and len(rows) < QUEUE_ROWS:
                        rows.append(self._queue.get())
                    ended = None in rows
                    tracker.write([row for row in rows if row is not None])
            finally:
                tracker.close()
        except Exception as error:
            self._failed = True
            self._warn(f"failed and gets no more rows: {type(error).__name__}: {error}")

    def close(self) -> None:
        """Hands over what is queued, waiting a bounded time, and says what was left out."""
        try:
            self._queue.put(None, timeout=CLOSE_S)
        except queue.Full:
            self._warn("did not take its rows in time")
        self._thread.join(CLOSE_S)
        if self.dropped:
            self._warn(f"was too slow for {self.dropped} rows; `ai-lab export` fills them in")

    def _warn(self, what: str) -> None:
        print(f"ai.lab: the mirror {self._name} {what}", file=sys.stderr)


def as_logger(logger: "str | Logger", record: Record, config: Any) -> Logger:
    """Returns a callable for rows: `logger` itself, or a mirror to the tracker of that name.

    Raises:
        ValueError: no tracker has that name.
        ModuleNotFoundError: it is not installed.
    """
    if callable(logger):
        return logger
    make = find_tracker(logger)
    plain = flat_config(config)
    return Mirror(logger, lambda: make(record, plain))


def find_tracker(name: str) -> Callable[[Record, Mapping[str, Any]], Tracker]:
    """Returns what opens the tracker of that name; see `as_logger`."""
    if name not in TRACKERS:
        raise ValueError(f"loggers must be callables or of {', '.join(TRACKERS)}, got {name!r}")
    if importlib.util.find_spec(name) is None:
        raise ModuleNotFoundError(
            f"the logger {name!r} needs the package {name}, which is not installed; "
            f"install it with ai-lab's extra, from a checkout: pip install 'packages/ai-lab[{name}]'",
            name=name,
        )
    return TRACKERS[name]


def export(record: Record, name: str) -> int:
    """Fills another tracker from a recorded trial, whole, and returns the number of rows."""
    tracker = find_tracker(name)(record, record.flat_config)
    try:
        rows = read_rows(record.path / METRICS)
        tracker.write(rows)
    finally:
        tracker.close()
    return len(rows)


def flat_config(config: Any) -> dict[str, Any]:
    """Returns a configuration with dotted names."""
    plain = to_plain(config) if config is not None else {}
    return flatten(plain) if isinstance(plain, dict) else {}


def _values(row: Row) -> Iterable[tuple[str, float]]:
    return ((key, value) for key, value in row.items() if key not in ("step", "time"))
