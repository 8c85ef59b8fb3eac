import math

import pytest
import torch
from torch import nn

from ai.train import Ema, Hook, Snapshots, Trainer, opt
from ai.train.snapshot import load_model_state


def test_swap_gives_back_exactly_the_parameters():
    model = nn.Linear(3, 3)
    ema = Ema(model, 0.9)
    with torch.no_grad():
        model.weight.mul_(math.pi)
    ema.update(1)
    before = model.weight.detach().clone()
    with ema.swapped_in():
        assert not torch.equal(model.weight, before)
    assert torch.equal(model.weight, before)


def _walk(model, dtype, steps=600):
    """Parameters that wander about one, as they would in training: what each step left."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        with torch.no_grad():
            model.weight.copy_((1 + 0.05 * torch.randn(model.weight.shape, generator=generator)).to(dtype))
        yield model.weight.detach().double()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_average_of_half_precision_is_that_of_float64(dtype, any_device):
    model = nn.Linear(8, 4, bias=False, dtype=dtype)
    nn.init.zeros_(model.to(any_device).weight)
    ema, exact = Ema(model, 0.99, warmup=False), torch.zeros(4, 8, dtype=torch.float64, device=any_device)
    for step, weight in enumerate(_walk(model, dtype)):
        ema.update(step + 1)
        exact = 0.99 * exact + 0.01 * weight
        if step % 200 == 0:  # to be looked at costs no digit
            with ema.swapped_in():
                torch.testing.assert_close(model.weight, exact.to(dtype), rtol=2e-3, atol=1e-6)
            assert torch.equal(model.weight.double(), weight)
    torch.testing.assert_close(ema.state_dict()["weight"].double(), exact, rtol=1e-5, atol=0)


def test_wide_and_narrow_parameters_of_one_model_are_each_averaged(any_device):
    model = nn.Sequential(nn.Linear(2, 2, dtype=torch.bfloat16), nn.Linear(2, 2), nn.Linear(2, 2, dtype=torch.float64))
    model.to(any_device)
    ema = Ema(model, 0.5, warmup=False)
    before = [p.detach().double().clone() for p in model.parameters()]
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1.0)
    after = [p.detach().double() for p in model.parameters()]
    ema.update(1)
    averages = ema.state_dict()
    assert [a.dtype for a in averages.values()] == [torch.float32] * 4 + [torch.float64] * 2
    for average, old, new in zip(averages.values(), before, after, strict=True):
        torch.testing.assert_close(average.double(), (old + new) / 2, rtol=1e-6, atol=1e-7)


def test_replaced_added_and_removed_parameters_are_followed_at_the_next_update():
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    nn.init.zeros_(model[0].weight)
    kept = model[1].weight.item()
    ema = Ema(model, 0.5, warmup=False)
    model[0].weight = nn.Parameter(torch.full((1, 1), 7.0))  # begins at 7
    ema.update(1)
    with torch.no_grad():
        model[0].weight.fill_(9.0)
        model[1].weight.add_(2.0)
    ema.update(2)
    assert ema.state_dict()["0.weight"].item() == 8.0
    assert ema.state_dict()["1.weight"].item() == pytest.approx(kept + 1)
    model[0] = nn.Linear(1, 1)
    model.append(nn.Linear(1, 1, bias=False))
    ema.update(3)
    assert list(ema.state_dict()) == ["0.weight", "0.bias", "1.weight", "2.weight"]
    for name in ("0.weight", "0.bias", "2.weight"):
        assert torch.equal(ema.state_dict()[name], model.state_dict()[name])
    del model[2], model[0]
    ema.update(4)
    assert ema.state_dict()["0.weight"].item() == pytest.approx(kept + 1.75)  # what was 1.weight, by what it is


def test_block_inside_another_carries_the_averages_too(any_device):
    model = nn.Linear(1, 1, bias=False).to(any_device)
    ema = Ema(model, 0.5, warmup=False)
    start = model.weight.item()
    with torch.no_grad():
        model.weight.add_(2.0)
    ema.update(1)
    with ema.swapped_in():
        with ema.swapped_in():
            assert model.weight.item() == pytest.approx(start + 1)
        assert model.weight.item() == pytest.approx(start + 1)
        for what, call in {
            "save the run": ema.state_dict,
            "update it": lambda: ema.update(2),
            "load it": lambda: ema.load_state_dict({"weight": torch.zeros(1, 1)}),
            "begin it anew": ema.begin,
        }.items():
            with pytest.raises(RuntimeError, match=f"the moving average is swapped in: {what} after the evaluation"):
                call()
    assert model.weight.item() == pytest.approx(start + 2)


def test_state_of_another_shape_is_refused_rather_than_spread():
    ema = Ema(nn.Linear(2, 2))
    state = ema.state_dict() | {"weight": torch.zeros(1, 2)}
    with pytest.raises(ValueError, match=r"has 'weight' in shape \(1, 2\), the model in \(2, 2\)"):
        ema.load_state_dict(state)


def test_frozen_parameters_of_one_byte_are_carried_along():
    model = nn.Linear(2, 2)
    model.scale = nn.Parameter(torch.tensor([0.5, 3.0]).to(torch.float8_e4m3fn), requires_grad=False)
    ema = Ema(model)
    ema.update(1)
    with ema.swapped_in():
        assert model.scale.float().tolist() == [0.5, 3.0]
    assert ema.state_dict()["scale"].dtype == torch.float32


def test_half_precision_model_resumes_its_wide_average_and_an_older_narrow_one(tmp_path):
    def env(model, batch, step):
        return ((model(batch) - step) ** 2).mean()

    def train(limit):
        model = nn.Linear(2, 1, dtype=torch.bfloat16)
        nn.init.ones_(model.weight)
        nn.init.zeros_(model.bias)
        data = [torch.full((2, 2), 1 + i / 8, dtype=torch.bfloat16) for i in range(12)]
        hook = Hook(snapshots=Snapshots(tmp_path / "s"), resume=True)
        trainer = Trainer(env, data, ema=0.9)
        trainer.train(model, opt.sgd(model, lr=0.01), hook, steplimit=limit)
        return load_model_state(Snapshots(tmp_path / "s").latest(), ema=True)

    train(6)
    resumed = train(12)
    (tmp_path / "s").rename(tmp_path / "before")
    whole = train(12)
    assert whole["weight"].dtype == torch.float32
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    ema = Ema(nn.Linear(2, 1, dtype=torch.bfloat16), 0.9)
    ema.load_state_dict({name: value.bfloat16() for name, value in whole.items()})  # as versions before kept it
    assert torch.equal(ema.state_dict()["weight"], whole["weight"].bfloat16().float())
    model = nn.Linear(2, 1, dtype=torch.bfloat16)
    model.load_state_dict(whole)
    assert torch.equal(model.weight, whole["weight"].bfloat16())
    assert not math.isnan(model.bias.item())
