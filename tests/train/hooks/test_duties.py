"""A hook's duties: each alone, in the order that loses nothing, and what can never happen said at the start."""

import json
import os
import sys
from itertools import count

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ai.train import EarlyStopping, Hook, HookInterface, Run, Snapshots, Trainer, opt, snapshot
from ai.train.early_stopping import direction
from ai.train.hooks.duties import RunTask, Sample, Validate
from ai.train.hooks.interval import Due, as_interval, as_log_interval, epochs
from ai.train.hooks.rows import Rows
from ai.train.saving.files import read_state


def env(model, batch, step):
    return F.cross_entropy(model(batch[0]), batch[1])


def a_run(**how):
    return Run({"model": nn.Linear(1, 1)}, {}, [], **how)


class Once(list):
    """An iterator of the user's own, of which nobody knows whether it begins anew."""

    def __iter__(self):
        return self

    def __next__(self):
        raise AssertionError("it was asked for a batch")


def test_each_duty_stands_alone():
    run = a_run(validate=lambda data: {"loss": float(sum(data))}, step=7)
    assert Validate([1, 2, 3], 10).do(run) == {"val_loss": 6.0}
    assert Validate([1, 2, 3], 10).try_out(run) == {"val_loss": 1.0}
    assert Validate(Once([1, 2, 3]), 10).try_out(run) is None  # it may use the data up
    assert RunTask(lambda model, step: {"score": step}, 5).do(run) == {"score": 7.0}
    taken = []
    assert (
        Sample(lambda model, step: (model.training, step), lambda step, made: taken.append((step, made)), 5).do(run)
        == {}
    )
    assert taken == [(7, (False, 7))]
    with pytest.raises(TypeError, match="task must return a dict of numbers, not float"):
        RunTask(lambda model, step: 1.0, 5).do(run)


@pytest.mark.parametrize("once", [iter([1]), (x for x in [1]), map(abs, [1]), zip([1], [2], strict=True), count()])
def test_validation_data_that_can_be_run_through_only_once_are_refused(once):
    with pytest.raises(TypeError, match=rf"val_data must be there for each validation, and a {type(once).__name__} "):
        Hook(val_data=once)


@pytest.mark.parametrize("part", ["val", "sample", "task", "save"])
@pytest.mark.parametrize("interval", [50, 1000, "30s"])
def test_an_interval_at_which_nothing_is_to_happen_is_refused(part, interval):
    with pytest.raises(ValueError, match=rf"{part}_interval \({interval}\) needs "):
        Hook(**{f"{part}_interval": interval})
    Hook(**{f"{part}_interval": None})


def test_rows_carry_the_rate_since_the_row_before():
    sent, run = [], a_run()
    run.time = iter([0.0, 2.0, 6.0]).__next__
    rows = Rows(run, lambda step, numbers: sent.append((step, numbers)), None)
    for step, loss in ((10, 1.0), (30, 0.5)):
        run.step = step
        rows.pending["loss"] = loss
        rows.flush()
    rows.flush()
    assert sent == [(9, {"loss": 1.0, "steps_per_s": 5.0}), (29, {"loss": 0.5, "steps_per_s": 5.0})]


@pytest.mark.parametrize("part", ["task", "sampler", "sample", "val_data"])
@pytest.mark.parametrize("when", ["middle", "end"])
def test_what_fails_at_an_evaluation_costs_no_step(part, when, net, batches, tmp_path):
    def fails(*_):
        if seen["step"] > 0:
            raise RuntimeError("a typo")
        return {}

    class Data:
        def __iter__(self):
            fails()
            return iter(batches(1))

    class Note(HookInterface):
        def step(self, step):
            seen["step"] = step

        def wants_log(self, step):
            return False

    seen = {"step": 0}
    how = {
        "task": {"task": fails},
        "sampler": {"sampler": fails, "sample": lambda *_: None},
        "sample": {"sampler": lambda *_: 0, "sample": fails},
        "val_data": {"val_data": Data()},
    }[part]
    intervals = {f"{'val' if part == 'val_data' else 'task' if part == 'task' else 'sample'}_interval": 5}
    hook = Hook(snapshots=Snapshots(tmp_path), save_interval=1000, **how, **(intervals if when == "middle" else {}))
    model = net()
    with pytest.raises(RuntimeError, match="a typo"):
        Trainer(env, batches(9)).train(model, opt.sgd(model), [Note(), hook])
    (saved,) = Snapshots(tmp_path).all()
    assert int(saved.name) == (5 if when == "middle" else 9)
    assert torch.equal(read_state(saved)["models"]["model"]["0.weight"], model[0].weight)


