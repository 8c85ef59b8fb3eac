"""Snapshots belong to a run: whose they are, in which order, and what a resume may change."""

import errno
import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ai.model import saved
from ai.train import Hook, HookInterface, Snapshots, Trainer, opt, schedule, snapshot
from ai.train.saving import files
from ai.train.saving.ownership import Ownership


def env(model, batch, step):
    return F.cross_entropy(model(batch[0]), batch[1])


def names(folder):
    return [int(path.name) for path in Snapshots(folder).all()]


def train(net, batches, folder, limit, *, step=0, resume=False, model=None, **how):
    model = model or net()
    optimizer = opt.sgd(model)
    if step:
        snapshot.restore(folder / f"{step:09d}", model, optimizer)
    hook = Hook(snapshots=Snapshots(folder, **how), save_interval=10, resume=resume)
    return Trainer(env, batches(200)).train(model, optimizer, hook, step=step, steplimit=limit)


def test_a_new_run_keeps_its_own_snapshots_beside_older_ones_of_higher_steps(net, batches, tmp_path):
    train(net, batches, tmp_path, 50, keep_last=2)
    assert names(tmp_path) == [40, 50]
    train(net, batches, tmp_path, 30, keep_last=2)
    assert names(tmp_path) == [40, 50, 20, 30]  # in the order of saving
    assert int(Snapshots(tmp_path).latest().name) == 30
    assert train(net, batches, tmp_path, 40, resume=True, keep_last=2) == 40
    assert names(tmp_path) == [50, 30, 40]
    (aside,) = tmp_path.glob("000000040.*")  # the other run's of the same step
    assert snapshot.read(aside)["step"] == 40
    assert saved.line_of(aside) == saved.line_of(tmp_path / "000000050")
    assert saved.line_of(aside).startswith(aside.suffix[1:])


def test_a_third_run_of_the_same_steps_overwrites_none_of_the_others(net, batches, tmp_path):
    weights = []
    for seed in range(3):
        model = net()
        torch.nn.init.constant_(model[0].weight, seed)
        train(net, batches, tmp_path, 10, model=model)
        weights.append(model.state_dict())
    (newest,) = Snapshots(tmp_path).all()
    found = [snapshot.load_model_state(path) for path in (*tmp_path.glob("000000010.*"), newest)]
    assert len(found) == 3
    for held in weights:
        assert any(all(torch.equal(held[key], one[key]) for key in held) for one in found)


def test_after_going_back_the_next_resume_goes_on_from_there_and_not_from_the_abandoned_end(net, batches, tmp_path):
    train(net, batches, tmp_path, 100, keep_last=None)
    train(net, batches, tmp_path, 85, step=80, keep_last=None)
    line = json.loads((tmp_path / "000000080" / "manifest.json").read_text())["line"]
    assert int(Snapshots(tmp_path).latest().name) == 85
    model = net()
    first = []

    class Note(HookInterface):
        def setup(self, run):
            first.append(run.step)

        def wants_log(self, step):
            return False

    hook = Hook(snapshots=Snapshots(tmp_path), resume=True)
    Trainer(env, batches(200)).train(model, opt.sgd(model), [Note(), hook], steplimit=87)
    assert first == [85]
    manifest = json.loads((tmp_path / "000000085" / "manifest.json").read_text())
    assert manifest["line"] == line is not None


def test_the_best_is_one_of_the_newest_run(net, batches, tmp_path):
    def best_of(values, **how):
        model, scores = net(), iter(values)
        hook = Hook(
            snapshots=Snapshots(tmp_path, best_by="score", **how),
            task=lambda m, s: {"score": next(scores)},
            task_interval=1,
            save_interval=1,
            sanity=False,
        )
        Trainer(env, batches(len(values))).train(model, opt.sgd(model), hook)
        return int(Snapshots(tmp_path, best_by="score").best().name)

    assert best_of([0.1, 0.9, 0.2, 0.3], keep_last=1) == 2
    assert names(tmp_path) == [2, 4]
    assert best_of([0.5, 0.2, 0.1], keep_last=1) == 1


def test_snapshots_without_a_number_are_older_than_those_with_one(net, batches, tmp_path):
    train(net, batches, tmp_path, 20, keep_last=None)
    for path in tmp_path.iterdir():  # as they were before there were numbers
        manifest = json.loads((path / "manifest.json").read_text())
        del manifest["sequence"], manifest["line"]
        (path / "manifest.json").write_text(json.dumps(manifest))
    assert names(tmp_path) == [10, 20]
    assert train(net, batches, tmp_path, 30, resume=True, keep_last=None) == 30
    assert names(tmp_path) == [10, 20, 30]
    train(net, batches, tmp_path, 5, keep_last=None)
    assert names(tmp_path) == [10, 20, 30, 5]


