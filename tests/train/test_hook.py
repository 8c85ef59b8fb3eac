import re
import signal
import sys
from itertools import count

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ai.model.saved import read_manifest
from ai.train import EarlyStopping, Hook, HookInterface, Snapshots, Trainer, opt
from ai.train.hooks.interval import Due, as_interval, every, logarithmic, seconds


def env(model, batch, step):
    return F.cross_entropy(model(batch[0]), batch[1])


def test_each_part_runs_at_its_own_steps(net, batches, tmp_path):
    log, tasks, samples, images = [], [], [], []
    hook = Hook(
        log=lambda step, numbers: log.append((step, sorted(numbers))),
        log_interval=5,
        val_data=batches(1),
        val_interval=4,
        task=lambda model, step: tasks.append((step, model.training)) or {"score": 1},
        task_interval=3,
        sampler=lambda model, step: samples.append((step, torch.is_grad_enabled())) or "image",
        sample=lambda step, made: images.append((step, made)),
        sample_interval=logarithmic(1),
        snapshots=Snapshots(tmp_path, keep_last=None),
        save_interval=6,
        sanity=False,
    )
    model = net()
    Trainer(env, batches(10)).train(model, opt.sgd(model), hook)
    assert [step for step, keys in log if "loss" in keys] == [0, 5, 9]
    assert [step for step, keys in log if "val_loss" in keys] == [4, 8, 10]  # and at the end
    assert tasks == [(step, False) for step in (3, 6, 9, 10)]
    assert samples == [(step, False) for step in (1, 2, 4, 8, 10)]
    assert images == [(step, "image") for step in (1, 2, 4, 8, 10)]
    assert [int(p.name) for p in Snapshots(tmp_path).all()] == [6, 10]
    assert model.training


def test_evaluations_do_not_disturb_training(net, batches):
    weights = []
    for how in (
        {},
        {
            "val_data": batches(2),
            "val_interval": 1,
            "task": lambda m, s: {"r": torch.rand(()).item()},
            "task_interval": 2,
        },
    ):
        model = net()
        Trainer(env, batches(6)).train(model, opt.sgd(model, lr=0.1), Hook(**how))
        weights.append(model[0].weight.detach().clone())
    assert torch.equal(*weights)


def test_early_stopping_ends_the_run_and_saves(net, batches, tmp_path):
    hook = Hook(
        val_data=batches(1),
        val_interval=1,
        stopper=EarlyStopping(patience=2, min_delta=10.0),
        snapshots=Snapshots(tmp_path),
    )
    model = net()
    assert Trainer(env, batches(50)).train(model, opt.sgd(model), hook) == 4
    assert int(Snapshots(tmp_path).latest().name) == 4


def test_snapshot_is_ranked_by_what_was_measured_at_its_own_step(net, batches, tmp_path):
    log = {}
    hook = Hook(
        log=lambda step, numbers: log.setdefault(step, {}).update(numbers),
        val_data=batches(1),
        val_interval=4,
        task=lambda model, step: {"score": step},
        task_interval=6,
        snapshots=Snapshots(tmp_path, keep_last=None),
        save_interval=3,
    )
    model = net()
    Trainer(env, batches(13)).train(model, opt.sgd(model), hook)
    metrics = {int(path.name): read_manifest(path)["metrics"] for path in Snapshots(tmp_path).all()}
    assert metrics == {
        3: {},
        6: {"score": 6},
        9: {},
        12: {"score": 12, "val_loss": log[12]["val_loss"]},
        13: {"score": 13, "val_loss": log[13]["val_loss"]},
    }


def test_stopper_of_a_second_run_begins_anew_and_of_a_continued_one_goes_on(net, batches):
    scores = iter([9.0, 0.0, 5.0, 5.5, 6.0, 5.8])
    stopper = EarlyStopping("score", patience=1, mode="max")
    hook = Hook(task=lambda model, step: {"score": next(scores)}, task_interval=1, stopper=stopper, sanity=False)
    model = net()
    trainer = Trainer(env, batches(9))
    assert trainer.train(model, opt.sgd(model), hook, steplimit=2) == 2
    assert (stopper.best, stopper.waited) == (-9.0, 1)
    assert trainer.train(model, opt.sgd(model), hook, steplimit=3) == 3  # were 9.0 the best, it would end at step 1
    assert (stopper.best, stopper.waited) == (-6.0, 0)
    assert trainer.train(model, opt.sgd(model), hook, step=3, steplimit=4) == 4
    assert (stopper.best, stopper.waited) == (-6.0, 1)


def test_time_decides_where_an_interval_is_in_seconds():
    due = Due(seconds(10), 0, 100.0)
    assert [due.at(step, now) for step, now in ((1, 105.0), (2, 110.0), (3, 119.0), (4, 121.0))] == [
        False,
        True,
        False,
        True,
    ]


def test_jumped_turns_do_not_pile_up():
    due = Due(every(10), 0, 0.0)
    assert due.at(35, 0.0)
    assert not due.at(36, 0.0)
    assert due.next_step == 40


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (0, ValueError, "an interval must be at least 1 step, not 0"),
        ("soon", ValueError, "an interval must look like '30s', '5m', '1h' or '1 epoch', not 'soon'"),
        (1.5, TypeError, "an interval must be an int, a string like '30s' or an Interval, not float"),
        ("0s", ValueError, "an interval in seconds must be positive, not 0"),
    ],
)
def test_bad_intervals_are_refused(value, error, message):
    with pytest.raises(error, match=message):
        as_interval(value)


