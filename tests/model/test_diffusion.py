import copy
import itertools
import pickle

import cloudpickle
import pytest
import torch
import torch.fx
from torch import nn

import ai.model as m
from ai.model.denoising.row_noise import RowNoise
from ai.model.noise_schedule import ddpm_sigmas, ddpm_time, noise_levels

STD = 0.5


class Gaussian(nn.Module):
    """What a network learns, in the limit, from data N(mean, 0.5²): it undoes EDM's scaling."""

    def __init__(self, mean=0.3, sigma_data=1.0):
        super().__init__()
        self.sigma_data = sigma_data
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float64))

    def forward(self, x, noise, label=None):
        sigma = (4 * noise.double()).exp()[:, None]
        total = (sigma**2 + self.sigma_data**2).sqrt()
        noisy = x.double() * total
        mean = self.mean
        if label is not None:
            mean = torch.where(label < 0, 0.0, label.double())[:, None]
        clean = (STD**2 * noisy + sigma**2 * mean) / (STD**2 + sigma**2)
        return (clean - noisy * (self.sigma_data / total) ** 2) / (sigma * self.sigma_data / total)


def exact(mean=0.3):
    return m.DiffusionModel(Gaussian(mean), [2], sigma_data=1.0).double()


def solution(start, mean=0.3, sigma_max=80.0):
    """The probability flow of Gaussian data, solved by hand: distances from the mean shrink as the deviation does."""
    return mean + (start - mean) * STD / (STD**2 + sigma_max**2) ** 0.5


