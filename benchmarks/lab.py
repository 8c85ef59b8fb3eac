"""What recording costs, ours beside other trackers: time and bytes a scalar, reading back, loss to kill -9.

    python benchmarks/lab.py            # every part
    python benchmarks/lab.py log page   # some: log, kill, search, page

100,000 scalars in 10,000 rows of 10 keys; trackers alternate over the repeats, medians are printed. A tracker that is
not installed is left out with a line. `search` is the cost of a trial that does nothing, `page` the time until the
table and an overlay of curves have been served.
"""

# ruff: noqa: D101, D102  (the protocol's few methods mean what they are called)
import contextlib
import io
import json
import logging
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np

ROWS, KEYS, REPEATS = 10_000, 10, 3
NAMES = [f"metric_{index}" for index in range(KEYS)]


class Backend(Protocol):
    title: str

    def __init__(self, folder: Path) -> None: ...
    def log(self, step: int, values: dict[str, float]) -> None: ...
    def close(self) -> None: ...
    @staticmethod
    def read(folder: Path) -> int: ...


class Ours:
    title = "ai.lab"

    def __init__(self, folder: Path) -> None:
        from ai.lab.metrics import MetricsWriter

        self._writer = MetricsWriter(folder / "metrics.jsonl")
        self.log = self._writer.write

    def close(self) -> None:
        self._writer.close()

    @staticmethod
    def read(folder: Path) -> int:
        from ai.lab.metrics import read_columns

        return sum(len(column[2]) for column in read_columns(folder / "metrics.jsonl").values())


class TensorBoard:
    title = "TensorBoard"

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def log(self, step: int, values: dict[str, float]) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def close(self) -> None:
        self._writer.close()

    @staticmethod
    def read(folder: Path) -> int:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
        return sum(len(events.Scalars(key)) for key in events.Tags()["scalars"])


class Wandb:
    title = "W&B offline"

    def __init__(self, folder: Path) -> None:
        os.environ.update(WANDB_MODE="offline", WANDB_SILENT="true", WANDB_DIR=str(folder))
        import wandb

        self._run = wandb.init(project="benchmark", dir=str(folder), settings=wandb.Settings(console="off"))

    def log(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()

    @staticmethod
    def read(folder: Path) -> int:
        from wandb.proto import wandb_internal_pb2
        from wandb.sdk.internal.datastore import DataStore

        count = 0
        for file in folder.rglob("*.wandb"):
            store = DataStore()
            store.open_for_scan(str(file))
            with contextlib.suppress(AssertionError):  # a torn end
                while (data := store.scan_data()) is not None:
                    record = wandb_internal_pb2.Record()
                    record.ParseFromString(data)
                    names = ["/".join(item.nested_key) or item.key for item in record.history.item]
                    count += sum(name.startswith("metric_") for name in names)
        return count


class Mlflow:
    title = "MLflow log_batch"

    def __init__(self, folder: Path) -> None:
        logging.getLogger("mlflow").setLevel(logging.ERROR)
        import mlflow

        self._metric = mlflow.entities.Metric
        self._client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
        self._run = self._client.create_run(self._client.create_experiment("benchmark")).info.run_id
        self._waiting: list[object] = []

    def log(self, step: int, values: dict[str, float]) -> None:
        self._waiting += [self._metric(key, value, int(time.time() * 1000), step) for key, value in values.items()]
        if len(self._waiting) >= 1000:
            self.close()

    def close(self) -> None:
        self._client.log_batch(self._run, metrics=self._waiting)
        self._waiting = []

    @staticmethod
    def read(folder: Path) -> int:
        import mlflow

        client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
        run = client.search_runs([client.get_experiment_by_name("benchmark").experiment_id])[0].info.run_id
        return sum(len(client.get_metric_history(run, name)) for name in NAMES)


class Trackio:
    title = "Trackio"

    def __init__(self, folder: Path) -> None:
        os.environ["TRACKIO_DIR"] = str(folder)
        import trackio

        with contextlib.redirect_stdout(io.StringIO()):
            self._run = trackio.init(project="benchmark")

    def log(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            self._run.finish()

    @staticmethod
    def read(folder: Path) -> int:
        import sqlite3

        with contextlib.closing(sqlite3.connect(folder / "benchmark.db")) as database:
            return sum(len(json.loads(row[0])) for row in database.execute("select metrics from metrics"))


BACKENDS = {backend.title: backend for backend in (Ours, TensorBoard, Wandb, Mlflow, Trackio)}


def available() -> dict[str, type[Backend]]:
    found = {}
    for name, backend in BACKENDS.items():
        try:
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                made = backend(Path(folder))
                made.log(0, dict.fromkeys(NAMES, 0.5))
                made.close()
        except Exception as error:  # whatever keeps a peer from running is told, and the others go on
            print(f"{name}: left out ({type(error).__name__}: {str(error).splitlines()[0][:90]})")
            continue
        found[name] = backend
    return found


def log() -> None:
    rng = np.random.default_rng(0)
    data = [dict(zip(NAMES, map(float, row), strict=True)) for row in rng.random((ROWS, KEYS))]
    table: dict[str, list[tuple[float, float, float, int]]] = {}
    backends = available()
    for repeat in range(REPEATS):
        for name, backend in list(backends.items())[:: 1 if repeat % 2 else -1]:
            slow = name == Mlflow.title
            rows = data[: ROWS // 10] if slow else data
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as text:
                folder = Path(text)
                made = backend(folder)
                begun = time.perf_counter()
                for step, values in enumerate(rows):
                    made.log(step, values)
                logged = time.perf_counter() - begun
                made.close()
                size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
                begun = time.perf_counter()
                try:
                    count = backend.read(folder)
                except Exception as error:  # a peer's format may have moved on
                    count = -1
                    print(f"{name}: not read back ({type(error).__name__})")
                read = time.perf_counter() - begun
            scalars = len(rows) * KEYS
            table.setdefault(name, []).append(
                (logged / scalars * 1e6, size / scalars * 0.1, read / scalars * 1e5, count - scalars)
            )
    print(f"\n{'tracker':18} {'µs/scalar':>10} {'MB/100k':>9} {'read 100k, s':>13} {'scalars missing':>16}")
    for name, runs in table.items():
        columns = [statistics.median(column) for column in zip(*runs, strict=True)]
        print(f"{name:18} {columns[0]:10.2f} {columns[1]:9.2f} {columns[2]:13.3f} {-columns[3]:16.0f}")


def kill() -> None:
    """Kills a process that logs 500 rows a second, and counts the acknowledged rows that are not there."""
    print(f"\n{'tracker':18} {'rows lost to kill -9 at 500/s':>30}")
    for name, backend in available().items():
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as text:
            process = subprocess.Popen(
                [sys.executable, __file__, "_victim", name, text], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            assert process.stdout is not None
            acknowledged = 0
            for line in process.stdout:
                if line.strip().isdigit():
                    acknowledged = int(line)
                if acknowledged >= 1500:
                    break
            process.send_signal(signal.SIGKILL)
            acknowledged = max([acknowledged, *(int(rest) for rest in process.stdout.read().split()[:-1])])
            process.wait()
            try:
                print(f"{name:18} {max(0, acknowledged + 1 - backend.read(Path(text)) // KEYS):30d}")
            except Exception as error:  # a peer that cannot be read after a kill
                print(f"{name:18} {'unreadable: ' + type(error).__name__:>30}")


def victim(name: str, folder: str) -> None:
    backend = BACKENDS[name](Path(folder))
    begun = time.perf_counter()
    for step in range(10**9):
        backend.log(step, dict.fromkeys(NAMES, step / 3))
        os.write(1, b"%d\n" % step)
        time.sleep(max(0.0, begun + (step + 1) / 500 - time.perf_counter()))


def search(trials: int = 100) -> None:
    """The cost of a trial that does nothing: Optuna alone on its journal, and ours, which records each trial too."""
    import optuna
    from optuna.storages.journal import JournalFileBackend

    from ai.lab import Experiment

    optuna.logging.set_verbosity(optuna.logging.WARNING)

    def alone(folder: Path) -> None:
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder / "journal.log")))
        study = optuna.create_study(storage=storage, sampler=optuna.samplers.RandomSampler(seed=0))
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), trials)

    def ours(folder: Path) -> None:
        experiment = Experiment(folder / "e", search="random")
        experiment.run(trials, lambda trial: trial.hp.lin("x", 0, 1), progress=False)

    times: dict[str, list[float]] = {"Optuna alone": [], "ai.lab": []}
    for _ in range(REPEATS):
        for name, run in (("Optuna alone", alone), ("ai.lab", ours)):
            with tempfile.TemporaryDirectory() as folder:
                times[name].append(timed(lambda run=run, folder=folder: run(Path(folder))) / trials)
    print(f"\n{'search':18} {'ms/trial':>10}")
    for name, values in times.items():
        print(f"{name:18} {statistics.median(values) * 1e3:10.1f}")