def test_a_damaged_snapshot_neither_stops_pruning_nor_is_pruned(net, batches, tmp_path):
    train(net, batches, tmp_path, 20, keep_last=2)
    (tmp_path / "000000020" / "manifest.json").write_text("{")
    with pytest.warns(RuntimeWarning, match="000000020 is damaged"):
        train(net, batches, tmp_path, 19, resume=True, keep_last=1)
    assert names(tmp_path) == [19, 20]
    assert Snapshots(tmp_path, keep_last=1, keep_best=0).best() is None


def test_a_folder_has_one_owner(net, batches, tmp_path):
    owner = Ownership(tmp_path)
    owner.take()
    with pytest.raises(
        BlockingIOError, match=r"another run writes its snapshots in .*: give each run a folder of its own"
    ):
        train(net, batches, tmp_path, 3)
    owner.give_up()
    assert train(net, batches, tmp_path, 3) == 3
    model = net()
    two = [Hook(snapshots=Snapshots(tmp_path)), Hook(snapshots=Snapshots(tmp_path))]
    with pytest.raises(BlockingIOError, match=r"parallel='ddp' or 'fsdp'"):
        Trainer(env, batches(2)).train(model, opt.sgd(model), two)
    assert train(net, batches, tmp_path, 4) == 4  # given up, also after an error


def test_a_forked_worker_that_lives_on_holds_no_folder(tmp_path):
    owner = Ownership(tmp_path)
    owner.take()
    context = multiprocessing.get_context("fork")
    started, release = context.Event(), context.Event()
    worker = context.Process(target=lambda: (started.set(), release.wait(60)))
    worker.start()
    assert started.wait(60)
    owner.give_up()
    try:
        other = Ownership(tmp_path)
        other.take()
        other.give_up()
    finally:
        release.set()
        worker.join()


@pytest.mark.parametrize("where", ["a file in its place", "no permission"])
def test_a_folder_that_cannot_be_written_is_found_before_the_first_step(where, net, batches, tmp_path, monkeypatch):
    folder = tmp_path / "there"
    if where == "a file in its place":
        folder.write_text("")
    else:

        def refuse(dir):
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    model = net()
    before = model[0].weight.detach().clone()
    with pytest.raises(OSError, match=f"snapshots cannot be written in {folder}: (File exists|Permission denied)"):
        Trainer(env, batches(3)).train(model, opt.sgd(model), Hook(snapshots=Snapshots(folder)))
    assert torch.equal(before, model[0].weight)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_reason_of_a_full_disk_and_the_file_are_told(asynchronous, net, batches, tmp_path, monkeypatch):
    train(net, batches, tmp_path, 10)
    write_pt = files.write_pt
    monkeypatch.setattr(files, "write_pt", lambda path, value: write_pt(Path("/dev/full"), value))
    model = net()
    hook = Hook(snapshots=Snapshots(tmp_path, asynchronous=asynchronous), save_interval=10, resume=True)
    message = r"000000020 was not written \(full: No space left on device\); those before it are as they were"
    with pytest.raises(OSError, match=message) as caught:
        Trainer(env, batches(200)).train(model, opt.sgd(model), hook, steplimit=20)
    assert caught.value.errno == errno.ENOSPC
    assert names(tmp_path) == [10]


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("file", ["model.safetensors", "state.pt", "manifest.json"])
def test_a_full_disk_is_one_clear_error_and_leaves_the_snapshots_before(
    file, asynchronous, net, batches, tmp_path, monkeypatch
):
    train(net, batches, tmp_path, 10)
    full = OSError(errno.ENOSPC, "No space left on device")

    def fail(*_, **__):
        raise (
            RuntimeError("[enforce fail at inline_container.cc:664] PytorchStreamWriter failed")
            if file == "state.pt"
            else full
        )

    if file == "state.pt":
        monkeypatch.setattr(torch, "save", fail)
    else:
        monkeypatch.setattr(files, "write_tensors" if file == "model.safetensors" else "write_manifest", fail)
    model = net()
    hook = Hook(
        snapshots=Snapshots(tmp_path, asynchronous=asynchronous, pickle_model=False), save_interval=10, resume=True
    )
    message = r"snapshot .*000000020 was not written \(.*(No space left|failed).*\); those before it are as they were"
    with pytest.raises(OSError, match=message):
        Trainer(env, batches(200)).train(model, opt.sgd(model), hook, steplimit=25)
    monkeypatch.undo()
    assert names(tmp_path) == [10]
    assert not list(tmp_path.glob(".*"))
    assert train(net, batches, tmp_path, 30, resume=True) == 30


