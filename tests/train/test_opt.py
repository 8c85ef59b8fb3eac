import pytest
import torch
from torch import nn

from ai.train import opt, schedule


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))


@pytest.mark.parametrize(
    ("factory", "plain"),
    [
        (opt.sgd, torch.optim.SGD),
        (opt.adam, torch.optim.Adam),
        (opt.rmsprop, torch.optim.RMSprop),
        (opt.adagrad, torch.optim.Adagrad),
        (opt.nadam, torch.optim.NAdam),
        (opt.radam, torch.optim.RAdam),
    ],
)
def test_steps_equal_torchs_own_plain_form(factory, plain, any_device):
    a, b = small().to(any_device), small()
    first = factory(a, lr=0.01)
    second = plain(b.parameters(), lr=0.01, foreach=False)
    x = torch.randn(5, 3)
    for _ in range(4):
        for model, optimizer, device in ((a, first, any_device), (b, second, "cpu")):
            optimizer.zero_grad()
            model(x.to(device)).square().sum().backward()
            optimizer.step()
    assert isinstance(first, plain)
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        assert torch.allclose(p.cpu(), q, atol=1e-6)


def test_adamw_does_not_decay_norms_and_biases():
    model = small()
    optimizer = opt.adamw(model, weight_decay=0.1)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {name: decay[id(p)] for name, p in model.named_parameters()} == {
        "0.weight": 0.1,
        "0.bias": 0.0,
        "1.weight": 0.0,
        "1.bias": 0.0,
        "2.weight": 0.1,
        "2.bias": 0.0,
    }


def test_layerwise_decay_falls_towards_the_input():
    optimizer = opt.adamw(small(), lr=1.0, groups=opt.layerwise_decay(0.5))
    rates = {tuple(p.shape): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates[(4, 3)] == 0.5  # two blocks, two layers: the norm between belongs to the first
    assert rates[(2, 4)] == 1.0


def test_clipping_travels_with_the_optimizer(any_device):
    model = nn.Linear(2, 1, bias=False).to(any_device)
    for options, wanted in (({"clip_norm": 1.0}, [0.6, 0.8]), ({"clip_value": 3.5}, [3.0, 3.5])):
        nn.init.zeros_(model.weight)
        optimizer = opt.sgd(model, lr=1.0, **options)
        model.weight.grad = torch.tensor([[3.0, 4.0]], device=any_device)
        optimizer.step()
        assert (-model.weight[0]).tolist() == pytest.approx(wanted, rel=1e-4)


def test_build_takes_a_config():
    built = opt.build({"name": "adam", "lr": 0.5, "betas": (0.1, 0.2)}, small())
    assert built.defaults["betas"] == (0.1, 0.2)
    with pytest.raises(ValueError, match=r"must be one of sgd, adam, .*, not 'adma'"):
        opt.build("adma", small())


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"lr \(-1\) must not be negative"):
        opt.sgd(small(), lr=-1)
    with pytest.raises(ValueError, match=r"clip_norm \(0\) must be positive"):
        opt.sgd(small(), clip_norm=0)
    with pytest.raises(ValueError, match=r"factor of layerwise_decay \(0\) must lie in"):
        opt.layerwise_decay(0)
    with pytest.raises(TypeError, match="groups= needs the module itself, not list"):
        opt.sgd([nn.Parameter(torch.zeros(1))], groups=opt.no_decay())


@pytest.mark.parametrize("warmup", [0, 5])
def test_cosine_equals_torchs_annealing(warmup):
    parameter = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    torchs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    ours = schedule.cosine(20 + warmup, warmup=warmup)
    for step in range(20):
        assert ours(step + warmup) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        torchs.step()


def test_schedules_are_pure_functions_of_the_step():
    for rule in (
        schedule.cosine(50, warmup=5),
        schedule.one_cycle(50),
        schedule.wsd(50, 5, 10),
        schedule.sequence((10, schedule.linear(10)), (5, schedule.constant(0.3))),
        schedule.steps([10, 30]),
        schedule.exponential(7),
    ):
        forwards = [rule(step) for step in range(60)]
        assert forwards == [rule(step) for step in reversed(range(60))][::-1]
        assert all(0 <= factor <= 1 for factor in forwards)
        assert all(abs(a - b) < 1e-12 for a, b in zip(forwards[55:], forwards[55:], strict=True))


def test_bad_schedules_are_refused():
    with pytest.raises(ValueError, match=r"warmup \(50\) must lie in \[0, steps\) with steps \(50\)"):
        schedule.cosine(50, warmup=50)
    with pytest.raises(ValueError, match="steps must be at least 1, not 0"):
        schedule.linear(0)
    with pytest.raises(ValueError, match=r"must fit into steps \(10\)"):
        schedule.wsd(10, 6, 5)