def page() -> None:
    """The server's part of opening the page: the table of n trials, first and again, and an overlay of curves."""
    from ai.lab.catalog import Catalog
    from ai.lab.columns import save_columns
    from ai.lab.decimate import decimate
    from ai.lab.metrics import MetricsWriter
    from ai.lab.trial import Trial

    print(f"\n{'table of':18} {'first, ms':>10} {'again, ms':>10}")
    with tempfile.TemporaryDirectory() as text:
        root = Path(text)
        with Trial(root / "t0000", config={"lr": 0.1, "net": {"dim": 8}}, system_interval_s=None, capture=False) as t:
            for step in range(100):
                t.log(step, dict.fromkeys(NAMES, step / 3))
        made = 1
        for count in (10, 100, 1000):
            for number in range(made, count):
                shutil.copytree(root / "t0000", root / f"t{number:04d}")
                marker = json.loads((root / "t0000" / ".ai-lab").read_text())
                (root / f"t{number:04d}" / ".ai-lab").write_text(json.dumps({**marker, "id": f"{number:032x}"}))
            made = count
            catalog = Catalog(root)
            first, again = timed(catalog.rows), min(timed(catalog.rows) for _ in range(3))
            print(f"{count:4} trials {first * 1e3:17.0f} {again * 1e3:10.0f}")
        values = np.random.default_rng(0).random(100_000).tolist()
        names = [f"t{number:04d}" for number in range(20)]
        for name in names:
            writer = MetricsWriter(root / name / "metrics.jsonl")
            for step, value in enumerate(values):
                writer.write(step + 100, {"loss": value})
            writer.close()
            save_columns(root / name / "metrics.jsonl")  # as the end of a run does
        catalog = Catalog(root)
        ids = {Path(row["path"]).name: row["id"] for row in catalog.rows()}

        def overlay() -> None:
            for name in names:
                column = catalog.columns(ids[name])["loss"]
                decimate(column.steps.astype(float), column.values, 1000)

        print(f"overlay of 20 trials × 100k points: first {timed(overlay):.2f} s, again {timed(overlay) * 1e3:.0f} ms")


def timed(run: Callable[[], object]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


if __name__ == "__main__":
    if sys.argv[1:2] == ["_victim"]:
        victim(*sys.argv[2:])
    else:
        parts = {"log": log, "kill": kill, "search": search, "page": page}
        for name in sys.argv[1:] or parts:
            parts[name]()
