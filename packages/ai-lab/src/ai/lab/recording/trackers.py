"""Mirrors: rows of metrics handed on to other trackers, without ever stopping or slowing the run.

A mirror has a thread and a bounded queue of its own. When the other tracker is slow, rows are left out there (and
counted); when it fails, mirroring ends with one warning. The trial's own files are complete in either case, and
`export` fills any tracker from them afterwards.
"""

import contextlib
import hashlib
import importlib
import importlib.util
import itertools
import posixpath
import queue
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol, cast

from ai.data.workers.error_text import error_text
from ai.lab.config import flatten
from ai.lab.configuration.plain_values import to_plain
from ai.lab.files.metrics_file import Row, read_rows
from ai.lab.record import METRICS, Record
from ai.lab.recording.session import Closing, Logger

QUEUE_ROWS = 1000
"""So many rows may wait for a slow tracker before further ones are left out."""
CLOSE_S = 15.0
"""So long a run's end waits for a slow tracker."""


class Tracker(Protocol):
    """Another tracker, open for one run. It is one run there for life: resumed under the same identity."""

    def write(self, rows: Iterable[Row]) -> None:
        """Takes rows, each with `step` and `time` besides its numbers."""

    def rewind(self, step: int) -> None:
        """Takes back the rows of `step` and later, where the tracker can."""

    def close(self, state: str) -> None:
        """Ends the run there, in the trial's state."""


class TensorBoard:
    """Event files in the trial's `tensorboard` folder."""

    NEEDS = ("tensorboard.compat.proto.event_pb2", "tensorboard.summary.writer.event_file_writer")

    def __init__(self, record: Record, config: Mapping[str, Any], fresh: bool = False) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2  # type: ignore[import-untyped]
        from tensorboard.compat.proto.tensor_pb2 import TensorProto  # type: ignore[import-untyped]
        from tensorboard.summary.writer.event_file_writer import EventFileWriter  # type: ignore[import-untyped]

        folder = record.path / "tensorboard"
        if fresh and folder.exists():
            for file in folder.glob("events.out.tfevents.*"):
                file.unlink()
        self._events, self._summaries = event_pb2, summary_pb2
        self._writer = EventFileWriter(str(folder))
        lines = "\n".join(f"    {key}: {value}" for key, value in config.items())
        plugin = summary_pb2.SummaryMetadata.PluginData(plugin_name="text")
        text = TensorProto(dtype="DT_STRING", string_val=[lines.encode()])
        metadata = summary_pb2.SummaryMetadata(plugin_data=plugin)
        value = summary_pb2.Summary.Value(tag="config/text_summary", metadata=metadata, tensor=text)
        self._add(0, time.time(), summary=summary_pb2.Summary(value=[value]))

    def write(self, rows: Iterable[Row]) -> None:
        """Takes rows; see `Tracker`."""
        for row in rows:
            values = [self._summaries.Summary.Value(tag=key, simple_value=value) for key, value in _values(row)]
            self._add(int(row["step"]), row["time"], summary=self._summaries.Summary(value=values))

    def rewind(self, step: int) -> None:
        """Has what was written of `step` and later dropped by readers."""
        start = self._events.SessionLog(status=self._events.SessionLog.START)
        self._add(step, time.time(), session_log=start)

    def _add(self, step: int, wall_time: float, **what: Any) -> None:
        self._writer.add_event(self._events.Event(step=step, wall_time=wall_time, **what))

    def close(self, state: str) -> None:
        """Ends the run there."""
        self._writer.close()