def test_a_snapshot_that_is_due_is_there_before_anything_is_measured(net, batches, tmp_path):
    def task(model, step):
        there[step] = [int(path.name) for path in Snapshots(tmp_path).all()]
        return {}

    there, model = {}, net()
    hook = Hook(task=task, task_interval=2, snapshots=Snapshots(tmp_path), save_interval=2, sanity=False)
    Trainer(env, batches(5)).train(model, opt.sgd(model), hook)
    assert there == {2: [2], 4: [2, 4], 5: [2, 4, 5]}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"task": lambda m, s: {}["x"]}, "'x'"),
        ({"sampler": lambda m, s: {}["x"], "sample": lambda *_: None}, "'x'"),
        (
            {"val_data": 1, "stopper": EarlyStopping("val_acuracy", mode="max")},
            r"the stopper watches 'val_acuracy', and the metrics are \['val_loss'\]",
        ),
        (
            {"val_data": 1, "snapshots": {"best_by": "val_accuracy"}},
            r"best_by is 'val_accuracy', and the metrics are \['val_loss'\]",
        ),
    ],
)
def test_what_would_fail_later_fails_before_the_first_step(how, message, net, batches, tmp_path):
    how = dict(how)
    if "val_data" in how:
        how["val_data"] = batches(2)
    if "snapshots" in how:
        how["snapshots"] = Snapshots(tmp_path, **how["snapshots"])
    model = net()
    before = model[0].weight.detach().clone()
    with pytest.raises(KeyError, match=message):
        Trainer(env, batches(3)).train(model, opt.sgd(model), Hook(**how))
    assert torch.equal(before, model[0].weight)


def test_the_trial_before_the_first_step_can_be_switched_off_and_is_none_of_a_resumed_run(net, batches, tmp_path):
    calls = []

    def task(model, step):
        calls.append(step)
        return {"score": 1.0}

    for limit, sanity in ((3, False), (6, True)):
        model = net()
        hook = Hook(task=task, task_interval=4, snapshots=Snapshots(tmp_path), resume=True, sanity=sanity)
        Trainer(env, batches(9)).train(model, opt.sgd(model), hook, steplimit=limit)
    assert calls == [3, 4, 6]
    model = net()
    Trainer(env, batches(9)).train(model, opt.sgd(model), Hook(task=task, task_interval=4), steplimit=3)
    assert calls[3:] == [0, 3]


def test_a_trial_leaves_training_and_the_data_to_validate_on_as_they_were(net):
    from ai.data import Dataset

    found = []
    for sanity in (True, False):
        data = Dataset({"x": torch.randn(12, 6, generator=torch.Generator().manual_seed(0)), "y": torch.arange(12) % 3})
        val, seen = data.loader(4), {}
        model = net()
        hook = Hook(val_data=val, sanity=sanity, log=lambda step, numbers, seen=seen: seen.update(numbers))
        loader = torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(torch.ones(12, 6), torch.arange(12) % 3), 3, shuffle=True
        )
        Trainer(lambda m, b, s: env(m, tuple(b.values()) if isinstance(b, dict) else b, s), loader).train(
            model, opt.sgd(model, lr=0.1), hook
        )
        found.append((model[0].weight.detach().clone(), seen["val_loss"]))
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1] == found[1][1]


def test_a_stopper_is_asked_where_its_metric_was_measured_and_counts_those_alone(net, batches):
    asked = []

    class Watch(EarlyStopping):
        def __call__(self, step, metrics):
            asked.append((step, sorted(metrics)))
            return super().__call__(step, metrics)

    stopper = Watch("val_loss", patience=2, min_delta=100.0)
    hook = Hook(
        val_data=batches(1), val_interval=10, task=lambda m, s: {"score": 1.0}, task_interval=1, stopper=stopper
    )
    model = net()
    assert Trainer(env, batches(60)).train(model, opt.sgd(model), hook) == 40
    assert [step for step, _ in asked] == [10, 20, 30, 40]


def test_a_climbing_accuracy_does_not_stop_the_run():
    stopper = EarlyStopping("val_accuracy", patience=1)
    assert not any(stopper(step, {"val_accuracy": step / 10}) for step in range(9))
    worse = {"val_accuracy": 0.1}
    assert [stopper(9, measured) for measured in (worse, {"val_loss": 9.0}, {}, worse)] == [False, False, False, True]


@pytest.mark.parametrize(
    ("key", "wanted"),
    [
        ("val_loss", "min"),
        ("val_loss_d", "min"),
        ("fid", "min"),
        ("val_accuracy", "max"),
        ("accuracy_top5", "max"),
        ("val_f1", "max"),
        ("psnr", "max"),
    ],
)
def test_the_direction_of_known_metrics_is_known(key, wanted):
    assert direction(key, None) == wanted