def test_another_class_of_optimizer_and_other_groups_are_refused_in_one_sentence(net, batches, tmp_path):
    train(net, batches, tmp_path, 10)
    model = net()
    for optimizer, message in (
        (
            opt.adam(model),
            r"the optimizer of 'model' is Adam, and the snapshot was saved with SGD: go on with the same",
        ),
        (
            torch.optim.SGD([{"params": model[0].parameters()}, {"params": model[3].parameters()}], lr=0.1),
            r"the optimizer of 'model' has groups of \[2, 2\] parameters, and the snapshot was saved with \[4\]",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            Trainer(env, batches(20)).train(model, optimizer, Hook(snapshots=Snapshots(tmp_path), resume=True))
        with pytest.raises(ValueError, match=message):
            snapshot.restore(tmp_path, model, optimizer)


@pytest.mark.parametrize("way", ["hook", "restore"])
@pytest.mark.parametrize("settings", ["snapshot", "script"])
@pytest.mark.parametrize("how", [None, schedule.constant(0.5)])
def test_whose_learning_rate_holds_after_a_resume_is_said_and_chosen(
    way, settings, how, net, batches, tmp_path, capsys
):
    def optimizer_of(model, lr, momentum, maximize=False):
        return opt.sgd(model, lr=lr, momentum=momentum, maximize=maximize)

    names, model = ("lr", "momentum", "maximize"), net()
    Trainer(env, batches(20)).train(
        model, optimizer_of(model, 0.1, 0.9), Hook(snapshots=Snapshots(tmp_path)), steplimit=2, schedule=how
    )
    model = net()
    optimizer = optimizer_of(model, 0.02, 0.5, maximize=True)
    hook, step = [], 0
    if way == "hook":
        hook = Hook(snapshots=Snapshots(tmp_path), resume=True, settings=settings)
    else:
        step = snapshot.restore(tmp_path, model, optimizer, settings=settings)
    seen = []
    optimizer.register_step_pre_hook(lambda o, *_: seen.append([o.param_groups[0][name] for name in names]))
    Trainer(env, batches(20)).train(model, optimizer, hook, step=step, steplimit=3, schedule=how)
    lr, *others = (0.1, 0.9, False) if settings == "snapshot" else (0.02, 0.5, True)
    assert seen == [[lr * (0.5 if how else 1.0), *others]]
    said = "not the script's: lr 0.1, not 0.02; maximize False, not True; momentum 0.9, not 0.5 (settings='script'"
    assert (said in capsys.readouterr().err) == (settings == "snapshot")


def test_the_same_settings_are_resumed_without_a_word(net, batches, tmp_path, capsys):
    for limit in (3, 6):
        model = net()
        hook = Hook(snapshots=Snapshots(tmp_path), resume=True)
        optimizer = opt.adamw(model, lr=1e-3, betas=(0.8, 0.99))
        Trainer(env, iter(batches(6))).train(model, optimizer, hook, steplimit=limit, schedule=schedule.linear(10))
    assert "settings" not in capsys.readouterr().err


@pytest.mark.parametrize(("resume", "line"), [(True, "run the same command to go on"), (False, "give it resume=True")])
def test_the_message_after_a_signal_says_what_goes_on(resume, line, net, batches, tmp_path, capsys):
    def signalled(model, batch, step):
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return env(model, batch, step)

    model = net()
    hook = Hook(snapshots=Snapshots(tmp_path), resume=resume, exit_status=85)
    with pytest.raises(SystemExit) as end:
        Trainer(signalled, batches(9)).train(model, opt.sgd(model), hook)
    assert end.value.code == 85
    assert line in capsys.readouterr().err


@pytest.mark.parametrize("when", ["middle", "end"])
def test_a_signal_does_not_wait_for_a_whole_validation(when, net, batches, tmp_path):
    seen = []

    class Val:
        def __iter__(self):
            for index, batch in enumerate(batches(50)):
                seen.append(index)
                if index == 3:
                    signal.raise_signal(signal.SIGTERM)
                yield batch

    model = net()
    interval = {"val_interval": 5} if when == "middle" else {}
    hook = Hook(val_data=Val(), snapshots=Snapshots(tmp_path), sanity=False, **interval)
    with pytest.raises(SystemExit) as end:
        Trainer(env, batches(9)).train(model, opt.sgd(model), hook)
    assert end.value.code == 0
    assert len(seen) == 4
    assert names(tmp_path) == [5 if when == "middle" else 9]
    assert model.training
    assert snapshot.read(Snapshots(tmp_path).latest())["states"]["hook"]["unfinished"] == (
        ["validate"] if when == "middle" else []
    )


def test_tied_and_shared_weights_are_stored_whole_and_others_are_not_copied(tmp_path, monkeypatch):
    base = torch.arange(12.0)
    tensors = {"a": base[:6].view(2, 3), "b": base[6:], "tied": base[:6].view(2, 3), "turned": base[:6].view(2, 3).T}
    lone = torch.ones(5)
    given = {}
    from safetensors import torch as safe

    save = safe.save_file
    monkeypatch.setattr(
        safe, "save_file", lambda found, *rest, **how: (given.update(found), save(found, *rest, **how))[1]
    )
    files.write_tensors(tmp_path / "x.safetensors", {**tensors, "lone": lone})
    assert given["lone"].data_ptr() == lone.data_ptr()
    assert given["a"].data_ptr() == base.data_ptr()
    loaded = safe.load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(loaded[name], value) for name, value in tensors.items())


def test_saving_a_module_without_parameters_of_its_own_is_as_before(tmp_path):
    files.write_tensors(tmp_path / "x.safetensors", nn.BatchNorm1d(2).state_dict())
    assert (tmp_path / "x.safetensors").is_file()
