import gc
import math
import pickle
import signal
import sys
import weakref
from contextlib import nullcontext
from fractions import Fraction
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from ai.data import Draws, ReplayBuffer, digits_dataset
from ai.train import (
    Classify,
    Hook,
    HookInterface,
    NonFiniteError,
    Snapshots,
    StopTraining,
    Trainer,
    is_logging,
    log,
    opt,
    schedule,
)


class Lines(HookInterface):
    log_interval = 1

    def __init__(self):
        self.lines, self.steps, self.outcome = [], [], None

    def setup(self, run):
        self.run = run

    def step(self, step):
        self.steps.append(step)
        self.lines.append({})

    def log(self, key, value):
        self.lines[-1][key] = value

    def done(self):
        self.outcome = self.run.outcome


def env(model, batch, step):
    return F.cross_entropy(model(batch[0]), batch[1])


def test_steps_equal_a_hand_written_loop(net, batches, any_device):
    model, reference = net().eval().to(any_device), net().eval()
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1)
    model[1].p = reference[1].p = 0.0
    data = [(x.to(any_device), y.to(any_device)) for x, y in batches(5)]
    Trainer(env, data).train(model, torch.optim.SGD(model.parameters(), lr=0.1))
    for x, y in batches(5):
        F.cross_entropy(reference(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    for a, b in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=0 if any_device == "cpu" else 1e-5, atol=0)


def test_accumulation_divides_by_the_true_count(any_device):
    # Micro-batches of 1 and 7 rows: a mean of means would weight the lone row sevenfold.
    torch.manual_seed(0)
    rows = torch.randn(8, 3).to(any_device)
    results = []
    for data, n in (([rows], 1), ([rows[:1], rows[1:]], 2)):
        model = nn.Linear(3, 1).to(any_device)
        nn.init.ones_(model.weight)
        nn.init.zeros_(model.bias)
        Trainer(lambda m, x, s: m(x).square().mean(), data, accumulate=n).train(model, opt.sgd(model, lr=0.1))
        results.append(model.weight.detach().clone())
    assert torch.allclose(*results, atol=1e-6)


@pytest.mark.parametrize(("limit", "wanted"), [(None, 5.0), (4.0, 4.0)])
def test_accumulation_uses_the_weights_that_the_environment_gives_and_clips_the_whole(limit, wanted, any_device):
    x = torch.tensor([[1.0], [3.0]]).to(any_device)
    model = nn.Linear(1, 1, bias=False).to(any_device)
    nn.init.zeros_(model.weight)

    def weighted(model, batch, step):  # the second micro-batch counts three times as much
        return (model(batch) - 1).square().mean(), batch.sum()

    Trainer(weighted, list(x.split(1)), accumulate=2).train(model, opt.sgd(model, lr=1.0, clip_norm=limit))
    # d/dw (w·x - 1)² at 0 is -2x: (1·(-2) + 3·(-6)) / 4 = -5
    assert model.weight.item() == pytest.approx(wanted)


def test_incomplete_accumulation_at_the_end_is_an_update_of_what_is_there(net, batches):
    model = net()
    assert Trainer(env, batches(5), accumulate=2).train(model, opt.sgd(model)) == 3


def test_steplimit_is_absolute(net, batches):
    model = net()
    assert Trainer(env, batches(50)).train(model, opt.sgd(model), step=7, steplimit=10) == 10


def test_timelimit_ends_the_run(net, batches):
    model = net()
    endless = iter(lambda: batches(1)[0], None)
    assert Trainer(env, endless).train(model, opt.sgd(model), timelimit=0.1) > 0  # it returns


def test_environment_receives_the_users_own_model(net, batches):
    model, seen = net(), []
    Trainer(lambda m, b, s: (seen.append(m), env(m, b, s))[1], batches(1)).train(model, opt.sgd(model))
    assert seen[0] is model


@pytest.mark.parametrize("failing", [False, True])
def test_model_whose_forward_is_never_called_is_left_as_it_was(failing, net, batches):
    copies = []

    def inside(model, batch, step):
        copies.append(pickle.dumps(model))  # also while it is being trained
        if failing and step == 1:
            raise RuntimeError("boom")
        return env(model[0], batch, step)

    model = nn.ModuleList([net()])
    with pytest.raises(RuntimeError, match="boom") if failing else nullcontext():
        Trainer(inside, batches(2)).train(model, opt.sgd(model))
    assert not model._forward_hooks
    assert len(copies) == 2


def test_loss_is_the_mean_since_the_last_logged_step():
    model = nn.Linear(1, 1, bias=False)
    hook = Lines()
    hook.log_interval = 2
    Trainer(lambda m, b, step: m(b).sum() * 0 + step, [torch.ones(1, 1)] * 5).train(model, opt.sgd(model), hook)
    assert [line.get("loss") for line in hook.lines] == [0.0, None, 1.5, None, 3.5, None]


def test_an_environment_that_logs_under_the_name_of_its_loss_is_refused():
    def env(model, batch, step):
        log("loss", 100.0)
        return model(batch).sum() * 0 + 2.0

    model = nn.Linear(1, 1)
    trainer = Trainer(env, [torch.ones(1, 1)])
    refused = r"^'loss' is logged by the trainer itself, and again within the step: leave out the latter"
    with pytest.raises(ValueError, match=refused):
        trainer.train(model, opt.sgd(model), Hook(log=lambda step, numbers: None, log_interval=1))
    with pytest.raises(ValueError, match=refused):
        trainer.validate(model, [torch.ones(1, 1)])


def test_logging_is_free_unless_the_step_is_logged(net, batches):
    calls, flags = [], []

    def logging_env(model, batch, step):
        log("lazy", lambda: calls.append(step) or 1.0)
        log("step", step)
        flags.append(is_logging())
        return env(model, batch, step)

    hook, model = Lines(), net()
    hook.log_interval = 3
    Trainer(logging_env, batches(6)).train(model, opt.sgd(model), hook)
    assert calls == [0, 3]
    assert flags == [True, False, False, True, False, False]
    assert hook.lines[3]["step"] == 3.0


def test_gradient_norm_is_logged_before_clipping(any_device):
    model = nn.Linear(1, 1, bias=False).to(any_device)
    hook = Lines()
    Trainer(lambda m, b, s: m(b).sum(), [torch.full((1, 1), 7.0, device=any_device)]).train(
        model, opt.sgd(model, clip_norm=1.0), hook
    )
    assert hook.lines[0]["grad_norm"] == pytest.approx(7.0)
    assert hook.lines[0]["lr"] == 0.01


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_precision_runs_the_forward_pass_in_it_and_keeps_the_parameters(precision, net, batches, any_device):
    dtypes, model = set(), net().to(any_device)
    data = [(x.to(any_device), y.to(any_device)) for x, y in batches(4)]

    def seen(model, batch, step):
        out = model(batch[0])
        dtypes.add(out.dtype)
        return F.cross_entropy(out.float(), batch[1])

    before = [p.detach().clone() for p in model.parameters()]
    Trainer(seen, data, precision=precision).train(model, opt.sgd(model, lr=0.1))
    assert dtypes == {{"bf16": torch.bfloat16, "fp16": torch.float16}[precision]}
    for p, old in zip(model.parameters(), before, strict=True):
        assert p.dtype == torch.float32
        assert not torch.equal(p, old)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_gradients_in_half_precision_are_unscaled_and_divided(precision, net, batches):
    norms = []
    for how in (None, precision):
        hook, model = Lines(), net()
        model[1].p = 0.0
        Trainer(env, batches(20), precision=how, accumulate=2).train(model, opt.sgd(model, lr=0.0), hook)
        norms.append(hook.lines[9]["grad_norm"])  # by then the scaler has found its scale
    assert norms[1] == pytest.approx(norms[0], rel=0.02)


def test_ema_follows_its_formula_and_validation_uses_it(any_device):
    model = nn.Linear(1, 1, bias=False).to(any_device)
    nn.init.zeros_(model.weight)
    seen, x = [], torch.ones(1, 1).to(any_device)
    hook = Hook(val_data=[x], val_interval=2, log=lambda step, numbers: seen.append((step, numbers)))

    def minus(model, batch, step):  # gradient -1: the weight is 1, 2, 3 …
        return -model(batch).sum()

    Trainer(minus, [x] * 2, ema=0.5).train(model, opt.sgd(model, lr=1.0), hook)
    assert model.weight.item() == 2.0
    average = 0.0
    for t, weight in ((1, 1.0), (2, 2.0)):
        decay = min(0.5, t / (t + 9))
        average = decay * average + (1 - decay) * weight
    assert dict(seen)[2]["val_loss"] == pytest.approx(-average)


def test_complex_weights_have_an_average(any_device):
    model = nn.Linear(1, 1, bias=False, dtype=torch.complex64)
    nn.init.zeros_(model.to(any_device).weight)

    def minus(model, batch, step):  # the gradient of -Re - 2 Im is -1 - 2i
        return -model.weight.real.sum() - 2 * model.weight.imag.sum()

    trainer = Trainer(minus, [torch.ones(1)] * 2, ema=0.5)
    trainer.train(model, torch.optim.SGD(model.parameters(), lr=1.0), [])
    assert model.weight.item() == 2 + 4j
    with trainer.averaged(model):
        decays = [min(0.5, t / (t + 9)) for t in (1, 2)]
        share = decays[1] * (1 - decays[0]) + 2 * (1 - decays[1])
        assert model.weight.item() == pytest.approx(share * (1 + 2j), rel=1e-6)


def test_average_outlives_the_run_that_made_it(net, batches):
    model, seen, data = net(), {}, batches(2)
    hook = Hook(val_data=data, log=lambda step, numbers: seen.update(numbers))
    trainer = Trainer(env, batches(8), ema=0.9)
    step = trainer.train(model, opt.sgd(model, lr=0.5), hook)
    own = [p.detach().clone() for p in model.parameters()]
    raw = Trainer(env, []).validate(model, data)
    assert trainer.validate(model, data) == trainer.validate(model, data) == seen["val_loss"] != raw
    with trainer.averaged(model):
        averages = [p.detach().clone() for p in model.parameters()]
        assert Trainer(env, []).validate(model, data) == seen["val_loss"]
    assert all(torch.equal(a, b) for a, b in zip(own, model.parameters(), strict=True))
    assert not torch.equal(own[0], averages[0])
    assert trainer.train(model, opt.sgd(model), step=step, steplimit=step) == step
    assert trainer.validate(model, data) == seen["val_loss"]


def test_second_run_goes_on_with_average_and_scale(net, batches):
    found = []
    for limits in ([12], [5, 12]):
        model, step = net(), 0
        optimizer = opt.sgd(model, lr=0.1)
        trainer = Trainer(env, iter(batches(12)), ema=0.9, precision="fp16")
        for limit in limits:
            step = trainer.train(model, optimizer, step=step, steplimit=limit)
        with trainer.averaged(model):
            averages = [p.detach().clone() for p in model.parameters()]
        found.append([*averages, *(p.detach().clone() for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_average_is_not_that_of_weights_which_something_else_has_written(net, batches):
    model, data = net(), batches(2)
    trainer = Trainer(env, batches(8), ema=0.9)
    with pytest.raises(ValueError, match="there is no moving average of these weights: give the trainer ema"):
        trainer.averaged(model).__enter__()
    trainer.train(model, opt.sgd(model, lr=0.5))
    model.load_state_dict(net().state_dict())
    assert trainer.validate(model, data) == Trainer(env, []).validate(net(), data)
    with pytest.raises(ValueError, match="there is no moving average of these weights: give the trainer ema"):
        trainer.averaged(model).__enter__()


def test_trainer_keeps_no_model_alive(net, batches):
    model = net()
    trainer = Trainer(env, batches(2), ema=0.9)
    trainer.train(model, opt.sgd(model))
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None
    assert trainer.data


def test_average_before_the_first_update_is_the_model_itself(net, batches):
    model = net()
    plain = Trainer(env, []).validate(model, batches(2))
    seen = {}

    class First(HookInterface):
        def setup(self, run):
            seen.update(run.validate(batches(2)))

        def step(self, step):
            pass

    Trainer(env, batches(1), ema=0.999).train(model, opt.sgd(model), First())
    assert seen["loss"] == plain


@pytest.mark.parametrize("policy", ["raise", "stop"])
def test_non_finite_loss_is_noticed_and_nothing_is_saved(policy, net, batches, tmp_path):
    def bad(model, batch, step):
        return env(model, batch, step) * (float("inf") if step == 6 else 1.0)

    model = net()
    hook = Hook(snapshots=Snapshots(tmp_path), save_interval=4, log_interval=100)
    trainer = Trainer(bad, batches(20), on_nan=policy)
    if policy == "raise":
        with pytest.raises(NonFiniteError, match=r"the loss is not finite by step 8"):
            trainer.train(model, opt.sgd(model), hook)
    else:
        assert trainer.train(model, opt.sgd(model), hook) == 8
    assert [p.name for p in Snapshots(tmp_path).all()] == ["000000004"]


def test_gradients_that_ruin_parameters_are_noticed_before_saving(net, batches, tmp_path):
    class Sqrt(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x

        @staticmethod
        def backward(ctx, grad):
            return grad * float("nan")

    model = net()
    hook = Hook(snapshots=Snapshots(tmp_path), save_interval=1)
    trainer = Trainer(lambda m, b, s: Sqrt.apply(env(m, b, s)), batches(1))
    with pytest.raises(NonFiniteError, match=r"parameter '0.weight' is not finite by step 1"):
        trainer.train(model, opt.sgd(model), hook)
    assert Snapshots(tmp_path).all() == []


@pytest.mark.parametrize("factory", [opt.sgd, opt.adam, opt.rmsprop])
def test_skip_leaves_out_exactly_the_bad_updates(factory, net, batches, any_device):
    data = [(x.to(any_device), y.to(any_device)) for x, y in batches(6)]

    def bad(model, batch, step):
        loss = env(model, batch, step)
        return loss * float("nan") if step in (0, 3) else loss

    models = []
    for chosen, bad_env in ((data, bad), ([b for i, b in enumerate(data) if i not in (0, 3)], env)):
        model = net().to(any_device)
        model[1].p = 0.0
        hook = Lines()
        options = {"momentum": 0.9} if factory is not opt.adam else {}
        Trainer(bad_env, chosen, on_nan="skip").train(model, factory(model, lr=0.01, **options), hook)
        models.append((model, hook))
    for a, b in zip(models[0][0].parameters(), models[1][0].parameters(), strict=True):
        assert torch.equal(a, b)
    assert models[0][1].lines[5]["skipped"] == 2


def test_compile_keeps_the_saved_keys(net, batches, tmp_path):
    model = net()
    keys = list(model.state_dict())
    trainer = Trainer(env, batches(2), compile={"backend": "aot_eager"}, ema=0.9)
    trainer.train(model, opt.sgd(model), Hook(snapshots=Snapshots(tmp_path)))
    assert list(model.state_dict()) == keys
    for name in ("model", "ema"):
        assert sorted(load_file(tmp_path / "000000002" / f"{name}.safetensors")) == sorted(keys)
    assert not any("_orig_mod" in name for name, _ in model.named_modules())


def test_schedule_scales_each_groups_own_rate(net, batches):
    model = net()
    optimizer = torch.optim.SGD(
        [{"params": model[0].parameters(), "lr": 1.0}, {"params": model[3].parameters()}], lr=0.1
    )
    seen = []
    Trainer(
        lambda m, b, s: (seen.append([g["lr"] for g in optimizer.param_groups]), env(m, b, s))[1], batches(3)
    ).train(model, optimizer, schedule=lambda step: 1 / (step + 1))
    assert seen == [[1.0, 0.1], [0.5, 0.05], [1 / 3, 0.1 / 3]]


@pytest.mark.parametrize("on_nan", ["raise", "skip"])
@pytest.mark.parametrize(
    ("given", "error"),
    [(None, TypeError), ("0.1", TypeError), (float("nan"), ValueError)],
)
def test_a_schedule_that_gives_no_number_is_named_and_moves_nothing(given, error, on_nan, net, batches):
    model = net()
    optimizer = opt.sgd(model)
    with pytest.raises(error, match=rf"^schedule must give a number, and gave {given!r} at step 1$"):
        Trainer(env, batches(3), on_nan=on_nan).train(
            model, optimizer, schedule=lambda step: given if step == 1 else 0.5
        )
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert optimizer.param_groups[0]["lr"] == 0.005


@pytest.mark.parametrize("given", [0.5, torch.tensor(0.5), np.array(0.5), np.float32(0.5), Fraction(1, 2)])
def test_a_schedule_may_give_any_kind_of_number(given, net, batches):
    optimizer = opt.sgd(model := net(), lr=0.1)
    Trainer(env, batches(1)).train(model, optimizer, [], schedule=lambda step: given)
    assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(0.05)


def test_validation_on_a_loader_without_an_end_is_refused(net):
    loader = digits_dataset().loader(8, train=True)
    with pytest.raises(ValueError, match=r"must end, and a loader with train=True never does"):
        Trainer(Classify(), loader).validate(net(), loader)
    with pytest.raises(ValueError, match=r"must end, and a loader with train=True never does"):
        Hook(val_data=loader)
    buffer = ReplayBuffer(10)
    buffer.add({"x": np.zeros((4, 64), np.float32), "action": np.zeros(3)})
    with pytest.raises(ValueError, match=r"must end, and a loader with train=True never does"):
        Trainer(Classify(), loader).validate(net(), Draws(buffer, 2))


def test_validation_is_weighted_by_rows_and_leaves_training_as_it_was(net):
    model = net().train()
    state = torch.get_rng_state()
    trainer = Trainer(lambda m, b, s: (m(b) * 0 + b[:, :3]).mean() + torch.rand(()) * 0, [])
    data = [torch.full((1, 6), 8.0), torch.full((3, 6), 4.0)]
    assert trainer.validate(model, data) == pytest.approx((8 + 3 * 4) / 4)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ValueError, match="no batch to validate on"):
        trainer.validate(model, [])


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()])
def test_done_always_runs(error, net, batches):
    def bad(model, batch, step):
        raise error

    hook, model = Lines(), net()
    with pytest.raises(type(error)):
        Trainer(bad, batches(1)).train(model, opt.sgd(model), hook)
    assert hook.outcome == "error"
    assert hook.run.error is error


def test_stop_training_ends_in_good_order(net, batches):
    def enough(model, batch, step):
        if step == 3:
            raise StopTraining("enough")
        return env(model, batch, step)

    hook, model = Lines(), net()
    assert Trainer(enough, batches(9)).train(model, opt.sgd(model), hook) == 3
    assert hook.outcome == "stopped"


def test_signal_handlers_are_put_back(net, batches):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    Trainer(env, batches(1)).train(model := net(), opt.sgd(model), Lines())
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def signalled(number, at=2):
    def signals(model, batch, step):
        if step == at:
            signal.raise_signal(number)
        return env(model, batch, step)

    return signals


def test_sigterm_ends_with_status_0_only_if_the_run_is_saved(net, batches, tmp_path, capsys):
    hook, model = Lines(), net()
    with pytest.raises(SystemExit) as exit_:
        Trainer(signalled(signal.SIGTERM), batches(9)).train(model, opt.sgd(model), hook)
    assert exit_.value.code == 143
    assert hook.outcome == "interrupted"
    assert hook.run.step == 3
    assert "SIGTERM: stopped at step 3" in capsys.readouterr().err
    hook = Hook(snapshots=Snapshots(tmp_path))
    with pytest.raises(SystemExit) as exit_:
        Trainer(signalled(signal.SIGTERM), batches(9)).train(model, opt.sgd(model), hook)
    assert exit_.value.code == 0
    assert f"SIGTERM: stopped at step 3; saved in {tmp_path / '000000003'}" in capsys.readouterr().err


def test_signal_to_a_run_that_has_just_been_resumed_finds_it_saved(net, batches, tmp_path):
    class Early(Hook):
        def setup(self, run):
            super().setup(run)
            signal.raise_signal(signal.SIGTERM)

    model = net()
    Trainer(env, batches(9)).train(model, opt.sgd(model), Hook(snapshots=Snapshots(tmp_path)), steplimit=4)
    hook = Early(snapshots=Snapshots(tmp_path), resume=True)
    with pytest.raises(SystemExit) as exit_:
        Trainer(env, batches(9)).train(model, opt.sgd(model), hook)
    assert exit_.value.code == 0


def test_ctrl_c_ends_a_script_only_if_the_run_is_saved(net, batches, tmp_path):
    model = net()
    trainer = Trainer(signalled(signal.SIGINT), batches(9))
    with pytest.raises(KeyboardInterrupt):
        trainer.train(model, opt.sgd(model), Hook())
    with pytest.raises(SystemExit) as exit_:
        trainer.train(model, opt.sgd(model), Hook(snapshots=Snapshots(tmp_path)))
    assert exit_.value.code == 0


@pytest.mark.parametrize("where", ["prompt", "notebook"])
def test_ctrl_c_at_a_prompt_leaves_the_interpreter(where, net, batches, tmp_path, monkeypatch):
    if where == "prompt":
        monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    else:
        monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    model = net()
    with pytest.raises(KeyboardInterrupt):
        Trainer(signalled(signal.SIGINT), batches(9)).train(model, opt.sgd(model), Hook(snapshots=Snapshots(tmp_path)))
    assert int(Snapshots(tmp_path).latest().name) == 3


def test_runs_under_deterministic_algorithms(net, batches):
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        model = net()
        Trainer(Classify(), batches(3), ema=0.9, accumulate=2).train(model, opt.adamw(model), Hook(log_interval=1))
    finally:
        torch.use_deterministic_algorithms(before)


def warped(x, generator):
    """Each image turned by up to 12 degrees, stretched by 12 %, sheared by 0.15 and shifted by 6 % of its size."""
    turn, wide, high, shear, right, down = 2 * torch.rand(6, len(x), generator=generator) - 1
    turn, wide, high, shear = turn * math.pi / 15, (wide * 0.12).exp(), (high * 0.12).exp(), shear * 0.15
    rotation = torch.stack([turn.cos(), -turn.sin(), turn.sin(), turn.cos()], 1).view(-1, 2, 2)
    stretch = torch.stack([wide, shear, torch.zeros_like(wide), high], 1).view(-1, 2, 2)
    theta = torch.cat([rotation @ stretch, 0.12 * torch.stack([right, down], 1)[..., None]], 2)
    return F.grid_sample(x + 1, F.affine_grid(theta, x.shape, align_corners=False), align_corners=False) - 1


@pytest.mark.slow
def test_digits_of_other_writers_are_read():
    torch.manual_seed(0)
    train, test = digits_dataset().split()  # over the stored order, which parts the writers
    block = lambda n_in, n_out: [nn.Conv2d(n_in, n_out, 3, padding=1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU()]  # noqa: E731
    model = nn.Sequential(
        *block(1, 24), *block(24, 24), nn.MaxPool2d(2), *block(24, 48), *block(48, 48), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Dropout(0.3), nn.Linear(192, 10),
    )  # fmt: skip
    numbers = {}
    hook = Hook(val_data=test.loader(360), val_interval=400, log=lambda step, found: numbers.update(found))
    loader = train.then({"x": warped}).loader(64, train=True)
    trainer = Trainer(Classify(label_smoothing=0.1), loader, ema=0.98)
    optimizer = opt.adamw(model, lr=5e-3, weight_decay=0.05)
    trainer.train(model, optimizer, hook, steplimit=400, schedule=schedule.cosine(400, warmup=40))
    assert numbers["val_accuracy"] >= 0.98


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"accumulate": 0}, "accumulate must be at least 1, not 0"),
        ({"precision": "fp8"}, "precision must be None, 'bf16' or 'fp16', not 'fp8'"),
        ({"on_nan": "ignore"}, "on_nan must be 'raise', 'skip' or 'stop', not 'ignore'"),
        ({"ema": 1.0}, r"the decay of ema \(1.0\) must lie in \[0, 1\)"),
    ],
)
def test_bad_options_are_refused_when_the_trainer_is_made(how, message):
    with pytest.raises(ValueError, match=message):
        Trainer(env, [], **how)


