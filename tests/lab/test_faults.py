"""Disks that are full or read-only, for real: on a small tmpfs, where this process may mount one."""

import contextlib
import ctypes
import os
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

from ai.lab import Experiment, Record, Trial
from ai.train import Regress, Trainer, opt

HOW = {"system_interval_s": None, "progress": False, "capture": False}


@pytest.fixture
def disk(tmp_path):
    """A disk of one mebibyte."""
    place = tmp_path / "disk"
    place.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "mount") or libc.mount(b"tmpfs", bytes(place), b"tmpfs", 0, b"size=1m") != 0:
        pytest.skip(f"no right to mount a small disk here ({os.strerror(ctypes.get_errno())})")
    yield place
    assert libc.umount2(bytes(place), 2) == 0  # detached, whoever still looks at it


@pytest.fixture
def read_only(disk):
    """The same disk, with a recorded trial, on which nothing can be written any more."""
    with Trial(disk / "t", config={"lr": 0.1}, **HOW) as trial:
        trial.log(0, {"loss": 1.0})
        trial.save_sample(0, torch.zeros(1, 1, 2, 2))
    done = subprocess.run(["mount", "-o", "remount,ro", str(disk)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no right to remount here: {done.stderr.strip()}")
    return disk


def fill(place: Path) -> Path:
    """Takes all the room there is."""
    file = place / "filler"
    with open(file, "wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(bytes(4096))
    return file


def log_for_ever(trial: Trial, written: list[int]) -> None:
    with trial:
        while True:
            trial.log(len(written), {f"metric_{index}": len(written) / 3 for index in range(20)})
            written.append(len(written))


def test_a_full_disk_stops_logging_with_one_clear_error_and_earlier_rows_are_intact(disk, capsys):
    trial, written = Trial(disk / "t", **HOW), []
    with pytest.raises(OSError, match=r"No space left on device; rows up to here are intact"):
        log_for_ever(trial, written)
    column = trial.metrics()["metric_7"]
    assert column.steps.tolist() == written
    assert column.values[-1] == written[-1] / 3
    assert Record(disk / "t").state in ("dead", "failed")  # as far as there was room to say so
    assert "could not be recorded: OSError: [Errno 28]" in capsys.readouterr().err or trial.state == "failed"
    Trial(disk / "t", clean=True, **HOW)  # nobody holds it


def test_a_run_that_met_a_full_disk_goes_on_once_there_is_room(disk):
    def make():
        torch.manual_seed(0)
        model = nn.Linear(20, 20)
        return model, opt.adamw(model)

    batches = [(torch.ones(4, 20), torch.ones(4, 20))] * 40
    how = {**HOW, "save_snapshots": True, "save_interval": 10, "log_interval": 5}
    fills = []

    def env(model, batch, step):
        if step == 25 and not fills:
            fills.append(fill(disk))
        return Regress()(model, batch, step)

    model, optimizer = make()
    trial = Trial(disk / "t", **how)
    with pytest.raises(OSError, match=r"snapshot .*000000030 was not written"):
        Trainer(env, batches).train(model, optimizer, trial.hook())
    fills[0].unlink()
    assert list(trial.record.snapshots()) == [10, 20]
    assert trial.metrics()["loss"].steps.tolist()[:5] == [0, 5, 10, 15, 20]
    model, optimizer = make()
    again = Trial(disk / "t", **how)
    assert again.resume(model, optimizer) == 20
    assert Trainer(env, batches).train(model, optimizer, again.hook(), step=20) == 40
    assert again.state == "finished"
    assert again.metrics()["loss"].steps.tolist() == [0, 5, 10, 15, 20, 25, 30, 35, 39]


def test_a_read_only_folder_is_read_and_refused_to_writers_in_one_sentence(read_only):
    record = Record(read_only / "t")
    assert record.state == "finished"
    assert record.metrics()["loss"].values.tolist() == [1.0]
    assert list(record.samples()) == [0]
    trial = Trial(read_only / "t", **HOW)
    with pytest.raises(OSError, match=r"Read-only file system: .*owner\.json"):
        trial.log(1, {"loss": 0.5})
    with pytest.raises(OSError, match=r"Read-only file system: .*new"):
        Trial(read_only / "new", **HOW)
    with pytest.raises(OSError, match="Read-only file system"):
        Experiment(read_only / "search")
    assert record.metrics()["loss"].values.tolist() == [1.0]


def test_a_read_only_folder_is_served(read_only):
    from ai.lab.page.catalog import Catalog

    (row,) = Catalog(read_only).rows()
    assert (row["name"], row["state"], row["metrics"]) == ("t", "finished", {"loss": 1.0})