class Wandb:
    """A Weights & Biases run, under the trial's identity; offline with `WANDB_MODE=offline`."""

    NEEDS = ("wandb",)

    def __init__(self, record: Record, config: Mapping[str, Any], fresh: bool = False) -> None:
        import wandb  # type: ignore[import-not-found]

        self._run = wandb.init(
            id=record.id,
            name=record.name,
            dir=str(record.path),
            config=dict(config),
            resume=None if fresh else "allow",
            reinit="create_new",  # the user's own run goes on
        )
        self._run.define_metric("*", step_metric="step")

    def write(self, rows: Iterable[Row]) -> None:
        """Takes rows; see `Tracker`."""
        for row in rows:
            # Its own step may not go backwards, which a validation's does; so ours is a number like the others.
            self._run.log({**dict(_values(row)), "step": row["step"], "_timestamp": row["time"]})

    def rewind(self, step: int) -> None:
        """Does nothing: W&B takes no row back; `ai-lab export` fills the run anew."""

    def close(self, state: str) -> None:
        """Ends the run there."""
        self._run.finish(exit_code=int(state not in GOOD_ENDS))


class Mlflow:
    """An MLflow run on the tracking server that MLflow's own settings name, written in batches.

    It is found again by a tag with the trial's identity.
    """

    NEEDS = ("mlflow",)
    BATCH = 1000
    STATES: ClassVar = {"failed": "FAILED", "dead": "FAILED", "interrupted": "KILLED"}

    def __init__(self, record: Record, config: Mapping[str, Any], fresh: bool = False) -> None:
        import mlflow  # type: ignore[import-not-found]

        self._client = mlflow.MlflowClient()
        found = self._client.get_experiment_by_name("ai-lab")
        experiment = found.experiment_id if found else self._client.create_experiment("ai-lab")
        known = self._client.search_runs([experiment], f"tags.`ai-lab.id` = '{record.id}'")
        if fresh:
            for run in known:
                self._client.delete_run(run.info.run_id)
            known = []
        if known:
            self._run_id = known[0].info.run_id
            self._client.update_run(self._run_id, status="RUNNING")
        else:
            run = self._client.create_run(experiment, run_name=record.name, tags={"ai-lab.id": record.id})
            self._run_id = run.info.run_id
            params = [mlflow.entities.Param(mlflow_name(key), str(value)[:6000]) for key, value in config.items()]
            for start in range(0, len(params), 100):
                self._client.log_batch(self._run_id, params=params[start : start + 100])
        self._metric: Callable[..., Any] = mlflow.entities.Metric

    def write(self, rows: Iterable[Row]) -> None:
        """Takes rows; see `Tracker`."""
        metrics = [
            self._metric(mlflow_name(key), float(value), int(row["time"] * 1000), int(row["step"]))
            for row in rows
            for key, value in _values(row)
        ]
        for start in range(0, len(metrics), self.BATCH):
            self._client.log_batch(self._run_id, metrics=metrics[start : start + self.BATCH])

    def rewind(self, step: int) -> None:
        """Does nothing: MLflow takes no number back; `ai-lab export` fills the run anew."""

    def close(self, state: str) -> None:
        """Ends the run there."""
        self._client.set_terminated(self._run_id, self.STATES.get(state, "FINISHED"))


