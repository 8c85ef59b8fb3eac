"""A trial whose folder is moved, renamed or deleted while it is written."""

import os
import shutil

import pytest
import torch
from torch import nn

from ai.lab import Record, Trial
from ai.lab.recording import session
from ai.train import Regress, Trainer, opt
from ai.train.saving import atomic_folder

HOW = {"system_interval_s": None, "progress": False, "capture": False}
TRAINED = {**HOW, "save_snapshots": True, "save_interval": 10, "log_interval": 5}
DELETED = "the folder was deleted while its trial was running"


@pytest.fixture(autouse=True)
def looked_at_each_row(monkeypatch):
    monkeypatch.setattr(session, "LOOK_S", 0.0)


def train(trial, at=-1, do=lambda: None, steps=40, resume=False):
    """Trains, something happening at one step, and returns the weights."""
    torch.manual_seed(0)
    model = nn.Linear(2, 2)
    optimizer = opt.adamw(model)
    step = trial.resume(model, optimizer) if resume else 0

    def env(model, batch, step):
        if step == at:
            do()
        return Regress()(model, batch, step)

    batches = [(torch.full((4, 2), float(step)), torch.ones(4, 2)) for step in range(40)]
    Trainer(env, batches).train(model, optimizer, trial.hook(), step=step, steplimit=steps)
    return model.weight.detach()


@pytest.mark.parametrize(("old", "new"), [("in/t", "in/renamed"), ("in/t", "elsewhere"), ("in", "out")])
def test_a_trial_that_is_moved_while_it_is_written_loses_nothing(tmp_path, old, new):
    with Trial(tmp_path / "in" / "t", system_interval_s=None) as trial:
        trial.log(0, {"loss": 1.0})
        (tmp_path / old).rename(tmp_path / new)
        place = tmp_path / new / ("t" if old == "in" else "")
        assert trial.path == place
        trial.log(1, {"loss": 0.5})
        trial.save_sample(1, torch.zeros(1, 1, 2, 2))
        trial.keep(1, "words", "said")
        trial.note(found=3)
        print("goes on")
    assert not (tmp_path / "in" / "t").exists()
    found = Record(place)
    assert (found.state, found.id, trial.state) == ("finished", trial.id, "finished")
    assert found.metrics()["loss"].steps.tolist() == [0, 1]
    assert (list(found.samples()), list(found.media()["words"]), found.meta["notes"]) == ([1], [1], {"found": 3})
    assert f"moved from {tmp_path / 'in' / 't'} to {place}" in found.log_text()
    assert "goes on" in found.log_text()


def test_a_run_that_is_moved_while_it_trains_saves_where_it_is_and_resumes_there(tmp_path):
    whole = train(Trial(tmp_path / "whole", **TRAINED))
    trial = Trial(tmp_path / "t", **TRAINED)
    train(trial, 15, lambda: (tmp_path / "t").rename(tmp_path / "moved"), steps=30)
    assert not (tmp_path / "t").exists()
    assert list(Record(tmp_path / "moved").snapshots()) == [10, 20, 30]
    again = Trial(tmp_path / "moved", **TRAINED)
    assert train(again, resume=True).equal(whole)
    assert again.metrics()["loss"].steps.tolist() == [0, 5, 10, 15, 20, 25, 29, 30, 35, 39]


def test_what_is_being_written_in_the_moment_of_a_move_is_written_where_the_folder_is(tmp_path, monkeypatch):
    moved = []

    def moving(sync):
        def move_and_sync(path):
            if moved[-1:] == [()]:
                moved[-1] = trial.path.rename(tmp_path / f"moved-{len(moved)}")
            sync(path)

        return move_and_sync

    with Trial(tmp_path / "t", system_interval_s=None, capture=False) as trial:
        trial.log(0, {"loss": 1.0})
        model = nn.Linear(2, 2)
        monkeypatch.setattr(atomic_folder, "sync", moving(atomic_folder.sync))
        monkeypatch.setattr(os, "fsync", moving(os.fsync))
        for write in (
            lambda: trial.note(found=3),
            lambda: trial.save_sample(1, torch.zeros(1, 1, 2, 2)),
            lambda: trial.keep(1, "words", "said"),
            lambda: trial.save_snapshot(model, opt.sgd(model), 1),
        ):
            moved.append(())
            where = write()
            assert moved[-1] == trial.path
            assert where is None or (trial.path in where.parents and where.exists())
    assert [path.name for path in tmp_path.iterdir()] == ["moved-4"]
    found = Record(tmp_path / "moved-4")
    assert (found.state, found.meta["notes"]) == ("finished", {"found": 3})
    assert (list(found.samples()), list(found.media()["words"]), list(found.snapshots())) == ([1], [1], [1])


def test_two_trials_that_swap_names_keep_their_own(tmp_path):
    first, second = (Trial(tmp_path / name, **HOW) for name in "ab")
    first.log(0, {"loss": 1.0})
    second.log(0, {"loss": 2.0})
    for old, new in ("ax", "ba", "xb"):
        (tmp_path / old).rename(tmp_path / new)
    for trial, loss in ((first, 10.0), (second, 20.0)):
        trial.log(1, {"loss": loss})
        trial.note(last=loss)
        trial.close()
    for trial, name, losses in ((first, "b", [1.0, 10.0]), (second, "a", [2.0, 20.0])):
        found = Record(tmp_path / name)
        assert (found.id, found.meta["notes"]) == (trial.id, {"last": losses[-1]})
        assert found.metrics()["loss"].values.tolist() == losses


def test_a_trial_that_takes_the_place_of_one_that_runs_on_is_left_alone(tmp_path):
    old = Trial(tmp_path / "t", config={"lr": 1}, **TRAINED)

    def begin_another():
        (tmp_path / "t").rename(tmp_path / "t.old")
        with Trial(tmp_path / "t", config={"lr": 2}, **HOW) as new:
            new.log(7, {"loss": 7.0})

    train(old, 15, begin_another)
    new = Record(tmp_path / "t")
    assert (new.config, new.last()["step"], list(new.snapshots())) == ({"lr": 2}, 7, [])
    kept = Record(tmp_path / "t.old")
    assert (kept.state, kept.config, kept.last()["step"]) == ("finished", {"lr": 1}, 39)
    assert list(kept.snapshots())[-1] == 40


def test_a_deleted_trial_is_told_in_one_sentence_and_not_made_again(tmp_path):
    trial = Trial(tmp_path / "t", **HOW)
    trial.log(0, {"loss": 1.0})
    shutil.rmtree(tmp_path / "t")
    for write in (
        lambda: trial.log(1, {"loss": 0.5}),
        lambda: trial.save_sample(1, torch.zeros(1, 1, 2, 2)),
        lambda: trial.keep(1, "words", "said"),
        lambda: trial.note(found=3),
        trial.close,
    ):
        with pytest.raises(FileNotFoundError, match=f"{DELETED}.*: '{tmp_path / 't'}'"):
            write()
    assert not (tmp_path / "t").exists()
    with Trial(tmp_path / "t", **HOW) as trial:
        trial.log(0, {"loss": 1.0})
    assert trial.state == "finished"


def test_a_run_whose_folder_is_deleted_ends_at_the_next_save(tmp_path, monkeypatch):
    monkeypatch.setattr(session, "LOOK_S", 1e9)
    trial = Trial(tmp_path / "t", **TRAINED)
    with pytest.raises(FileNotFoundError, match=DELETED):
        train(trial, 15, lambda: shutil.rmtree(tmp_path / "t"))
    assert not (tmp_path / "t").exists()
    assert trial._writer.is_open is False
