import copy
import threading
from contextlib import suppress

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ai.train import (
    Hook,
    HookInterface,
    MultiTrainer,
    NonFiniteError,
    Snapshots,
    StopTraining,
    Trainer,
    log,
    opt,
    snapshot,
)


class At(HookInterface):
    """Calls something at one step."""

    def __init__(self, when, what):
        self.when, self.what = when, what

    def step(self, step):
        if step == self.when:
            self.what()

    def wants_log(self, step):
        return False


def env(model, batch, step):
    return F.cross_entropy(model(batch[0]), batch[1])


def by_hand(model, added, data, rate):
    """Plain SGD, two micro-batches an update, `added` from the second update on."""
    for step, pair in enumerate(zip(data[::2], data[1::2], strict=True)):
        (sum(env(model, batch, 0) * len(batch[0]) for batch in pair) / sum(len(b[0]) for b in pair)).backward()
        with torch.no_grad():
            for name, param in model.named_parameters():
                if step > 0 or not name.startswith(added):
                    param -= rate(step) * (0.5 if name.startswith(added) else 1.0) * param.grad
        model.zero_grad()


@pytest.mark.parametrize("schedule", [None, lambda step: 1 / (step + 1)])
def test_a_group_that_a_hook_adds_is_divided_and_scheduled_as_the_others(schedule, net, batches, any_device):
    model, reference = net().to(any_device), net()
    model[1].p = reference[1].p = 0.0
    data = batches(3, rows=8) + batches(3, rows=2)  # uneven micro-batches: a mean of means would differ
    data = data[::2] + data[1::2]
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.2)
    add = At(1, lambda: optimizer.add_param_group({"params": list(model[3].parameters()), "lr": 0.1}))
    there = [(x.to(any_device), y.to(any_device)) for x, y in data]
    assert Trainer(env, there, accumulate=2).train(model, optimizer, add, schedule=schedule) == 3
    by_hand(reference, "3", data, lambda step: 0.2 * (schedule(step) if schedule else 1.0))
    for a, b in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(a.cpu(), b, atol=1e-7 if any_device == "cpu" else 1e-5)


class CutError(Exception):
    pass


@pytest.mark.parametrize("cut", [StopTraining("enough"), CutError()])
def test_what_a_step_that_was_cut_short_left_in_the_gradients_is_no_part_of_the_next(cut, net, batches):
    class Cut(HookInterface):
        def gradients(self, step):
            if step == 2:
                raise cut

    model, reference, data = net(), net(), batches(4)
    model[1].p = reference[1].p = 0.0
    optimizer = opt.sgd(model, lr=0.5)
    with suppress(CutError):
        Trainer(env, data).train(model, optimizer, Cut())
    assert all(p.grad is not None for p in model.parameters())
    Trainer(env, data[2:]).train(model, optimizer, step=2)
    Trainer(env, data).train(reference, opt.sgd(reference, lr=0.5))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), reference.parameters(), strict=True))


def test_what_a_hook_freezes_or_unfreezes_between_rounds_stays_so_and_takes_no_other_models_gradient():
    models = {
        "a": nn.Linear(1, 1, bias=False),
        "b": nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)),
    }
    models["b"][0].requires_grad_(False)
    models["b"][1].requires_grad_(False)
    free = nn.Parameter(torch.ones(()))
    models["b"].register_parameter("free", free)
    before = models["b"][1].weight.item()

    def round_(key, models, batch, step):
        return (models["a"](batch) * models["b"](batch) * models["b"].free).sum()

    def change():
        models["b"][0].requires_grad_(True)
        free.requires_grad_(False)

    taken = []
    optimizers = {key: opt.sgd(model, lr=0.1) for key, model in models.items()}
    for optimizer in optimizers.values():
        optimizer.register_step_pre_hook(
            lambda o, *_: taken.append([p.grad is not None for p in models["b"].parameters()])
        )
    MultiTrainer(round_, [torch.ones(1, 1)] * 3).train(models, optimizers, At(1, change))
    order = [name for name, _ in models["b"].named_parameters()]
    assert order == ["free", "0.weight", "1.weight"]
    # Model a's turn, model b's turn, three times over.
    assert taken == [
        [False] * 3,
        [True, False, False],
        [False] * 3,
        [False, True, False],
        [False] * 3,
        [False, True, False],
    ]
    assert [p.requires_grad for p in models["b"].parameters()] == [False, True, False]
    assert models["b"][1].weight.item() == before


def test_an_average_that_is_switched_on_at_a_resume_begins_at_the_restored_weights(tmp_path):
    def still(model, batch, step):
        return model(batch).sum() * 0

    first = nn.Linear(1, 1, bias=False)
    nn.init.constant_(first.weight, 5.0)
    Trainer(still, [torch.ones(1, 1)] * 9).train(
        first, opt.sgd(first), Hook(snapshots=Snapshots(tmp_path)), steplimit=3
    )
    for how in ("hook", "restore"):
        model = nn.Linear(1, 1, bias=False)
        nn.init.constant_(model.weight, -100.0)
        optimizer = opt.sgd(model)
        trainer = Trainer(still, [torch.ones(1, 1)] * 9, ema=0.999)
        if how == "hook":
            folder = tmp_path
            hook = Hook(snapshots=Snapshots(folder, keep_last=None), resume=True)
            trainer.train(model, optimizer, hook, steplimit=4)
        else:
            step = snapshot.restore(tmp_path / "000000003", model, optimizer)
            trainer.train(model, optimizer, [], step=step, steplimit=4)
        with trainer.averaged(model):
            assert model.weight.item() == 5.0