@pytest.mark.parametrize(("sampler", "order"), [("euler", 1), ("ddim", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_error_falls_with_the_order_of_the_sampler(sampler, order, on_device):
    errors = []
    for steps in (40, 80, 160):
        frames = on_device(exact().sample)(50, steps=steps, seed=0, sampler=sampler, frames=True)
        assert frames.shape == (steps + 1, 50, 2)
        # The last step, from sigma_min to zero, is Euler's in all samplers: judge where it starts.
        scale = (STD**2 + 0.002**2) ** 0.5 / STD
        target = 0.3 + (solution(frames[0]) - 0.3) * scale
        errors.append((frames[-2] - target).square().mean().sqrt().item())
    for coarse, fine in itertools.pairwise(errors):
        assert coarse / fine > 2**order * 0.75, errors


@pytest.mark.parametrize("options", [{"sampler": "ddpm"}, {"sampler": "ddim", "eta": 0.5}, {"churn": 20.0}])
def test_samplers_with_fresh_noise_reach_the_data_distribution(options, on_device):
    x = on_device(exact().sample)(20_000, steps=300, seed=0, **options)
    assert abs(x.mean() - 0.3) < 0.01
    assert abs(x.std() - STD) < 0.015  # 300 steps of fresh noise leave a deviation of 0.491


@pytest.mark.parametrize("schedule", ["edm", "linear", "cosine"])
def test_every_schedule_reaches_the_data_distribution(schedule, on_device):
    x = on_device(exact().sample)(10_000, steps=100, seed=0, schedule=schedule)
    assert abs(x.std() - STD) < 0.02


def test_ddim_step_is_the_posterior_formula_of_ddpm():
    sigma_t, sigma_s = 2.0, 1.2
    alpha_t, alpha_s = 1 / (1 + sigma_t**2), 1 / (1 + sigma_s**2)
    x_t, clean, noise = torch.tensor(0.7), torch.tensor(0.2), torch.tensor(-0.4)
    beta = 1 - alpha_t / alpha_s
    mean = (alpha_s**0.5 * beta * clean + (alpha_t / alpha_s) ** 0.5 * (1 - alpha_s) * x_t * alpha_t**0.5) / (
        1 - alpha_t
    )
    expected = mean + ((1 - alpha_s) / (1 - alpha_t) * beta) ** 0.5 * noise
    from ai.model.sampler import Step, ddpm

    step = Step(lambda x, sigma: clean, lambda: noise)
    found = next(iter(ddpm(step, x_t, [sigma_t, sigma_s])))
    torch.testing.assert_close(found * alpha_s**0.5, expected, rtol=1e-5, atol=1e-6)


def test_guidance_moves_samples_along_the_label(on_device):
    label = torch.ones(2000)
    means = [
        on_device(exact().sample)(2000, steps=20, seed=0, label=label, guidance=g).mean().item()
        for g in (0.0, 1.0, 2.0)
    ]
    assert means == pytest.approx([0.0, 1.0, 2.0], abs=0.03)


def test_edm_preconditioning_is_table_1(on_device):
    seen = {}

    class Net(nn.Module):
        def forward(self, x, noise):
            seen.update(x=x, noise=noise)
            return torch.full_like(x, 2.0)

    model = m.DiffusionModel(Net(), [1], sigma_data=0.5)
    out = on_device(model)(torch.tensor([[3.0]]), torch.tensor([1.2]))
    total = 1.2**2 + 0.5**2
    assert seen["x"].item() == pytest.approx(3 / total**0.5)
    assert seen["noise"].item() == pytest.approx(torch.tensor(1.2).log().item() / 4)
    assert out.item() == pytest.approx(0.25 / total * 3 + 1.2 * 0.5 / total**0.5 * 2)


@pytest.mark.reference('DiffusionModel, precond="ddpm"', "Ho et al., 2020, equation 14")
def test_ddpm_preconditioning_predicts_the_noise_at_a_step(on_device):
    seen = {}

    class Net(nn.Module):
        def forward(self, x, noise):
            seen.update(x=x, noise=noise)
            return torch.full_like(x, 2.0)

    sigma = ddpm_sigmas()[[0, 500, 999]]
    model = m.DiffusionModel(Net(), [1], precond="ddpm").double()
    out = on_device(model)(torch.full((3, 1), 3.0, dtype=torch.float64), sigma)
    torch.testing.assert_close(seen["noise"].cpu(), torch.tensor([0.0, 500.0, 999.0], dtype=torch.float64))
    torch.testing.assert_close(out[:, 0], 3 - 2 * sigma)
    torch.testing.assert_close(seen["x"][:, 0].cpu(), 3 / (1 + sigma**2).sqrt())


def test_noise_levels_are_those_of_the_papers():
    assert noise_levels(18)[:2] == pytest.approx([80.0, 57.586], abs=1e-3)
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    kept = torch.prod(1 - beta)
    torch.testing.assert_close(ddpm_sigmas()[-1], ((1 - kept) / kept).sqrt())
    assert ddpm_time(torch.tensor([1e-9, 1e9])).tolist() == pytest.approx([0.0, 999.0])


def test_sampling_needs_no_outer_no_grad_and_keeps_the_mode():
    net = m.seq(m.fc(2, 2), m.norm.batch(2))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x, noise):
            assert not self.training
            assert not torch.is_grad_enabled()
            return self.net(x)

    model = m.DiffusionModel(Net(), [2]).init(seed=0).train()
    net[1].eval()
    x = model.sample(3, steps=2, seed=0)
    assert not x.requires_grad
    assert model.training
    assert not net[1].training
    torch.testing.assert_close(x, model.sample(3, steps=2, seed=0), rtol=0, atol=0)
    assert (x != model.sample(3, steps=2, seed=1)).any()


def test_label_dropout_takes_labels_in_training_only():
    seen = []

    class Net(nn.Module):
        def forward(self, x, noise, label):
            seen.append(label)
            return x

    model = m.DiffusionModel(Net(), [1], label_dropout=0.5)
    label = torch.arange(1000, dtype=torch.uint8) % 10
    torch.manual_seed(0)
    model(torch.zeros(1000, 1), torch.ones(1000), label)
    dropped = seen[0] == -1
    assert 0.4 < dropped.float().mean() < 0.6
    assert (seen[0][~dropped] == label[~dropped]).all()
    model.eval()(torch.zeros(1000, 1), torch.ones(1000), label)
    assert (seen[1] == label).all()


def test_a_noise_level_may_be_a_number(on_device):
    x = torch.randn(3, 2, dtype=torch.float64)
    torch.testing.assert_close(on_device(exact())(x, 0.7), exact()(x, torch.tensor([0.7] * 3).double()))
    torch.testing.assert_close(on_device(exact())(x, 2), exact()(x, torch.tensor(2.0)))


@pytest.mark.parametrize("options", [{}, {"sampler": "ddpm"}, {"churn": 5.0, "sampler": "euler"}])
def test_a_row_does_not_depend_on_how_many_there_are(options, on_device):
    many, few = (on_device(exact().sample)(n, steps=6, seed=3, **options) for n in (7, 2))
    torch.testing.assert_close(many[:2], few, rtol=1e-12, atol=1e-12)
    assert (many[0] != many[1]).all()


def test_the_noise_of_rows_is_normal_and_uncorrelated():
    draw = RowNoise(500, (33,), seed=0)
    x = torch.stack([draw() for _ in range(20)])  # (calls, rows, places)
    n = x.numel()
    assert abs(x.mean()) < 4 / n**0.5
    assert abs(x.square().mean() - 1) < 4 * (2 / n) ** 0.5
    assert abs(x.pow(4).mean() - 3) < 4 * (96 / n) ** 0.5
    for shifted in (x.roll(1, 0), x.roll(1, 1), x.roll(1, 2), RowNoise(500, (33,), seed=1)()):
        assert abs((x * shifted).mean()) < 4 / n**0.5


# D as each preconditioning defines it, from what its network is to predict of x = clean + σ·n.
TARGETS = {
    "ddpm": lambda clean, n, sigma: n,
    "v": lambda clean, n, sigma: (n - sigma * clean) / (1 + sigma**2) ** 0.5,  # α·n - σ·x₀ with α² + σ² = 1
    "flow": lambda clean, n, sigma: n - clean,
}


@pytest.mark.reference("DiffusionModel, four preconditionings", "closed form of the denoiser")
@pytest.mark.parametrize("precond", TARGETS)
@pytest.mark.parametrize("level", [0.05, 1.0, 20.0])
def test_a_network_that_predicts_its_target_denoises(precond, level, on_device):
    clean, n = torch.randn(2, 3, 2, dtype=torch.float64)
    seen = []

    class Net(nn.Module):
        def forward(self, x, noise):
            seen.append((x, noise))
            return TARGETS[precond](clean, n, level).to(x.device)

    found = on_device(m.DiffusionModel(Net(), [2], precond=precond))(clean + level * n, level)
    torch.testing.assert_close(found, clean, rtol=1e-10, atol=1e-10)
    if precond == "flow":  # the network sees (1 - t)·x₀ + t·n, and t
        time = level / (1 + level)
        torch.testing.assert_close(seen[0][0].cpu(), (1 - time) * clean + time * n)
        assert seen[0][1].tolist() == pytest.approx([time] * 3)


@pytest.mark.reference("DiffusionModel.sample, flow by euler", "Liu et al., 2023, Euler's method")
def test_flow_sampled_by_euler_is_rectified_flows_own_euler(on_device):
    class Velocity(nn.Module):
        def forward(self, x, noise):
            return x * noise[:, None] + 0.3

    model = m.DiffusionModel(Velocity(), [2], precond="flow").double()
    frames = on_device(model.sample)(3, steps=5, seed=0, sampler="euler", schedule="flow", frames=True)
    times = [80 / 81 * (1 - i / 5) for i in range(6)]
    x = frames[0] * (1 - times[0])
    for now, following in itertools.pairwise(times):
        x = x + (following - now) * (x * now + 0.3)
    torch.testing.assert_close(frames[-1], x, rtol=1e-10, atol=1e-10)


def test_a_subclass_may_be_the_network(on_device):
    class Model(m.DiffusionModel):
        def __init__(self):
            super().__init__(shape=[2], label_dropout=0.1)
            self.layers = m.seq(m.fc(3, 16, actv="silu"), m.fc(16, 2))

        def forward(self, x, noise, label=None):
            return self.layers(torch.cat([x, noise[:, None]], 1)) + (0 if label is None else label[:, None])

    class Net(nn.Module):
        def __init__(self, layers):
            super().__init__()
            self.layers = layers

        def forward(self, x, noise, label=None):
            return self.layers(torch.cat([x, noise[:, None]], 1)) + (0 if label is None else label[:, None])

    model = Model().init(seed=0).eval()
    wrapped = m.DiffusionModel(Net(model.layers), [2]).eval()
    x, label = torch.randn(4, 2), torch.ones(4)
    torch.testing.assert_close(on_device(model)(x, 0.5, label), wrapped(x, 0.5, label), rtol=1e-5, atol=1e-6)
    options = {"steps": 4, "seed": 0, "label": label, "guidance": 2.0}
    torch.testing.assert_close(
        on_device(model.sample)(4, **options), wrapped.sample(4, **options), rtol=1e-4, atol=1e-5
    )
    with pytest.raises(NotImplementedError, match="DiffusionModel must be given a net or define forward"):
        m.DiffusionModel(shape=[2])(x, 0.5)


class Points(m.DiffusionModel):
    def __init__(self):
        super().__init__(shape=[2])
        self.layers = m.seq(m.fc(3, 16, actv="silu"), m.fc(16, 2))

    def forward(self, x, noise):
        return self.layers(torch.cat([x, noise[:, None]], 1))


class Doubled(Points):
    def forward(self, x, noise):
        return 2 * super().forward(x, noise)


@pytest.mark.parametrize("cls", [Points, Doubled])
def test_who_calls_or_traces_the_forward_of_a_subclass_gets_the_denoiser(cls):
    model, x, sigma = cls().init(seed=0), torch.randn(4, 2), torch.rand(4) + 0.1
    into = (sigma.square() + 0.25).rsqrt()
    network = model.layers(torch.cat([into[:, None] * x, sigma.log()[:, None] / 4], 1)) * (1 if cls is Points else 2)
    expected = (0.25 * into.square())[:, None] * x + (0.5 * sigma * into)[:, None] * network
    old = torch.__version__ < "2.7"  # whose torch.fx does not follow what depends on a type of numbers
    traced = [] if old else [torch.fx.symbolic_trace(model, concrete_args={"label": None})]
    exported = torch.export.export(model, (x, sigma), strict=True).module()
    compiled = torch.compile(model.forward, backend="eager", fullgraph=True)
    sent = pickle.loads(cloudpickle.dumps(model))
    for call in (model, model.forward, *traced, exported, compiled, sent, copy.deepcopy(model)):
        torch.testing.assert_close(call(x, sigma), expected)


def test_sampling_starts_from_the_noise_that_is_given(on_device):
    noise = torch.randn(4, 2, dtype=torch.float64)
    found = on_device(exact().sample)(4, steps=100, noise=noise)
    torch.testing.assert_close(found, solution(80 * noise), rtol=0.02, atol=0.02)


def test_inversion_finds_the_noise_of_data(on_device):
    x = on_device(exact().sample)(20, steps=200, seed=0)
    noise = on_device(exact().invert)(x, steps=200)
    torch.testing.assert_close(on_device(exact().sample)(20, steps=200, noise=noise), x, rtol=1e-3, atol=5e-3)
    torch.testing.assert_close(solution(80 * noise), x, rtol=0.01, atol=0.01)


def test_an_image_is_kept_in_part(on_device):
    image = torch.tensor([[2.0, -1.0]], dtype=torch.float64)
    calls = []
    weak = on_device(exact().sample)(
        200, steps=50, seed=0, image=image, strength=0.1, callback=lambda i, x: calls.append(i)
    )
    strong = on_device(exact().sample)(200, steps=50, seed=0, image=image)
    assert calls == list(range(5))
    assert (weak - image).abs().mean() < 0.2 < (strong - image).abs().mean()
    painted = on_device(exact().sample)(2000, steps=50, seed=0, image=image, keep=torch.tensor([True, False]))
    assert (painted[:, 0] == 2).all()
    assert painted[:, 1].mean().item() == pytest.approx(0.3, abs=0.05)
    assert painted[:, 1].std().item() == pytest.approx(STD, abs=0.05)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: m.DiffusionModel(m.null(), []), r"shape \(\(\)\) must be the sizes"),
        (lambda: m.DiffusionModel(m.null(), [1], sigma_data=0), r"sigma_data \(0\) must be above 0"),
        (lambda: m.DiffusionModel(m.null(), [1], precond="vp"), r"precond \('vp'\) must be one of edm, ddpm, v, flow"),
        (lambda: m.DiffusionModel(m.null(), [1], label_dropout=1), r"label_dropout \(1\) must lie in"),
        (lambda: exact().sample(0), r"n \(0\) and steps \(32\) must be at least 1"),
        (lambda: exact().sample(1, sampler="huen"), r"sampler \('huen'\) must be one of heun"),
        (lambda: exact().sample(1, schedule="sine"), r"schedule \('sine'\) must be one of edm"),
        (lambda: exact().sample(1, guidance=2), r"guidance \(2\) must be 1 without labels"),
        (lambda: exact().sample(1, label=torch.ones(2)), r"label must have n \(1\) rows, got 2"),
        (lambda: exact().sample(1, sigma_min=90), r"sigma_min \(90\) must be above 0 and below sigma_max \(80.0\)"),
        (lambda: exact().sample(1, eta=0.5), r"eta \(0.5\) must be 0 with sampler 'heun'"),
        (lambda: exact().sample(1, churn=1, sampler="ddim"), r"churn \(1\) must be 0 with sampler 'ddim'"),
        (lambda: exact().sample(1, noise=torch.ones(2, 2)), r"noise must have the shape \(1, 2\), got \(2, 2\)"),
        (lambda: exact().sample(1, strength=0.5), r"strength \(0.5\) must lie in \(0, 1\], and be 1 without an image"),
        (lambda: exact().sample(1, keep=torch.ones(2).bool()), r"keep must be None without an image"),
        (lambda: exact().sample(1, image=torch.ones(2), keep=torch.ones(2)), r"keep must be bool .* got torch.float32"),
        (
            lambda: exact().sample(3, image=torch.ones(3, 4)),
            r"image must have the shape \(2,\) or \(3, 2\), got \(3, 4",
        ),
        (lambda: exact().sample(1, image=torch.ones(2), keep=torch.ones(5).bool()), r"keep must broadcast to \(1, 2\)"),
        (lambda: exact().invert(torch.zeros(1, 2), steps=1), r"steps \(1\) must be at least 2"),
        (lambda: exact().invert(torch.zeros(3, 2), label=torch.ones(1)), r"label must have the 3 rows of x, got 1"),
        (lambda: exact().sample(1, rho=5, schedule="flow"), r"rho \(5\) must be left alone with schedule 'flow'"),
        (lambda: exact().sample(1, sigma_min=0.1, schedule="flow"), r"sigma_min \(0.1\) must be left alone with"),
        (lambda: exact().sample(1, sigma_max=float("inf")), r"below sigma_max \(inf\), a finite number"),
        (lambda: exact().sample(1, churn=float("nan")), r"churn must be a number, got nan"),
        (lambda: exact().sample(1, label=torch.ones(1), guidance=float("inf")), r"guidance \(inf\) must be a finite"),
        (lambda: exact().sample(1, rho=0), r"rho \(0\) must be above 0"),
        (lambda: exact().sample(1, eta=2), r"eta \(2\) must lie in"),
        (lambda: exact().sample(1000, steps=1001, schedule="linear"), r"steps \(1001\) must be at most"),
        (lambda: exact()(torch.zeros(1, 3), torch.ones(1)), r"x must have the shape \(batch, 2\), got \(1, 3\)"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", ["n", "steps"])
def test_a_number_of_samples_or_steps_is_whole(name):
    with pytest.raises(TypeError, match=f"{name} must be a whole number, got 2.0"):
        exact().sample(**({"n": 2, "steps": 2} | {name: 2.0}))
