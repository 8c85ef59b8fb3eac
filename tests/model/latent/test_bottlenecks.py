import pytest
import torch
import torch.nn.functional as F

import ai.model as m


@pytest.mark.reference("vq", "the nearest of all codes; van den Oord et al., 2017, equation 3")
def test_each_vector_becomes_its_nearest_code(on_device):
    torch.manual_seed(0)
    net, x = m.vq(7, 3).double(), torch.randn(2, 3, 4, 5).double()
    torch.nn.init.normal_(net.codes)
    out = on_device(net)(x)
    for b in range(2):
        for i in range(4):
            for j in range(5):
                distances = [(x[b, :, i, j] - code).norm().item() for code in net.codes]
                nearest = distances.index(min(distances))
                assert out.indices[b, i, j] == nearest
                torch.testing.assert_close(out.x[b, :, i, j], net.codes[nearest])
    assert on_device(net)(x[:, :, 0, 0]).indices.tolist() == out.indices[:, 0, 0].tolist()


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("short", [torch.bfloat16, torch.float16])
def test_short_types_find_the_nearest_codes_too(short, autocast):
    net, x = m.vq(512, 8), torch.randn(4, 8, 64, generator=torch.Generator().manual_seed(0)) / 1000
    m.init_module(net, seed=0)
    if not autocast:
        net, x = net.to(short), x.to(short)
    wide = (x.movedim(1, -1).double()[..., None, :] - net.codes.double()).square().sum(-1).argmin(-1)
    with torch.autocast("cpu", short, enabled=autocast):
        out = net(x)
    assert (out.indices == wide).float().mean() > 0.998


@pytest.mark.parametrize("offset", [0.0, 10.0, 1000.0])
def test_codes_far_from_zero_are_told_apart(offset, on_device):
    net, x = m.vq(64, 8), torch.randn(500, 8) * 0.01 + offset
    with torch.no_grad():
        net.codes.copy_(torch.randn(64, 8) * 0.01 + offset)
    found = on_device(net.lookup)(on_device(net)(x).indices)
    distance = torch.cdist(x.double(), net.codes.detach().double())
    chosen = (x.double() - found.detach().double()).norm(dim=1)
    torch.testing.assert_close(chosen, distance.min(1).values, rtol=1e-2, atol=0)


def test_a_divergence_beyond_float16_is_finite(on_device):
    x = torch.tensor([[300.0, -15.0]]).half()
    z, divergence = on_device(m.kl().eval())(x)
    assert z.dtype == torch.float16
    assert divergence.item() == pytest.approx(0.5 * (300**2 - 1 + 15), rel=1e-3)


def test_gradients_go_straight_through_and_codes_to_their_inputs(on_device):
    torch.manual_seed(0)
    net = m.vq(4, 3, beta=0.5).double()
    x = torch.randn(6, 3).double().requires_grad_()
    weights = torch.randn(6, 3).double()
    out = on_device(net)(x)
    (straight,) = torch.autograd.grad((out.x * weights).sum(), x, retain_graph=True)
    torch.testing.assert_close(straight, weights)
    nearest = net.codes[out.indices]
    torch.testing.assert_close(out.loss, 1.5 * F.mse_loss(nearest, x))
    by_x, by_codes = torch.autograd.grad(out.loss, (x, net.codes))
    torch.testing.assert_close(by_x, 0.5 * 2 * (x - nearest) / x.numel())
    expected = torch.zeros_like(net.codes).index_add(0, out.indices, 2 * (nearest - x) / x.numel())
    torch.testing.assert_close(by_codes, expected)


@pytest.mark.reference("kl", "diffusers DiagonalGaussianDistribution")
def test_a_latent_is_as_in_diffusers_and_is_drawn_in_training_only(on_device):
    distributions = pytest.importorskip("diffusers.models.autoencoders.vae")
    x = torch.randn(3, 8, 4, 4, generator=torch.Generator().manual_seed(0)) * 3
    x[0, 4] = 100  # beyond what an exponential bears
    theirs = distributions.DiagonalGaussianDistribution(x)
    net = m.kl().eval()
    z, divergence = on_device(net)(x)
    torch.testing.assert_close(z, theirs.mode(), rtol=0, atol=0)
    torch.testing.assert_close(divergence, theirs.kl(), rtol=1e-5, atol=1e-3)
    wide = torch.cat([torch.zeros(20_000, 1), torch.full((20_000, 1), 4.0).log()], 1)
    torch.manual_seed(0)
    assert on_device(net.train())(wide).z.std().item() == pytest.approx(2, abs=0.05)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: m.vq(0, 4), r"n_codes \(0\) must be at least 1"),
        (lambda: m.vq(4, 4, beta=-1), r"beta \(-1\) must be at least 0"),
        (lambda: m.vq(4, 4)(torch.zeros(2, 3)), r"x must be \(batch, 4, …\), got \(2, 3\)"),
        (lambda: m.kl()(torch.zeros(2, 3)), r"x must be \(batch, 2 · nc, …\), got \(2, 3\)"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
