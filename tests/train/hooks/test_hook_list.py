import signal

import pytest
import torch
import torch.nn.functional as F

from ai.train import EarlyStopping, Hook, HookInterface, Snapshots, Trainer, log, opt
from ai.train.hooks.hook_list import HookList


def env(model, batch, step):
    return F.cross_entropy(model(batch[0]), batch[1])


class Lines(HookInterface):
    def __init__(self, every, stop=None, error=None, raises=(None, None)):
        self.log_interval, self.stop, self.error, self.raises = every, stop, error, raises
        self.lines, self.calls = [], []

    def setup(self, run):
        self.run = run
        self.first = run.step

    def step(self, step):
        self.calls.append(step)
        if step == self.raises[0]:
            if self.raises[1] is not None:
                raise self.raises[1]
            signal.raise_signal(signal.SIGTERM)
        return step == self.stop

    def log(self, key, value):
        if key == "loss":
            self.lines.append(self.calls[-1])

    def done(self):
        self.calls.append("done")
        if self.error:
            raise self.error


def test_each_of_several_hooks_is_asked_and_logs_at_its_own_steps(net, batches):
    model, hooks = net(), [Lines(2), Lines(3, stop=7), Lines(100)]
    assert Trainer(env, batches(20)).train(model, opt.sgd(model), hooks) == 7
    assert [hook.lines for hook in hooks] == [[0, 2, 4, 6], [0, 3, 6], [0]]
    assert all(hook.calls == [*range(8), "done"] for hook in hooks)


def test_one_hook_is_given_once_and_works_in_one_run_at_a_time(net, batches, tmp_path):
    lines = Lines(1)
    with pytest.raises(ValueError, match="hook holds the same Lines twice: give each once, or make a second one"):
        Trainer(env, batches(2)).train(model := net(), opt.sgd(model), [lines, [lines]])
    hook, refused = Hook(snapshots=Snapshots(tmp_path)), []

    def trains_another(model, batch, step):
        with pytest.raises(
            ValueError, match=r"hook \(Hook\) is at work in a run that has not ended: make a second one"
        ):
            Trainer(env, batches(2)).train(other := net(), opt.sgd(other), hook)
        refused.append(step)
        return env(model, batch, step)

    model = net()
    assert Trainer(trains_another, batches(2)).train(model, opt.sgd(model), hook) == 2
    assert refused == [0, 1]
    assert hook.resume_step == 2  # the run that has it was saved at its end
    Trainer(env, batches(3)).train(model := net(), opt.sgd(model), hook)
    assert hook.resume_step == 3


def test_a_hook_of_ones_own_stands_beside_the_ready_made_and_sees_where_the_run_resumes(net, batches, tmp_path):
    def hooks():
        return [Lines(1), Hook(snapshots=Snapshots(tmp_path), resume=True)]

    model = net()
    Trainer(env, batches(9)).train(model, opt.sgd(model), hooks(), steplimit=4)
    mine, ready = hooks()
    Trainer(env, batches(9)).train(model, opt.sgd(model), [mine, ready], steplimit=9)
    assert mine.first == 4
    assert mine.lines == [4, 5, 6, 7, 8]


def test_two_ready_made_hooks_keep_their_states_apart(net, batches, tmp_path):
    scores = {"a": [], "b": []}
    for limit in (4, 8):
        model = net()
        hooks = [
            Hook(task=lambda m, s: {"a": s}, task_interval=3, log=lambda s, n: scores["a"].append((s, n))),
            Hook(task=lambda m, s: {"b": s}, task_interval=5, log=lambda s, n: scores["b"].append((s, n))),
            Hook(snapshots=Snapshots(tmp_path), resume=True),
        ]
        Trainer(env, batches(9)).train(model, opt.sgd(model), hooks, steplimit=limit)
    assert [step for step, numbers in scores["a"] if "a" in numbers] == [3, 4, 6, 8]
    assert [step for step, numbers in scores["b"] if "b" in numbers] == [4, 5, 8]


def test_of_two_hooks_that_save_the_one_that_is_further_resumes(net, batches, tmp_path):
    def hooks():
        folders = {"a": 3, "b": 5}
        return [Hook(snapshots=Snapshots(tmp_path / f), save_interval=n, resume=True) for f, n in folders.items()]

    model = net()
    with pytest.raises(RuntimeError, match="power cut"):
        Trainer(env, batches(9)).train(
            model, opt.sgd(model), [*hooks(), Lines(1, error=None, raises=(8, RuntimeError("power cut")))]
        )
    whole = net()
    Trainer(env, batches(9)).train(whole, opt.sgd(whole), steplimit=9)
    resumed, mine = net(), Lines(1)
    assert Trainer(env, batches(9)).train(resumed, opt.sgd(resumed), [mine, *hooks()], steplimit=9) == 9
    assert mine.first == 6
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert {int(path.name) for folder in "ab" for path in Snapshots(tmp_path / folder).all()} == {3, 5, 6, 9}


