"""What recording costs, ours beside other trackers: time and bytes a scalar, reading back, loss to kill -9.

    python benchmarks/lab.py            # every part
    python benchmarks/lab.py log kill   # some: log, kill, hook, search

100,000 scalars in 10,000 rows of 10 keys; trackers alternate over the repeats, each time in a process of its own, and
medians are printed. A tracker that is not installed is left out with a line. `hook` is what a trial's hook costs on a
step on which nothing is due, `search` the cost of a trial that does nothing. The page is measured by `lab_page.py`.
"""

# ruff: noqa: D101, D102  (the protocol's few methods mean what they are called)
import contextlib
import io
import json
import logging
import os
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

ROWS, KEYS, REPEATS = 10_000, 10, 3
NAMES = [f"metric_{index}" for index in range(KEYS)]


class Ours:
    title = "ai.lab"

    def __init__(self, folder: Path) -> None:
        from ai.lab.files.metrics_writer import MetricsWriter

        self._writer = MetricsWriter(folder / "metrics.jsonl")
        self.log = self._writer.write

    def close(self) -> None:
        self._writer.close()

    @staticmethod
    def read(folder: Path) -> int:
        from ai.lab.files.metrics_columns import read_columns

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

        count = 0
        for file in folder.rglob("*.wandb"):
            for data in leveldb_records(file.read_bytes()[7:], 7):  # after W&B's own header
                record = wandb_internal_pb2.Record()
                record.ParseFromString(data)
                names = ["/".join(item.nested_key) or item.key for item in record.history.item]
                count += sum(name.startswith("metric_") for name in names)
        return count


def leveldb_records(data: bytes, begun: int) -> Iterator[bytes]:
    """Yields the records of a log in LevelDB's format, of which `begun` bytes went before; a torn end is left out."""
    at, held = 0, b""
    while at + 7 <= len(data):
        room = 32768 - (at + begun) % 32768
        if room < 7:
            at += room
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        part = data[at + 7 : at + 7 + length]
        if kind == 0 or len(part) < length:
            return
        held += part
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield held
            held = b""


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
        os.environ["TRACKIO_DIR"] = str(folder)  # read once, when it is imported
        import trackio

        with contextlib.redirect_stdout(io.StringIO()):
            self._run = trackio.init(project="benchmark", auto_log_gpu=False, auto_log_cpu=False)

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


def available() -> list[str]:
    """Returns the trackers that run here; why another does not is printed."""
    found = []
    for name in BACKENDS:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            done = subprocess.run([sys.executable, __file__, "_measure", name, folder, "10"], capture_output=True)
        if done.returncode == 0:
            found.append(name)
        else:
            print(f"{name}: left out ({(done.stderr.decode().strip().splitlines() or ['no reason given'])[-1][:100]})")
    return found


def log() -> None:
    table: dict[str, list[list[float]]] = {}
    names = available()
    for repeat in range(REPEATS):
        for name in names[:: 1 if repeat % 2 else -1]:
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                rows = ROWS // 10 if name == Mlflow.title else ROWS  # it is slow
                command = [sys.executable, __file__, "_measure", name, folder, str(rows)]
                done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
                table.setdefault(name, []).append(json.loads(done.stdout.splitlines()[-1]))
    print(f"\n{'tracker':18} {'µs/scalar':>10} {'MB/100k':>9} {'read 100k, s':>13} {'scalars missing':>16}")
    for name, runs in table.items():
        columns = [statistics.median(column) for column in zip(*runs, strict=True)]
        print(f"{name:18} {columns[0]:10.2f} {columns[1]:9.2f} {columns[2]:13.3f} {columns[3]:16.0f}")


def measure(name: str, folder: str, rows: str) -> None:
    """One tracker in this process: µs a scalar, MB and seconds of reading per 100,000, scalars missing."""
    backend, path = BACKENDS[name], Path(folder)
    rng = np.random.default_rng(0)
    data = [dict(zip(NAMES, map(float, row), strict=True)) for row in rng.random((int(rows), KEYS))]
    made = backend(path)
    made.log(0, data[0])  # the first one may set things up
    begun = time.perf_counter()
    for step, values in enumerate(data[1:], 1):
        made.log(step, values)
    logged = time.perf_counter() - begun
    made.close()
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    begun = time.perf_counter()
    count = backend.read(path)
    read = time.perf_counter() - begun
    scalars = len(data) * KEYS
    print(
        json.dumps([logged / (scalars - KEYS) * 1e6, size / scalars * 0.1, read / scalars * 1e5, scalars - count]),
        flush=True,
    )
    os._exit(0)  # whatever a tracker's threads still do


def kill() -> None:
    """Kills a process that logs 500 rows a second, and counts the acknowledged rows that are not there."""
    print(f"\n{'tracker':18} {'rows lost to kill -9 at 500/s':>30}")
    for name in available():
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
                print(f"{name:18} {max(0, acknowledged + 1 - BACKENDS[name].read(Path(text)) // KEYS):30d}")
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


def hook() -> None:
    """A trial's hook on a step on which nothing is due."""
    import timeit

    import torch

    from ai.lab import Trial
    from ai.train import Trainer, opt

    costs: list[float] = []

    def env(model, batch, step):
        if step == 3:
            costs.append(min(timeit.repeat(lambda: (made.step(4), made.wants_log(4)), number=1000, repeat=9)) / 1000)
        return model(batch).sum() * 0

    with tempfile.TemporaryDirectory() as folder:
        how = {"log_interval": 10**9, "save_interval": 10**9, "system_interval_s": None, "progress": False}
        trial = Trial(Path(folder) / "t", save_snapshots=True, capture=False, **how)
        model, made = torch.nn.Linear(4, 2), trial.hook()
        Trainer(env, [torch.ones(8, 4)] * 5).train(model, opt.sgd(model), made)
    print(f"\nhook with nothing due: {costs[0] * 1e6:.2f} µs a step")


def timed(run: Callable[[], object]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


if __name__ == "__main__":
    if sys.argv[1:2] == ["_victim"]:
        victim(*sys.argv[2:])
    elif sys.argv[1:2] == ["_measure"]:
        measure(*sys.argv[2:])
    else:
        parts = {"log": log, "kill": kill, "hook": hook, "search": search}
        for name in sys.argv[1:] or parts:
            parts[name]()