@pytest.mark.parametrize("name", ["log", "val", "task", "sample", "save"])
@pytest.mark.parametrize(("value", "rule"), [(0, "be at least 1 step"), ("x", "look like '30s'"), (1.5, "be an int")])
def test_each_bad_interval_is_named(name, value, rule, batches, tmp_path):
    parts = {"val_data": batches(1), "task": print, "sampler": print, "sample": print, "snapshots": Snapshots(tmp_path)}
    with pytest.raises((ValueError, TypeError), match=f"^{name}_interval must {rule}"):
        Hook(log=print, **parts, **{f"{name}_interval": value})


def test_bad_combinations_are_refused():
    with pytest.raises(ValueError, match="resume=True needs snapshots"):
        Hook(resume=True)
    with pytest.raises(ValueError, match="sampler and sample go together"):
        Hook(sampler=lambda model, step: None)


class Terminal:
    def __init__(self):
        self.text = ""

    def write(self, text):
        self.text += text

    def flush(self):
        pass

    def isatty(self):
        return True


@pytest.mark.parametrize("make", [lambda: Hook(progress=True, log_interval=1), lambda: None], ids=["hook", "no hook"])
def test_progress_shows_rate_and_loss_where_there_is_a_terminal(make, net, batches, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    model = net()
    Trainer(env, batches(30)).train(model, opt.sgd(model), make(), steplimit=30)
    assert "30/30" in terminal.text.rsplit("\r", 1)[-1]  # where it ended, not where it was drawn last
    assert "step/s" in terminal.text or "s/step" in terminal.text
    assert "loss=" in terminal.text
    assert re.search(r"\[\d\d:\d\d<(\d\d:\d\d|\?)", terminal.text)  # the time passed and the time left


def test_bar_of_a_run_without_a_hook_changes_nothing_and_leaves_ctrl_c_alone(net, batches, monkeypatch):
    found, handlers = [], []

    def seen(model, batch, step):
        handlers.append(signal.getsignal(signal.SIGINT))
        return env(model, batch, step)

    for stream in (sys.stderr, Terminal()):
        monkeypatch.setattr(sys, "stderr", stream)
        model = net()
        Trainer(seen, batches(5)).train(model, opt.sgd(model, lr=0.1))
        found.append(model[0].weight.detach().clone())
    assert torch.equal(*found)
    assert set(handlers) == {signal.getsignal(signal.SIGINT)}


def test_progress_takes_the_notebooks_bar_where_there_are_widgets(monkeypatch):
    from types import ModuleType

    import tqdm

    from ai.train.hooks.progress import _bar_class

    assert _bar_class() is tqdm.tqdm
    notebook = ModuleType("tqdm.notebook")
    notebook.tqdm = type("NotebookBar", (), {})
    for name, module in {
        "ipykernel": ModuleType("k"),
        "ipywidgets": ModuleType("w"),
        "tqdm.notebook": notebook,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    assert _bar_class() is notebook.tqdm
    monkeypatch.setitem(sys.modules, "ipywidgets", None)  # its import fails
    assert _bar_class() is tqdm.tqdm


@pytest.mark.parametrize("hook", [Hook(progress=True), None])
def test_progress_is_silent_in_a_file(hook, net, batches, capsys):
    model = net()
    Trainer(env, batches(3)).train(model, opt.sgd(model), hook)
    assert capsys.readouterr().err == ""


def test_a_bar_that_nobody_sees_reads_no_loss(net, batches):
    asked = []

    class Clock(HookInterface):
        """Ten seconds pass from each look to the next: a bar that is shown would read the loss at each step."""

        def setup(self, run):
            clock = count(step=10.0)
            run.time = lambda: next(clock)
            run.recent_losses = lambda: asked.append(run.step) or {}

    model = net()
    assert Trainer(env, batches(5)).train(model, opt.sgd(model), [Clock(), Hook(progress=True)]) == 5
    assert asked == []


def python_calls(hook, net):
    """Names of the functions of ai.train that one step calls, at which nothing is due."""
    found = []

    def note(frame, event, argument):
        if event == "call" and frame.f_globals.get("__name__", "").startswith("ai.train."):
            found.append(f"{frame.f_globals['__name__']}.{frame.f_code.co_name}")

    class Data:
        def __len__(self):
            return 8

        def __iter__(self):
            before = sys.getprofile()
            for step in range(len(self)):
                sys.setprofile(note if step == 5 else before)
                yield torch.ones(2, 6), torch.zeros(2, dtype=torch.int64)

    model = net()
    Trainer(env, Data()).train(model, opt.sgd(model), hook)
    return found


def test_a_step_at_which_nothing_is_due_calls_few_functions_and_no_hook_none_of_hooks(net, batches, tmp_path):
    without = python_calls([], net)
    assert "ai.train.engine.update.__call__" in without
    assert not [name for name in without if "hook" in name]
    assert len(without) <= 12
    full = Hook(
        log=lambda step, numbers: None,
        log_interval=10**9,
        val_data=batches(1),
        val_interval=10**9,
        snapshots=Snapshots(tmp_path),
        save_interval="1h",
        progress=True,
    )
    beside = python_calls(full, net)
    assert sorted(name for name in beside if "hook" in name) == ["ai.train.hook.step", "ai.train.hook.wants_log"]
    assert len(beside) <= 17


def test_models_of_a_multi_trainer_reach_the_task_as_a_dict(batches):
    from ai.train import MultiTrainer

    models = {"a": nn.Linear(6, 3), "b": nn.Linear(6, 3)}
    seen = []
    MultiTrainer(lambda key, m, batch, step: env(m[key], batch, step), batches(2)).train(
        models,
        {key: opt.sgd(m) for key, m in models.items()},
        Hook(task=lambda m, step: seen.append(sorted(m)) or {}, task_interval=1, sanity=False),
    )
    assert seen == [["a", "b"], ["a", "b"]]