@pytest.mark.parametrize("saver_is_first", [False, True])
@pytest.mark.parametrize("limits", [[6, 12], [2, 6, 12]])
def test_each_hook_of_a_resumed_run_stands_where_it_would_without_a_cut(saver_is_first, limits, net, batches, tmp_path):
    def trained(limits, folder):
        for index, limit in enumerate(limits):
            if index != 1:  # the second call goes on with the same objects, in one script
                hooks = [
                    Hook(task=lambda m, s: {"a_loss": 1.0}, task_interval=3, stopper=EarlyStopping("a_loss")),
                    Hook(task=lambda m, s: {"b_loss": 2.0}, task_interval=2, stopper=EarlyStopping("b_loss")),
                    Hook(snapshots=Snapshots(folder), resume=True, save_interval=6),
                ]
                model, step = net(), 0
                optimizer = opt.sgd(model)
            order = hooks[::-1] if saver_is_first else hooks
            step = Trainer(env, batches(20)).train(model, optimizer, order, step=step, steplimit=limit)
        return [(hook._stopping._stopper.best, hook._stopping._stopper.waited) for hook in hooks[:2]]

    assert trained([12], tmp_path / "whole") == [(1.0, 3), (2.0, 5)]
    if len(limits) == 2:
        trained(limits[:1], tmp_path / "cut")
        limits = limits[1:]
    assert trained(limits, tmp_path / "cut") == [(1.0, 3), (2.0, 5)]


@pytest.mark.parametrize("cut", [None, 6])
def test_a_logged_loss_is_the_mean_since_the_hooks_own_last_row(cut, net, tmp_path):
    rows = {"sparse": {}, "dense": {}}

    def ready(name, interval, **more):
        return Hook(log=lambda s, n: rows[name].setdefault(s, n.get("loss")), log_interval=interval, **more)

    for limit in [cut, 9] if cut else [9]:
        model = net()
        hooks = [ready("sparse", 4), ready("dense", 1, snapshots=Snapshots(tmp_path), resume=True)]
        counting = Trainer(lambda model, batch, step: model(batch).sum() * 0 + step, [torch.zeros(1, 6)] * 12)
        counting.train(model, opt.sgd(model), hooks, steplimit=limit)
    assert rows["dense"] == {step: float(step) for step in range(9)}
    assert rows["sparse"][4] == 2.5  # of 1 to 4
    assert rows["sparse"][8] == 6.5


def test_lists_within_lists_are_one_list_and_the_gradients_are_shown_to_each(net, batches):
    seen = []

    class Gradients(HookInterface):
        def gradients(self, step):
            seen.append(step)

    model, lines = net(), Lines(2)
    Trainer(env, batches(2)).train(model, opt.sgd(model), [[Gradients()], HookList([Gradients(), lines])])
    assert seen == [0, 0, 1, 1]
    assert lines.lines == [0]


def test_what_a_hook_logs_of_the_gradients_is_among_the_steps_numbers(net, batches):
    rows = {}

    class Gradients(HookInterface):
        def setup(self, run):
            self.model = run.models["model"]

        def gradients(self, step):
            log("steepest", max(p.grad.abs().max() for p in self.model.parameters()))
            largest.append(max(float(p.grad.abs().max()) for p in self.model.parameters()))

    model, largest = net(), []
    hook = Hook(log=lambda step, numbers: rows.update({step: numbers}), log_interval=2)
    Trainer(env, batches(4), accumulate=2).train(model, opt.sgd(model), [Gradients(), hook])
    assert 0 in rows
    assert rows[0]["steepest"] == pytest.approx(largest[0])
    assert len(largest) == 2


def test_the_status_after_a_signal_is_that_of_the_hook_that_was_told(net, batches, tmp_path):
    hooks = [Hook(snapshots=Snapshots(tmp_path), exit_status=42), Lines(1, raises=(2, None)), Hook()]
    model = net()
    with pytest.raises(SystemExit) as exit_:
        Trainer(env, batches(9)).train(model, opt.sgd(model), hooks)
    assert exit_.value.code == 42


def test_every_hook_is_done_where_one_fails(net, batches):
    class Fails(HookInterface):
        def setup(self, run):
            raise OSError("no disk")

    model = net()
    first, failing, last = Lines(1, error=RuntimeError("first")), Fails(), Lines(1)
    with pytest.raises(RuntimeError, match="first"):
        Trainer(env, batches(2)).train(model, opt.sgd(model), [first, last])
    assert last.calls[-1] == "done"
    with pytest.raises(OSError, match="no disk"):
        Trainer(env, batches(2)).train(model, opt.sgd(model), [last, failing, never := Lines(1)])
    assert last.calls[-1] == "done"
    assert never.calls == []


def test_an_empty_list_is_silent_and_trains_as_no_hook_does(net, batches, capsys):
    found = []
    for hook in ([], None):
        model = net()
        assert Trainer(env, batches(3)).train(model, opt.sgd(model, lr=0.1), hook) == 3
        found.append(model[0].weight.detach().clone())
    assert torch.equal(*found)
    assert capsys.readouterr().err == ""


def test_each_hook_of_a_list_is_checked(net, batches):
    model = net()
    with pytest.raises(TypeError, match=r"hook must have setup, .*, and a int lacks setup"):
        Trainer(env, batches(1)).train(model, opt.sgd(model), [Hook(), 3])
