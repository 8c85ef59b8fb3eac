import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ai.train import Classify, Diffusion, Ema, HookInterface, Reconstruct, Regress, Trainer, find_lr, log, opt, profile


class Lines(HookInterface):
    log_interval = 1

    def __init__(self):
        self.seen = {}

    def log(self, key, value):
        self.seen[key] = value


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
@pytest.mark.parametrize("as_dict", [True, False])
def test_classify_takes_classes_of_any_integer_type(dtype, as_dict):
    logits, y = torch.randn(6, 4), torch.arange(6) % 4
    batch = {"x": logits, "y": y.to(dtype)} if as_dict else (logits, y.to(dtype))
    assert Classify()(nn.Identity(), batch, 0).item() == pytest.approx(F.cross_entropy(logits, y).item())


def test_classify_logs_accuracy_and_top_k():
    logits = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [3.0, 1.0, 2.0], [1.0, 3.0, 2.0]])
    model, hook = nn.Linear(3, 3, bias=False), Lines()
    nn.init.eye_(model.weight)
    Trainer(Classify(top_k=(2,)), [(logits, torch.tensor([0, 1, 1, 2]))]).train(model, opt.sgd(model), hook)
    assert hook.seen["accuracy"] == 0.25
    assert hook.seen["accuracy_top2"] == 0.75


def test_classify_takes_mixed_targets():
    logits, y = torch.randn(5, 3), torch.rand(5, 3).softmax(1)
    wanted = -(y * logits.log_softmax(1)).sum(1).mean()
    assert Classify()(nn.Identity(), (logits, y), 0).item() == pytest.approx(wanted.item(), rel=1e-5)


def test_diffusion_weights_every_noise_level_alike():
    # The best denoiser of N(0, s²) has weighted error (σ² + s²)/(σs)² · σ²s²/(σ² + s²) = 1 at every σ.
    s = 0.7
    x = torch.randn(50_000, 1, generator=torch.Generator().manual_seed(0)) * s
    for p_mean in (-2.0, 1.0):
        torch.manual_seed(0)
        env = Diffusion(p_mean=p_mean, p_std=0.3, sigma_data=s)
        found = env(lambda noisy, sigma: noisy * s**2 / (s**2 + sigma[:, None] ** 2), x, 0)
        assert found.item() == pytest.approx(1.0, abs=0.03)


def test_diffusion_of_a_float64_model_is_computed_in_float64():
    x = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scale, seen = torch.tensor(0.7, dtype=torch.float64, requires_grad=True), {}

    def model(noisy, sigma):
        seen.update(noisy=noisy, sigma=sigma[:, None])
        return noisy * scale

    loss = Diffusion(sigma_data=0.5)(model, x, 0)
    loss.backward()
    noisy, sigma = seen["noisy"], seen["sigma"].double()
    weight = (sigma**2 + 0.25) / (sigma * 0.5) ** 2
    assert loss.item() == pytest.approx((weight * (noisy * 0.7 - x) ** 2).mean().item(), rel=1e-13)
    assert scale.grad.item() == pytest.approx((weight * 2 * noisy * (noisy * 0.7 - x)).mean().item(), rel=1e-13)


def test_find_lr_puts_everything_back():
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    optimizer = opt.adam(model, lr=0.5)
    before = model.weight.detach().clone()
    random = torch.get_rng_state()
    x = torch.linspace(-1, 1, 64)[:, None]
    curve = find_lr(Regress(), [(x, 3 * x)], model, optimizer)
    assert torch.equal(model.weight, before)
    assert torch.equal(torch.get_rng_state(), random)
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert not optimizer.state
    assert len(curve.lrs) == len(curve.losses) > 50
    assert 0.01 < curve.suggestion < 2


def test_profile_attributes_time_to_its_part():
    class Slow(HookInterface):
        def step(self, step):
            sum(range(200_000))

    model = nn.Linear(2, 2)
    found = profile(
        Trainer(Regress(), [(torch.ones(1, 2), torch.ones(1, 2))] * 15), model, opt.sgd(model), Slow(), steps=5
    )
    assert max(found.parts_s, key=found.parts_s.get) == "hook"
    assert len(str(found).splitlines()) == 10
    with pytest.raises(ValueError, match="the data ended after 2 of 5 measured steps"):
        profile(Trainer(Regress(), [(torch.ones(1, 2), torch.ones(1, 2))] * 12), model, opt.sgd(model), steps=5)


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


def test_regress_compares_in_float32_what_was_predicted_in_half_precision():
    target = torch.full((1, 1), 1000.4)  # bfloat16 would make it 1000
    loss = Regress()(nn.Identity(), (torch.zeros(1, 1, dtype=torch.bfloat16), target), 0)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(1000.4**2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: Classify(label_smoothing=1), ValueError, r"label_smoothing \(1\) must lie in \[0, 1\)"),
        (lambda: Classify()(nn.Identity(), {"x": 1}, 0), TypeError, r"not a dict with keys \['x'\]"),
        (lambda: Classify()(nn.Identity(), torch.ones(2), 0), TypeError, "not a Tensor"),
        (
            lambda: Regress()(nn.Identity(), (torch.ones(4, 1), torch.ones(4)), 0),
            ValueError,
            r"output \(4, 1\) and y \(4,\) must agree",
        ),
        (lambda: Reconstruct()(nn.Flatten(), torch.ones(2, 1, 2), 0), ValueError, r"x \(2, 1, 2\) must agree"),
        (lambda: Diffusion(p_std=0), ValueError, r"p_std \(0\) must be positive"),
        (lambda: find_lr(Regress(), [], None, None, start=1.0, end=0.1), ValueError, r"start \(1.0\) must be positive"),
    ],
)
def test_bad_input_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_log_takes_one_number():
    def bad(model, batch, step):
        log("pair", torch.ones(2))
        return model(batch).sum()

    model = nn.Linear(1, 1)
    with pytest.raises(ValueError, match=r"log\('pair'\) takes one number, not a tensor of shape \(2,\)"):
        Trainer(bad, [torch.ones(1, 1)]).train(model, opt.sgd(model), Lines())
    log("after", lambda: 1 / 0)  # the failed step does not keep recording