@pytest.mark.parametrize("key", ["win_rate", "lossless", "val_score_loss"])
def test_the_direction_of_others_is_to_be_said(key):
    with pytest.raises(ValueError, match=f"mode must be 'min' or 'max' for '{key}'"):
        EarlyStopping(key)
    with pytest.raises(ValueError, match=f"mode must be 'min' or 'max' for '{key}'"):
        Snapshots("unused", best_by=key)
    assert EarlyStopping(key, mode="max").mode == "max"


def test_parts_without_which_others_can_never_happen_are_named(net, batches, capsys):
    with pytest.raises(ValueError, match=r"val_interval \(50\) needs val_data"):
        Hook(val_interval=50)
    with pytest.raises(ValueError, match=r"stopper \(EarlyStopping\) needs val_data or a task"):
        Hook(stopper=EarlyStopping())
    with pytest.raises(ValueError, match=r"settings must be 'snapshot' or 'script', not 'mine'"):
        Hook(settings="mine")
    model = net()
    hook = Hook(task=lambda m, s: {"score": 1.0}, stopper=EarlyStopping("val_loss"), sanity=False)
    Trainer(env, batches(3)).train(model, opt.sgd(model), hook)
    assert (
        "the stopper watched 'val_loss', which was never measured; the metrics were ['score']"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_snapshot_is_noted_what_was_measured_after_it_was_saved_and_a_resume_makes_what_was_cut_short(
    by_hand, net, batches, tmp_path, monkeypatch
):
    steps = []

    class CutError(Exception):
        pass

    def task(model, step):
        steps.append(step)
        if step == 6 and steps.count(6) == 1:
            raise CutError
        return {"score": float(step)}

    def train():
        model = net()
        optimizer, step = opt.sgd(model), 0
        if by_hand and steps:
            step = snapshot.restore(os.path.relpath(tmp_path), model, optimizer)
        hook = Hook(
            task=task,
            task_interval=3,
            snapshots=Snapshots(tmp_path, keep_last=None),
            save_interval=3,
            resume=not by_hand,
            sanity=False,
        )
        return Trainer(env, batches(9)).train(model, optimizer, hook, step=step)

    monkeypatch.chdir(tmp_path.parent)
    with pytest.raises(CutError):
        train()
    assert train() == 9
    assert steps == [3, 6, 6, 9]
    metrics = {
        path.name: json.loads((path / "manifest.json").read_text())["metrics"] for path in Snapshots(tmp_path).all()
    }
    assert metrics == {f"00000000{step}": {"score": float(step)} for step in (3, 6, 9)}


def test_a_run_of_sixty_steps_shows_more_than_its_first_and_its_last_step_always(net, batches):
    for limit, wanted in ((60, [0, 10, 20, 50, 59]), (250, [0, 10, 20, 50, 100, 200, 249])):
        steps, model = [], net()
        hook = Hook(log=lambda step, numbers, steps=steps: steps.append(step))
        Trainer(env, batches(limit)).train(model, opt.sgd(model), hook)
        assert steps == wanted
    assert as_log_interval(50).next_step(0) == 50
    assert as_log_interval(None) is None


def test_intervals_of_epochs_are_due_when_passes_are_over(net, batches):
    steps, model = [], net()
    hook = Hook(task=lambda m, s: steps.append(s) or {}, task_interval="2 epochs", sanity=False)
    Trainer(env, batches(5)).train(model, opt.sgd(model), hook, epochs=5)
    assert steps == [10, 20, 25]
    assert as_interval("1 epoch").epochs == 1.0
    due = Due(epochs(0.5), 0, 0.0, 10)
    assert [step for step in range(21) if due.at(step, 0.0)] == [5, 10, 15, 20]
    with pytest.raises(ValueError, match="an interval of 1 epochs needs data that has a length"):
        Trainer(env, iter(batches(5))).train(model, opt.sgd(model), Hook(log_interval="1 epoch"))
    with pytest.raises(ValueError, match="an interval in epochs must be positive"):
        as_interval("0 epochs")


def test_the_bar_shows_a_fresh_loss_by_time(net, batches, monkeypatch):
    from ai.train.hooks import progress

    shown = []

    class Bar:
        disable = False

        def update(self, n):
            pass

        def set_postfix(self, numbers, refresh):
            shown.append(numbers["loss"])

        def close(self):
            pass

    monkeypatch.setattr(progress, "_bar_class", lambda: lambda **how: Bar())
    clock = iter(range(10000))
    monkeypatch.setattr("ai.train.engine.ranks.perf_counter", lambda: float(next(clock)))
    model = nn.Linear(1, 1)
    Trainer(lambda m, b, step: m(b).sum() * 0 + step, [torch.ones(1, 1)] * 9).train(
        model, opt.sgd(model), Hook(progress=True, log_interval=1000)
    )
    assert len(shown) >= 8  # each second
    assert float(shown[0]) <= float(shown[4]) <= float(shown[-1])
    assert float(shown[-1]) >= 4.0  # the mean since the last row, not step 0's
    assert sys.stderr
