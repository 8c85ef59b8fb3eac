import math
from functools import partial

import pytest
import torch
from torch.testing._internal.distributed.fake_pg import FakeStore

from ai.examples.stylegan2.loss import StyleGAN2Loss, path_lengths
from ai.examples.stylegan2.model import Discriminator, Generator
from ai.train.gan import r1_penalty

TINY = {"imsize": 8, "nc_img": 1, "nc_base": 64, "nc_max": 8}


@pytest.fixture
def networks():
    generator = Generator(z_dim=6, w_dim=6, n_mapping=2, **TINY).init(seed=0).double().eval()
    discriminator = Discriminator(**TINY).init(seed=1).double()
    return {"g": generator, "d": discriminator}


def images(n=4, seed=0):
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


def plain(**changes):
    """The loss without regularisers and mixing, but for `changes`."""
    off = {"r1_interval": 0, "path_interval": 0, "style_mixing": 0.0}
    return StyleGAN2Loss(**(off | changes))


def test_r1_is_the_squared_norm_of_each_images_own_gradient(networks, on_device):
    """Against the full Jacobian, written out; minibatch deviation is off in groups of one."""
    x, penalty = images(3), on_device(lambda d, image: r1_penalty(d(image), image))
    one_by_one = []
    for image in x:
        jacobian = torch.autograd.functional.jacobian(lambda x: networks["d"](x[None])[0, 0], image)
        one_by_one.append(sum(value.item() ** 2 for value in jacobian.flatten()))
    for image, expected in zip(x, one_by_one, strict=True):
        image = image[None].clone().requires_grad_()
        assert penalty(networks["d"], image).item() == pytest.approx(expected, rel=1e-10)


def test_path_length_is_the_norm_of_the_jacobian_transposed_times_a_random_image(networks):
    w = networks["g"].styles(torch.randn(2, 6, generator=torch.Generator().manual_seed(3)).double()).detach()
    w.requires_grad_()
    lengths = path_lengths(networks["g"].synthesis(w), w, torch.Generator().manual_seed(5))

    y = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(5)).double() / math.sqrt(64)
    for row in range(2):
        jacobian = torch.autograd.functional.jacobian(
            lambda style: networks["g"].synthesis(style[None])[0], w[row].detach()
        )
        product = torch.einsum("chw,chwlk->lk", y[row], jacobian)
        expected = math.sqrt(product.square().sum(1).mean().item())
        assert lengths[row].item() == pytest.approx(expected, rel=1e-9)


def test_losses_are_non_saturating_cross_entropies(networks):
    x, loss = images(), plain(seed=7)
    draws = torch.Generator().manual_seed(hash((7, 5, 0)) % 2**63)
    fake = networks["g"].synthesis(loss.styles(networks["g"], 4, None, draws)).detach()
    real_p, fake_p = networks["d"](x).sigmoid(), networks["d"](fake).sigmoid()
    expected = -(real_p.log().mean() + (1 - fake_p).log().mean())
    torch.testing.assert_close(loss("d", networks, {"x": x}, 5), expected)

    draws = torch.Generator().manual_seed(hash((7, 5, 1)) % 2**63)
    fake = networks["g"].synthesis(loss.styles(networks["g"], 4, None, draws))
    expected = -networks["d"](fake).sigmoid().log().mean()
    torch.testing.assert_close(loss("g", networks, {"x": x}, 5), expected)


@pytest.mark.parametrize(("step", "due"), [(0, True), (1, False), (15, False), (16, True)])
def test_r1_is_added_lazily_and_weighted_by_its_interval(networks, step, due, on_device):
    x, gamma = images(), 3.0
    bare = on_device(plain())("d", networks, {"x": x}, step)
    whole = on_device(plain(r1_gamma=gamma, r1_interval=16))("d", networks, {"x": x}, step)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(networks["d"](leaf).sum(), leaf)
    r1 = gradient.flatten(1).square().sum(1).mean()
    torch.testing.assert_close(whole - bare, due * gamma / 2 * 16 * r1)


def test_r1_reaches_the_weights_through_the_second_derivative(networks, on_device):
    """The gradient of R1 with respect to a weight, against central differences."""
    discriminator, x = networks["d"], images(2)
    weight = next(p for name, p in discriminator.named_parameters() if p.ndim == 4)

    def penalty(discriminator, x):
        leaf = x.clone().requires_grad_()
        return r1_penalty(discriminator(leaf), leaf)

    r1 = partial(on_device(penalty), discriminator, x)

    (gradient,) = torch.autograd.grad(r1(), weight)
    index = gradient.abs().flatten().argmax()
    step = 1e-4
    with torch.no_grad():
        weight.view(-1)[index] += step
    above = r1().item()
    with torch.no_grad():
        weight.view(-1)[index] -= 2 * step
    below = r1().item()
    assert gradient.flatten()[index].item() == pytest.approx((above - below) / (2 * step), rel=1e-4)