def test_an_average_begins_at_weights_that_a_hook_loads():
    class Load(HookInterface):
        def setup(self, run):
            nn.init.constant_(run.models["model"].weight, 7.0)

    model = nn.Linear(1, 1, bias=False)
    trainer = Trainer(lambda m, b, s: m(b).sum() * 0, [torch.ones(1, 1)], ema=0.999)
    trainer.train(model, opt.sgd(model), Load())
    with trainer.averaged(model):
        assert model.weight.item() == 7.0


def test_an_average_takes_in_a_part_that_is_added_later():
    model = nn.Sequential(nn.Linear(1, 1, bias=False))
    trainer = Trainer(lambda m, b, s: m[0](b).sum() * 0, [torch.ones(1, 1)] * 3, ema=0.5)
    trainer.train(model, opt.sgd(model), At(1, lambda: model.append(nn.Linear(1, 1, bias=False))))
    nn.init.constant_(model[1].weight, 3.0)
    Trainer(lambda m, b, s: m(b).sum(), []).validate(model, [torch.ones(1, 1)])
    assert model[1].weight.item() == 3.0


class Poisoned(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(6)
        self.fc = nn.Linear(6, 3)
        self.register_buffer("mask", torch.tensor([0.0, -float("inf"), 0.0]))

    def forward(self, x):
        return self.fc(self.norm(x))


@pytest.mark.parametrize("as_peer", [False, True])
def test_skip_puts_back_the_statistics_that_a_bad_batch_has_poisoned(as_peer, batches, tmp_path, any_device):
    torch.manual_seed(0)
    good, data = ([(x.to(any_device), y.to(any_device)) for x, y in batches(4)] for _ in range(2))
    data.insert(2, (torch.full_like(data[0][0], torch.nan), data[0][1]))
    states = []
    for chosen in (data, good):
        torch.manual_seed(1)
        model = Poisoned().to(any_device)
        hook = Hook(snapshots=Snapshots(tmp_path / str(len(chosen))))
        if as_peer:
            other = nn.Linear(3, 3).to(any_device)
            models = {"first": other, "second": model}
            MultiTrainer(
                lambda key, m, b, s: F.cross_entropy(m["first"](m["second"](b[0])), b[1]), chosen, on_nan="skip"
            ).train(models, {"first": opt.sgd(other)}, hook)
        else:
            Trainer(env, chosen, on_nan="skip").train(model, opt.sgd(model, lr=0.1), hook)
        states.append(model.state_dict())
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


def test_poisoned_statistics_are_noticed_before_saving_and_infinities_of_the_beginning_are_not(batches, tmp_path):
    model = Poisoned()

    def poison(model, batch, step):
        if step == 1:
            with torch.no_grad():
                model.norm(batch[0] * torch.nan)
        return env(model, batch, step) if step == 0 else model.fc.weight.sum()

    hook = Hook(snapshots=Snapshots(tmp_path), save_interval=1)
    with pytest.raises(NonFiniteError, match=r"buffer 'norm.running_mean' is not finite by step 2"):
        Trainer(poison, batches(3)).train(model, opt.sgd(model, lr=1e-9), hook)
    assert [path.name for path in Snapshots(tmp_path).all()] == ["000000001"]


def test_an_optimizer_that_steps_by_closure_equals_its_own_loop(net, batches, any_device):
    model, reference = net().eval().to(any_device), net().eval()
    model[1].p = reference[1].p = 0.0
    data = batches(4)
    there = [(x.to(any_device), y.to(any_device)) for x, y in data]
    make = lambda m: torch.optim.LBFGS(m.parameters(), lr=0.1, max_iter=5)  # noqa: E731
    assert Trainer(env, there, accumulate=2).train(model, make(model)) == 2
    optimizer = make(reference)
    for pair in (data[:2], data[2:]):

        def closure(pair=pair):
            optimizer.zero_grad()
            loss = sum(env(reference, batch, 0) for batch in pair) / 2
            loss.backward()
            return loss

        optimizer.step(closure)
    for a, b in zip(model.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(a.cpu(), b, atol=1e-5)
    with pytest.raises(
        ValueError, match=r"precision='fp16' and the optimizer of 'model' \(LBFGS\), which steps by closure"
    ):
        Trainer(env, there, precision="fp16").train(model, make(model))


def test_gradients_are_seen_divided_before_the_optimizer_uses_them(net, batches):
    class Norms(HookInterface):
        def setup(self, run):
            self.run, self.found = run, []

        def wants_log(self, step):
            return False

        def gradients(self, step):
            model = self.run.models["model"]
            self.found.append((step, float(nn.utils.get_total_norm(p.grad for p in model.parameters()))))
            model[3].bias.grad.zero_()

    model, hook = net(), Norms()
    model[1].p = 0.0
    data = batches(4)
    bias = model[3].bias.detach().clone()
    whole = copy.deepcopy(model)
    env(whole, tuple(torch.cat(parts) for parts in zip(*data[:2], strict=True)), 0).backward()
    Trainer(env, data, accumulate=2).train(model, opt.sgd(model, lr=0.1), [hook])
    assert [step for step, _ in hook.found] == [0, 1]
    assert hook.found[0][1] == pytest.approx(
        float(nn.utils.get_total_norm(p.grad for p in whole.parameters())), rel=1e-5
    )
    assert torch.equal(model[3].bias, bias)


def test_parts_in_evaluation_mode_stay_so_and_a_model_in_evaluation_mode_is_trained(batches):
    model = Poisoned()
    model.norm.eval()
    Trainer(env, batches(2)).train(model, opt.sgd(model))
    assert not model.norm.training
    assert model.norm.num_batches_tracked == 0
    model.eval()
    Trainer(env, batches(2)).train(model, opt.sgd(model))
    assert model.norm.training
    assert model.norm.num_batches_tracked == 2


class Weighted(nn.Module):
    """Two losses, weighted by learned logarithms of variances."""

    def __init__(self):
        super().__init__()
        self.log_variance = nn.Parameter(torch.zeros(2))
        self.register_buffer("calls", torch.zeros(()))
        self.frozen = nn.Linear(1, 1).requires_grad_(False)

    def forward(self, model, batch, step):
        self.calls += 1
        losses = torch.stack([model(batch).square().mean(), (model(batch) - 3).square().mean()])
        return (losses * torch.exp(-self.log_variance) + self.log_variance).sum()


def test_a_trained_environment_is_saved_and_restored_with_the_run(tmp_path):
    data = [torch.full((4, 1), float(i)) for i in range(1, 9)]

    def run(folder, limits):
        for limit in limits:
            torch.manual_seed(0)
            model, environment = nn.Linear(1, 1), Weighted()
            optimizer = opt.sgd([*model.parameters(), environment.log_variance], lr=0.01)
            hook = Hook(snapshots=Snapshots(folder), resume=True)
            Trainer(environment, data).train(model, optimizer, hook, steplimit=limit)
        return environment

    whole, cut = run(tmp_path / "whole", [6]), run(tmp_path / "cut", [3, 6])
    assert torch.equal(whole.log_variance, cut.log_variance)
    assert whole.calls == cut.calls == 6
    assert not torch.equal(whole.log_variance, torch.zeros(2))
    assert sorted(snapshot.read(tmp_path / "cut" / "000000006")["states"]["env"]) == ["calls", "log_variance"]


def test_a_trainer_reads_its_environment_and_its_data_when_it_trains(net, batches):
    model, seen = net(), []
    trainer = Trainer(env, [])
    trainer.data = batches(3)
    trainer.env = lambda model, batch, step: (seen.append(step), env(model, batch, step))[1]
    assert trainer.train(model, opt.sgd(model)) == 3
    assert seen == [0, 1, 2]


def test_two_trainers_in_threads_log_each_into_its_own_row(net, batches):
    lines = {}
    meet = threading.Barrier(2, timeout=100)

    def train(name):
        def logging_env(model, batch, step):
            meet.wait()  # both are within a logged step
            log("own", float(name))
            meet.wait()
            return env(model, batch, step)

        model = nn.Sequential(nn.Linear(6, 3))
        lines[name] = []
        hook = Hook(log=lambda step, numbers: lines[name].append(numbers["own"]), log_interval=1)
        Trainer(logging_env, batches(5)).train(model, opt.sgd(model), hook)

    threads = [threading.Thread(target=train, args=(name,)) for name in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert lines == {1: [1.0] * 5, 2: [2.0] * 5}


@pytest.mark.parametrize("where", ["class", "instance", "torch"])
def test_an_optimizer_that_forgets_gradients_in_its_own_way_is_asked_to(where, monkeypatch):
    asked = []

    class Keeps(torch.optim.SGD):
        def zero_grad(self, set_to_none=True):
            asked.append(set_to_none)  # and keeps them: each step moves by all gradients so far

    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    optimizer = (Keeps if where == "class" else torch.optim.SGD)(model.parameters(), lr=1.0)
    if where == "instance":
        optimizer.zero_grad = lambda set_to_none=True: asked.append(set_to_none)
    if where == "torch":  # as tools put their own in its place
        monkeypatch.setattr(torch.optim.Optimizer, "zero_grad", Keeps.zero_grad)
    Trainer(lambda model, batch, step: model(batch).sum(), [torch.ones(1, 1)] * 3).train(model, optimizer)
    assert model.weight.item() == -(1 + 2 + 3)
    assert len(asked) == 4  # at the start, and after each step
