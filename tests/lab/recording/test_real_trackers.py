"""Mirrors into the real W&B and MLflow, where they are installed; neither reaches for a network."""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ai.lab import Trial
from ai.lab.cli import main

HOW = {"system_interval_s": None, "capture": False}
ROWS = [
    (step, {"loss": n / 2, "val/acc": 1.0 - n / 10}) for n, step in enumerate((0, 1, 5, 5, 3))
]  # also back in steps

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def record(path: Path, *loggers: str) -> Trial:
    with Trial(path, config={"lr": 0.1, "net": {"dim": 8}}, loggers=loggers, **HOW) as trial:
        for step, values in ROWS:
            trial.log(step, values)
    return trial


def wandb_records(path: Path) -> Iterator[bytes]:
    """The records of a .wandb file: LevelDB's log format after a header of 7 bytes."""
    data, at, held = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        room = 32768 - at % 32768
        if room < 7:
            at += room
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        held += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield held
            held = b""


def wandb_history(folder: Path) -> list[dict] | None:
    """The rows of the one run in a folder; None until it has been written to its end, which another process does."""
    from wandb.proto import wandb_internal_pb2

    rows, ended = [], False
    for file in sorted(folder.rglob("*.wandb")):
        for data in wandb_records(file):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.WhichOneof("record_type") == "history":
                items = record.history.item
                rows.append({"/".join(one.nested_key) or one.key: json.loads(one.value_json) for one in items})
            ended = ended or record.WhichOneof("record_type") == "exit"
    return rows if ended else None


def check_wandb(folder: Path) -> None:
    deadline = time.monotonic() + 60
    while (history := wandb_history(folder)) is None:
        assert time.monotonic() < deadline, "W&B never wrote the run's end"
        time.sleep(0.05)
    rows = [{key: row[key] for key in ("step", "loss", "val/acc")} for row in history]
    assert rows == [{"step": step, **values} for step, values in ROWS]


def test_wandb_offline_holds_every_row_live_and_exported(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="W&B is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    live = record(tmp_path / "live", "wandb")
    check_wandb(live.path)
    assert live.state == "finished"
    later = record(tmp_path / "later")
    assert main(["export", str(later.path), "--to", "wandb"]) == 0
    check_wandb(later.path)


def test_mlflow_holds_every_row_live_and_exported(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="MLflow is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    record(tmp_path / "live", "mlflow")
    later = record(tmp_path / "later")
    assert main(["export", str(later.path), "--to", "mlflow"]) == 0
    client = mlflow.MlflowClient()
    runs = client.search_runs([client.get_experiment_by_name("ai-lab").experiment_id])
    assert {run.info.run_name for run in runs} == {"live", "later"}
    for run in runs:
        assert run.data.params == {"lr": "0.1", "net.dim": "8"}
        assert run.info.status == "FINISHED"
        for key in ("loss", "val/acc"):
            history = [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, key)]
            assert sorted(history) == sorted((step, values[key]) for step, values in ROWS)
    odd = {"acc@5": 1.0, "../up": 2.0, "//": 3.0, "x" * 300: 4.0, "grün/a b:c-d.e_f": 5.0, "nan": float("nan")}
    trial = Trial(tmp_path / "odd", config={"a@b": 1, "a?b": 2}, loggers=["mlflow"], **HOW)

    def fail() -> None:
        with trial:
            trial.log(0, odd)
            raise ValueError("the end")

    with pytest.raises(ValueError, match="the end"):
        fail()
    with Trial(trial.path, loggers=["mlflow"], **HOW) as again:  # one run for life, whatever became of it before
        again.log(1, {"acc@5": 6.0})
    (run,) = client.search_runs([runs[0].info.experiment_id], "attributes.run_name = 'odd'")
    assert run.info.status == "FINISHED"
    assert len(run.data.metrics) == len(odd)
    assert run.data.metrics["grün/a b:c-d.e_f"] == 5.0
    assert sorted(run.data.params.values()) == ["1", "2"]
    (name,) = (name for name in run.data.metrics if name.startswith("acc_5-"))
    assert [one.value for one in client.get_metric_history(run.info.run_id, name)] == [1.0, 6.0]