def mlflow_name(key: str) -> str:
    """Returns a name that MLflow takes for a metric or parameter: of one that it refuses, what it allows and a digest.

    >>> mlflow_name("val/acc"), mlflow_name("acc@5")
    ('val/acc', 'acc_5-ef261fef')
    """
    allowed = re.sub(r"[^\w.\- :/]", "_", key)
    is_path = posixpath.normpath(allowed) == allowed and not allowed.startswith(("/", ".."))  # it may keep files
    if allowed == key and is_path and key != "." and len(key) <= 250:
        return key
    digest = hashlib.sha1(key.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{(allowed if is_path else re.sub('[/.]', '_', allowed))[:200]}-{digest}"


GOOD_ENDS = ("finished", "stopped", "pruned")
TRACKERS: dict[str, Any] = {"tensorboard": TensorBoard, "wandb": Wandb, "mlflow": Mlflow}


class _Rewind(NamedTuple):
    """Goes through the queue like a row: rows of `step` and later are taken back, `rows` of them stay."""

    step: int
    rows: list[Row]


class Mirror(Closing):
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
        self._queue: queue.Queue[Row | _Rewind | None] = queue.Queue(queue_rows)
        self._state = "finished"
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

    def rewind(self, step: int, rows: list[Row]) -> None:
        """Takes back the rows of `step` and later, of which `rows` stay."""
        with contextlib.suppress(queue.Full):
            self._queue.put(_Rewind(step, rows), timeout=CLOSE_S)

    def _run(self) -> None:
        try:
            tracker = self._open()
            try:
                ended = False
                while not ended:
                    items = [self._queue.get()]
                    while not self._queue.empty() and len(items) < QUEUE_ROWS:
                        items.append(self._queue.get())
                    for is_row, some in itertools.groupby(items, lambda item: isinstance(item, dict)):
                        if is_row:
                            tracker.write(cast("list[Row]", list(some)))
                            continue
                        for item in some:
                            ended = ended or item is None
                            if isinstance(item, _Rewind):
                                tracker.rewind(item.step)
                                tracker.write(item.rows)
            finally:
                tracker.close(self._state)
        except Exception as error:
            self._failed = True
            self._warn(f"failed and gets no more rows: {error_text(error)}")

    def close(self, state: str = "finished", error: BaseException | None = None) -> None:
        """Hands over what is queued and how the run ended, waiting a bounded time, and says what was left out."""
        self._state = state
        try:
            self._queue.put(None, timeout=0 if self._failed else CLOSE_S)
        except queue.Full:
            if not self._failed:
                self._warn("did not take its rows in time")
        self._thread.join(CLOSE_S)
        if self._thread.is_alive() and not self._failed:
            self._warn(f"was not done {CLOSE_S:g} s after the run's end; `ai-lab export` fills it anew")
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


def check_loggers(loggers: object) -> None:
    """Raises where loggers are no list of callables and names of trackers.

    Raises:
        TypeError: they are not.
        ValueError: no tracker has that name.
    """
    if not isinstance(loggers, list | tuple):
        raise TypeError(f"loggers must be a list of callables and names of trackers, got {loggers!r}")
    for one in loggers:
        if not isinstance(one, str) and (isinstance(one, type) or not callable(one)):
            raise TypeError(f"loggers must be callables or of {', '.join(TRACKERS)}, got {one!r}")
        if isinstance(one, str) and one not in TRACKERS:
            raise ValueError(f"loggers must be callables or of {', '.join(TRACKERS)}, got {one!r}")


def find_tracker(name: str) -> Any:
    """Returns what opens the tracker of that name, its packages imported; see `as_logger`.

    They are imported here, not in the mirror's thread: two threads that import torch at once break each other.
    """
    if name not in TRACKERS:
        raise ValueError(f"loggers must be callables or of {', '.join(TRACKERS)}, got {name!r}")
    if importlib.util.find_spec(name) is None:
        raise ModuleNotFoundError(
            f"the logger {name!r} needs the package {name}, which is not installed; "
            f"install it with ai-lab's extra, from a checkout: pip install 'packages/ai-lab[{name}]'",
            name=name,
        )
    for module in TRACKERS[name].NEEDS:
        importlib.import_module(module)
    return TRACKERS[name]


def export(record: Record, name: str) -> int:
    """Fills another tracker from a recorded trial, whole and anew, and returns the number of rows."""
    tracker: Tracker = find_tracker(name)(record, record.flat_config, fresh=True)
    try:
        rows = read_rows(record.path / METRICS)
        tracker.write(rows)
    finally:
        tracker.close(record.state)
    return len(rows)


def flat_config(config: Any) -> dict[str, Any]:
    """Returns a configuration with dotted names."""
    plain = to_plain(config) if config is not None else {}
    return flatten(plain) if isinstance(plain, dict) else {}


def _values(row: Row) -> Iterable[tuple[str, float]]:
    return ((key, value) for key, value in row.items() if key not in ("step", "time"))
