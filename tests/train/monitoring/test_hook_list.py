import pytest
import torch
import torch.nn.functional as F

from ai.train import Hook, HookInterface, Snapshots, Trainer, opt


def env(model, batch, step):
    return F.cross_entropy(model(batch[0]), batch[1])


class Lines(HookInterface):
    def __init__(self, every, stop=None, error=None):
        self.log_interval, self.stop, self.error = every, stop, error
        self.lines, self.calls = [], []

    def setup(self, run):
        self.run = run
        self.first = run.step

    def step(self, step):
        self.calls.append(step)
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
