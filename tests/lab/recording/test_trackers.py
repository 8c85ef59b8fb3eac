import subprocess
import sys
import threading
import types

import pytest

from ai.lab import Trial
from ai.lab.files.metrics_file import read_rows
from ai.lab.recording.trackers import TRACKERS, Mirror, export, find_tracker

HOW = {"system_interval_s": None, "capture": False}


class Recorder:
    def __init__(self, gate: threading.Event | None = None) -> None:
        self.rows: list[dict] = []
        self.closed = False
        self.gate = gate

    def write(self, rows) -> None:
        if self.gate is not None:
            assert self.gate.wait(100)
        self.rows += rows

    def rewind(self, step) -> None:
        self.rows = [row for row in self.rows if row["step"] < step]

    def close(self, state) -> None:
        self.closed = state


def test_rows_reach_the_tracker_in_order():
    tracker = Recorder()
    mirror = Mirror("test", lambda: tracker)
    for step in range(50):
        mirror(step, {"loss": step / 2})
    mirror.close()
    assert [(row["step"], row["loss"]) for row in tracker.rows] == [(step, step / 2) for step in range(50)]
    assert tracker.closed == "finished"


def test_a_slow_tracker_never_stops_the_run_and_the_loss_is_told(capsys):
    gate = threading.Event()
    tracker = Recorder(gate)
    mirror = Mirror("test", lambda: tracker, queue_rows=10)
    for step in range(1000):
        mirror(step, {"loss": 0.0})
    gate.set()
    mirror.close()
    assert len(tracker.rows) + mirror.dropped == 1000
    assert mirror.dropped > 900
    assert f"was too slow for {mirror.dropped} rows" in capsys.readouterr().err


def test_a_failing_tracker_ends_with_one_warning(capsys):
    def fail():
        raise ConnectionError("no server")

    mirror = Mirror("test", fail)
    mirror._thread.join(100)
    for step in range(100):
        mirror(step, {"loss": 0.0})
    mirror.close()
    assert capsys.readouterr().err.count("failed and gets no more rows: ConnectionError: no server") == 1


def test_any_callable_is_a_logger(tmp_path):
    rows = []
    with Trial(tmp_path / "t", loggers=[lambda step, values: rows.append((step, dict(values)))], **HOW) as trial:
        trial.log(3, {"loss": 1.0})
    assert rows == [(3, {"loss": 1.0})]