@pytest.mark.parametrize(("step", "due"), [(0, True), (3, False), (4, True)])
def test_path_penalty_is_lazy_and_its_mean_follows(networks, step, due):
    loss = plain(path_interval=4, path_weight=2.0, path_decay=0.5)
    bare = plain()("g", networks, {"x": images()}, step)
    first = loss("g", networks, {"x": images()}, step)
    if not due:
        torch.testing.assert_close(first, bare)
        assert networks["g"].path_mean.item() == 0
        return
    mean = networks["g"].path_mean.item()
    # With a decay of one half the mean is half the lengths' mean; two lengths l1, l2 give mean (l1 + l2) / 4.
    draws = torch.Generator().manual_seed(hash((0, step, 1)) % 2**63)
    loss.styles(networks["g"], 4, None, draws)
    w = loss.styles(networks["g"], 2, None, draws)
    lengths = path_lengths(networks["g"].synthesis(w), w, draws)
    assert mean == pytest.approx(lengths.mean().item() / 2)
    torch.testing.assert_close(first - bare, 2.0 * 4 * (lengths - mean).square().mean())


def test_the_mean_path_length_is_saved_with_the_generator(networks, tmp_path):
    plain(path_interval=1)("g", networks, {"x": images()}, 0)
    networks["g"].save(tmp_path / "g.safetensors")
    loaded = Generator(z_dim=6, w_dim=6, n_mapping=2, **TINY).double().init(tmp_path / "g.safetensors")
    assert loaded.path_mean == networks["g"].path_mean > 0


@pytest.mark.parametrize("key", ["g", "d"])
def test_validation_leaves_the_regularisers_out(networks, key, on_device):
    batch = {"x": images()}
    with torch.no_grad():
        whole = on_device(plain(r1_interval=1, path_interval=1))(key, networks, batch, 0)
    torch.testing.assert_close(whole, on_device(plain())(key, networks, batch, 0))


def test_discriminator_step_builds_no_graph_of_the_generator(networks):
    loss = StyleGAN2Loss()("d", networks, {"x": images()}, 0)
    loss.backward()
    assert all(p.grad is None for p in networks["g"].parameters())
    assert all(p.grad is not None for p in networks["d"].parameters())


def test_every_generator_parameter_learns_with_and_without_the_path_penalty(networks, on_device):
    networks["g"].train()
    for step in (0, 1):
        networks["g"].zero_grad()
        on_device(StyleGAN2Loss())("g", networks, {"x": images()}, step).backward()
        still = [name for name, p in networks["g"].named_parameters() if p.grad is None or not p.grad.any()]
        assert still == []


def test_style_mixing_switches_latent_at_one_crossover(networks, on_device):
    generator, n = networks["g"], 400
    draws = torch.Generator().manual_seed(0)
    w = on_device(plain(style_mixing=0.75).styles)(generator, n, None, draws)
    changes = (w[:, 1:] != w[:, :-1]).any(2)
    assert changes.sum(1).max() == 1
    assert changes.any(1).double().mean().item() == pytest.approx(0.75, abs=0.07)
    # The crossover is uniform over the borders between style inputs.
    shares = changes.double().mean(0) / 0.75
    torch.testing.assert_close(shares, torch.full_like(shares, 1 / len(shares)), atol=0.1, rtol=0)


def test_augmentation_meets_real_and_generated_images(networks):
    seen = []

    def augment(x, generator):
        seen.append((tuple(x.shape), generator.initial_seed()))
        return x

    plain(augment=augment)("d", networks, {"x": images()}, 1)
    plain(augment=augment)("g", networks, {"x": images()}, 1)
    assert [shape for shape, _ in seen] == [(4, 1, 8, 8)] * 3
    assert len({seed for _, seed in seen}) == 3


def test_half_of_the_real_images_are_mirrored(networks):
    seen = []
    x = images(64)
    plain(mirror=True, augment=lambda x, _: seen.append(x) or x)("d", networks, {"x": x}, 1)
    real = seen[1]
    kept, turned = ((real == given).all((1, 2, 3)) for given in (x, x.flip(3)))
    assert (kept ^ turned).all()
    assert 16 < turned.sum() < 48


def test_labels_reach_both_networks(on_device):
    generator = Generator(z_dim=6, w_dim=6, n_mapping=2, n_classes=3, **TINY).init(seed=0)
    discriminator = Discriminator(n_classes=3, **TINY).init(seed=1)
    models = {"g": generator.eval(), "d": discriminator}
    losses = []
    for label in ([0, 1, 2, 0], [0, 1, 2, 1]):
        batch = {"x": images().float(), "y": torch.tensor(label, dtype=torch.uint8)}
        losses.append([on_device(plain())(key, models, batch, 1).item() for key in "gd"])
    assert losses[0][0] != losses[1][0]
    assert losses[0][1] != losses[1][1]


def test_a_probability_outside_the_unit_interval_is_refused():
    with pytest.raises(ValueError, match=r"style_mixing must be a probability, not 1\.5"):
        StyleGAN2Loss(style_mixing=1.5)


def test_each_rank_draws_latents_of_its_own_at_every_step(networks):
    """In a job of two ranks, of which this process is one and then the other."""
    drawn = {}
    for rank in (0, 1):
        torch.distributed.init_process_group("fake", rank=rank, world_size=2, store=FakeStore())
        try:
            loss = plain(seed=7)
            for key, step in (("d", 0), ("g", 0), ("d", 1), ("g", 1)):
                drawn[rank, key, step] = torch.rand(3, generator=loss._draws(key, step, torch.device("cpu")))
        finally:
            torch.distributed.destroy_process_group()
    assert len({tuple(draw.tolist()) for draw in drawn.values()}) == len(drawn)
    alone = torch.rand(3, generator=plain(seed=7)._draws("d", 0, torch.device("cpu")))
    assert torch.equal(alone, drawn[0, "d", 0])  # rank 0 draws what a lone process does