def test_bad_arguments_are_refused_before_anything_changes(net, batches):
    model = net()
    with pytest.raises(TypeError, match=r"env must be callable as env\(model, batch, step\), not int"):
        Trainer(3, [])
    with pytest.raises(ValueError, match="the optimizer of 'model' holds none of the model's parameters"):
        Trainer(env, []).train(model, opt.sgd(net()))
    with pytest.raises(ValueError, match=r"step \(-1\) must not be negative"):
        Trainer(env, []).train(model, opt.sgd(model), step=-1)
    with pytest.raises(ValueError, match=r"'model' \(ReLU\) has no parameters"):
        Trainer(env, []).train(nn.ReLU(), opt.sgd(model))
    with pytest.raises(TypeError, match=r"must return a loss tensor or \(loss, weight\), not float"):
        Trainer(lambda m, b, s: 1.0, batches(1)).train(model, opt.sgd(model))
    with pytest.raises(TypeError, match=r"must return a loss tensor or \(loss, weight\), not tuple"):
        Trainer(lambda m, b, s: (next(m.parameters()).sum(),), batches(1)).train(model, opt.sgd(model))
    with pytest.raises(ValueError, match=r"must return one number as its loss, not \(3,\): take a mean"):
        Trainer(lambda m, b, s: next(m.parameters()).sum() * torch.ones(3), batches(1)).train(model, opt.sgd(model))