def test_unknown_and_missing_trackers_are_named(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="loggers must be callables or of tensorboard, wandb, mlflow, got 'neptune'"):
        find_tracker("neptune")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'packages/ai-lab\[wandb\]'"):
        find_tracker("wandb")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_tensorboard_holds_every_row_live_and_exported(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with Trial(tmp_path / "t", config={"lr": 0.1}, loggers=["tensorboard"], **HOW) as trial:
        for step in range(5):
            trial.log(step, {"loss": step / 2})

    def read() -> list[tuple[int, float]]:
        events = EventAccumulator(str(tmp_path / "t" / "tensorboard")).Reload()
        return [(event.step, event.value) for event in events.Scalars("loss")]

    expected = [(step, step / 2) for step in range(5)]
    assert read() == expected
    for file in (tmp_path / "t" / "tensorboard").iterdir():
        file.unlink()
    assert export(trial.record, "tensorboard") == 5
    assert read() == expected


def test_wandb_and_mlflow_get_what_their_interfaces_take(tmp_path, monkeypatch):
    with Trial(tmp_path / "t", config={"net": {"dim": 8}}, **HOW) as trial:
        trial.log(7, {"loss": 0.5})
    logged: dict[str, list] = {"wandb": [], "mlflow": []}
    runs: list = []
    run = types.SimpleNamespace(
        log=logged["wandb"].append,
        finish=lambda exit_code: logged["wandb"].append(exit_code),
        define_metric=lambda *a, **how: None,
    )
    wandb = types.SimpleNamespace(init=lambda **how: logged["wandb"].append(how) or run)
    client = types.SimpleNamespace(
        get_experiment_by_name=lambda name: None,
        create_experiment=lambda name: "1",
        search_runs=lambda experiments, where: [run for run in runs if f"'{trial.id}'" in where],
        create_run=lambda *a, **how: (
            runs.append(types.SimpleNamespace(info=types.SimpleNamespace(run_id="r"))) or runs[0]
        ),
        delete_run=lambda run_id: runs.clear(),
        update_run=lambda run_id, **how: logged["mlflow"].append(how),
        log_batch=lambda run_id, **how: logged["mlflow"].append(how),
        set_terminated=lambda run_id, status: logged["mlflow"].append(status),
    )
    entities = types.SimpleNamespace(Param=lambda *a: a, Metric=lambda *a: a)
    mlflow = types.SimpleNamespace(MlflowClient=lambda: client, entities=entities)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    config = trial.record.flat_config
    for name in ("wandb", "mlflow"):
        tracker = TRACKERS[name](trial.record, config)
        tracker.write([{"step": 7, "time": 1.5, "loss": 0.5}])
        tracker.close("failed")
    how, row, end = logged["wandb"]
    assert (how["id"], how["config"], row, end) == (
        trial.id,
        {"net.dim": 8},
        {"loss": 0.5, "step": 7, "_timestamp": 1.5},
        1,
    )
    batch = {"metrics": [("loss", 0.5, 1500, 7)]}
    assert logged["mlflow"] == [{"params": [("net.dim", "8")]}, batch, "FAILED"]
    logged["mlflow"].clear()  # resumed, it is the same run
    tracker = TRACKERS["mlflow"](trial.record, config)
    tracker.write([{"step": 7, "time": 1.5, "loss": 0.5}])
    tracker.close("stopped")
    assert logged["mlflow"] == [{"status": "RUNNING"}, batch, "FINISHED"]
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    logged["mlflow"].clear()  # exported, it is told once
    assert export(trial.record, "mlflow") == 1
    assert len(runs) == 1
    assert [len(one) for one in logged["mlflow"]] == [1, 1, len("FINISHED")]


def points(folder) -> list[tuple[int, float]]:
    """What TensorBoard shows of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return [(event.step, event.value) for event in events.Scalars("loss")]


@pytest.mark.filterwarnings("ignore")
def test_a_resumed_run_is_one_line_in_tensorboard(tmp_path):
    how = {"loggers": ["tensorboard"], **HOW}
    with Trial(tmp_path / "t", **how) as trial:
        for step in (0, 1, 2, 2, 3, 4):
            trial.log(step, {"loss": float(step)})
    with Trial(tmp_path / "t", **how) as trial:
        session = trial._writer.open()
        end = (trial.path / "metrics.jsonl").read_bytes().index(b'"step":2,', 100)
        session.metrics.cut(trial.path.joinpath("metrics.jsonl").read_bytes().rindex(b"\n", 0, end + 60) + 1)
        kept = [row["step"] for row in read_rows(trial.path / "metrics.jsonl")]
        session.rewound()
        for step in (2, 3, 4, 5):
            trial.log(step, {"loss": 10.0 * step})
    expected = [(row["step"], row["loss"]) for row in read_rows(trial.path / "metrics.jsonl")]
    assert 2 <= len(kept) < 6
    assert points(trial.path) == expected
    assert export(trial.record, "tensorboard") == len(expected)
    assert points(trial.path) == expected


def test_a_tracker_is_rewound_in_its_place_among_the_rows():
    tracker = Recorder()
    mirror = Mirror("test", lambda: tracker)
    for step in (0, 1, 2, 2):
        mirror(step, {"loss": float(step)})
    mirror.rewind(2, [{"step": 2, "time": 0.0, "loss": 7.0}])
    mirror(3, {"loss": 3.0})
    mirror.close("interrupted")
    assert [(row["step"], row["loss"]) for row in tracker.rows] == [(0, 0.0), (1, 1.0), (2, 7.0), (3, 3.0)]
    assert tracker.closed == "interrupted"


def test_tensorboard_needs_no_torch_and_is_imported_where_the_trial_is(tmp_path):
    code = f"""
import sys
from ai.lab import Trial
with Trial({str(tmp_path / "t")!r}, loggers=["tensorboard"], system_interval_s=None, capture=False) as trial:
    trial.log(0, {{"loss": 1.0}})
    assert "torch" not in sys.modules
    import torch  # at once with the mirror's thread
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "failed" not in done.stderr
    assert points(tmp_path / "t") == [(0, 1.0)]


def test_a_logger_of_the_users_that_fails_is_dropped_with_one_warning(tmp_path, capsys):
    def logger(step, values):
        raise ConnectionError("no server")

    rows = []
    with Trial(tmp_path / "t", loggers=[logger, lambda step, values: rows.append(step)], **HOW) as trial:
        for step in range(3):
            trial.log(step, {"loss": 1.0})
    assert rows == [0, 1, 2]
    assert trial.state == "finished"
    told = "a logger failed and gets no more rows: ConnectionError: no server"
    assert capsys.readouterr().err.count(told) == 1


def test_importing_the_lab_loads_nothing_heavy():
    heavy = "torch optuna matplotlib tyro starlette pandas wandb"
    code = f"import sys, ai.lab; print([m for m in {heavy.split()} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
