import pytest
import torch

from ai.examples.stylegan2.checkpoint import from_published
from ai.examples.stylegan2.config import PRESETS
from ai.examples.stylegan2.model import Discriminator, Generator
from tests.examples import stylegan2_reference as reference

TINY = {"imsize": 16, "nc_base": 128, "nc_max": 16}


def latents(n, dim=12, seed=0):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tiny_generator(**changes):
    return Generator(**({"z_dim": 12, "w_dim": 12, "n_mapping": 2} | TINY | changes)).init(seed=0).eval()


@pytest.mark.parametrize(
    ("config", "n_generator", "n_discriminator"),
    [
        ({"imsize": 256, "nc_base": 32768}, 30_034_338, 28_864_129),
        ({"imsize": 256, "nc_base": 16384}, 24_767_458, 24_001_089),
        ({"imsize": 1024, "nc_base": 32768}, 30_370_060, 29_012_513),
    ],
    ids=["256", "256-half", "1024"],
)
def test_parameter_counts_are_the_published_ones(config, n_generator, n_discriminator):
    with torch.device("meta"):
        assert Generator(**config).n_params == n_generator
        assert Discriminator(**config).n_params == n_discriminator


def test_parameter_counts_of_cifar_are_the_published_ones():
    with torch.device("meta"):
        assert Generator(32, nc_base=32768, n_mapping=2, n_classes=10).n_params == 20_215_315
        build = PRESETS["cifar"]
        discriminator = Discriminator(
            32, nc_base=32768, n_classes=10, architecture=build.architecture, group=build.group
        )
        assert (build.architecture, build.group) == ("orig", 32)
        assert discriminator.n_params == 23_089_664


def test_a_discriminator_without_shortcuts_equals_the_published_formula(on_device):
    """The published CIFAR networks: architecture `orig`, and up to 32 images in a group."""
    _, d = reference.published_state(16, base=128, most=16, n_classes=3, architecture="orig")
    discriminator = from_published(d).double()
    assert discriminator.n_params == reference.n_parameters(d)
    x = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    label = torch.arange(64) % 3
    expected = reference.discriminator(d, x, label, group=32)
    torch.testing.assert_close(on_device(discriminator)(x, label), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("n_classes", [0, 3])
def test_networks_equal_the_published_formulas_with_published_weights(n_classes, on_device):
    """Loads a state dict with the published names, and compares with the slow reference on that same state dict."""
    g, d = reference.published_state(16, base=128, most=16, n_mapping=3, n_classes=n_classes, z_dim=12, w_dim=10)
    generator, discriminator = from_published(g).double().eval(), from_published(d).double().eval()
    z, label = latents(8), torch.arange(8) % n_classes if n_classes else None

    w = reference.mapping(g, z, label)
    torch.testing.assert_close(on_device(generator.mapping)(z, label)[:, 0], w, rtol=1e-12, atol=1e-12)
    styles = w[:, None] + 0.3 * latents(8 * generator.n_styles, 10, 1).view(8, -1, 10)
    image = on_device(generator.synthesis)(styles)
    torch.testing.assert_close(image, reference.synthesis(g, styles), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(
        on_device(generator.synthesis)(styles, noise="none"),
        reference.synthesis(g, styles, noise=False),
        rtol=1e-11,
        atol=1e-11,
    )
    # The deviation within a group is computed in single precision.
    torch.testing.assert_close(
        on_device(discriminator)(image, label), reference.discriminator(d, image, label), rtol=1e-7, atol=1e-7
    )


def test_published_weights_give_the_published_configuration():
    g, d = reference.published_state(64, base=1024, most=32, n_mapping=8, z_dim=16, w_dim=24)
    generator, discriminator = from_published(g), from_published(d)
    assert generator.n_params == reference.n_parameters(g)
    assert discriminator.n_params == reference.n_parameters(d)
    assert (generator.imsize, generator.z_dim, generator.n_classes) == (64, 16, 0)
    torch.testing.assert_close(generator.mapping.w_avg.double(), g["mapping.w_avg"].double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_published_names_that_do_not_fit_are_named(change):
    g, _ = reference.published_state(8, base=64, most=8, n_mapping=2, z_dim=4, w_dim=4)
    if change == "missing":
        del g["synthesis.b8.conv1.noise_strength"]
        message = r"state lacks .*synthesis\.b8\.conv1\.noise_strength"
    else:
        g["synthesis.b8.conv9.weight"] = torch.zeros(1)
        message = r"state has names that StyleGAN2 does not: synthesis\.b8\.conv9\.weight"
    with pytest.raises(ValueError, match=message):
        from_published(g)


def test_the_latent_reaches_the_image_after_init(on_device):
    """Equalised layers that forget `1 / lr_mult` at init give the same image for every latent."""
    generator = tiny_generator()
    image = on_device(generator)(latents(16).float())
    between = image.std(0).mean()
    assert between > 0.1 * image.std()


def test_a_fresh_generator_has_images_and_styles_of_order_one():
    generator = tiny_generator(n_mapping=8)
    z = latents(64).float()
    assert 0.3 < generator.mapping(z).std() < 3
    assert 0.1 < generator(z).std() < 5


def test_conditional_networks_depend_on_every_input(on_device):
    generator, discriminator = tiny_generator(n_classes=3), Discriminator(n_classes=3, **TINY).init(seed=1)
    z = latents(1).float()
    judge = on_device(discriminator)
    first, second = (on_device(generator)(z, torch.tensor([k])) for k in (0, 1))
    assert not torch.allclose(first, second)
    assert not torch.allclose(judge(first, torch.tensor([0])), judge(first, torch.tensor([1])))
    assert not torch.allclose(judge(first, torch.tensor([0])), judge(second, torch.tensor([0])))


def test_every_style_input_reaches_the_image(on_device):
    generator = tiny_generator()
    w = generator.styles(latents(1).float()).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(on_device(generator.synthesis)(w).square().sum(), w)
    assert gradient.abs().sum((0, 2)).min() > 0
    assert w.shape == (1, generator.n_styles, 12)
    assert generator.n_styles == 6


def test_coarse_styles_change_more_of_the_image_than_the_finest(on_device):
    """The last style input feeds only the last toRGB layer: within an image, it acts on each pixel alone."""
    generator = tiny_generator()
    w = generator.styles(latents(2).float())
    swapped = w[:1].clone()
    swapped[:, -1] = w[1:, -1]
    before, after = (on_device(generator.synthesis)(x, noise="none") for x in (w[:1], swapped))
    assert not torch.equal(before, after)


def test_truncation_moves_styles_towards_their_mean(on_device):
    """w' = mean + psi (w - mean); psi 1 leaves styles alone and psi 0 gives the mean, as in section 3 of the paper."""
    generator = tiny_generator()
    generator.measure_w_avg(1000, seed=0)
    z, mean = latents(4).float(), generator.mapping.w_avg
    whole = generator.styles(z)
    torch.testing.assert_close(on_device(generator.styles)(z, truncation=0.3), mean + 0.3 * (whole - mean))
    torch.testing.assert_close(on_device(generator.styles)(z, truncation=0.0), mean.expand_as(whole))
    torch.testing.assert_close(on_device(generator.styles)(z, truncation=1.0), whole)
    cut = on_device(generator.styles)(z, truncation=0.3, truncation_layers=2)
    torch.testing.assert_close(cut[:, :2], (mean + 0.3 * (whole - mean))[:, :2])
    torch.testing.assert_close(cut[:, 2:], whole[:, 2:])


def test_mean_style_is_the_mean_of_the_mapping(any_device):
    generator = tiny_generator().to(any_device)
    generator.measure_w_avg(4000, seed=0)
    expected = generator.mapping(latents(20_000, seed=5).float().to(any_device))[:, 0].mean(0)
    torch.testing.assert_close(generator.mapping.w_avg, expected, atol=0.08, rtol=0)


def test_mean_style_follows_training_only(on_device):
    generator = tiny_generator()
    before = generator.mapping.w_avg.clone()
    on_device(generator.mapping)(latents(4).float())
    torch.testing.assert_close(generator.mapping.w_avg, before, rtol=0, atol=0)
    generator.train()
    w = on_device(generator.mapping)(latents(4).float())[:, 0]
    torch.testing.assert_close(generator.mapping.w_avg, torch.lerp(before, w.mean(0), 1 - 0.998))


def test_noise_is_fresh_in_training_and_fixed_in_evaluation(any_device):
    generator = tiny_generator().to(any_device)
    for name, parameter in generator.named_parameters():
        if name.endswith("strength"):
            torch.nn.init.constant_(parameter, 0.5)
    w = generator.styles(latents(1).float().to(any_device))
    assert torch.equal(generator.synthesis(w), generator.synthesis(w))
    generator.train()
    assert not torch.equal(generator.synthesis(w), generator.synthesis(w))
    assert not torch.equal(generator.synthesis(w, noise="none"), generator.synthesis(w, noise="fixed"))


def test_scores_of_a_batch_depend_on_its_company_only_through_its_group(on_device):
    """Minibatch standard deviation compares images within groups of 4, spread over the batch."""
    discriminator = Discriminator(**TINY).init(seed=0).double()
    x = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    changed = x.clone()
    changed[0] = -changed[0]
    same = (on_device(discriminator)(x) == on_device(discriminator)(changed))[:, 0]
    assert same.tolist() == [False, True] * 4


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Generator(24), "imsize must be a power of 2 of at least 8, not 24"),
        (lambda: Discriminator(16, architecture="skip"), "architecture must be 'resnet' or 'orig', not 'skip'"),
        (lambda: Discriminator(4), "imsize must be a power of 2 of at least 8, not 4"),
        (lambda: tiny_generator()(torch.zeros(2, 5)), r"z must have shape \(batch, 12\), not \(2, 5\)"),
        (lambda: tiny_generator(n_classes=3)(torch.zeros(2, 12)), "label must be given: the network knows 3 classes"),
        (
            lambda: tiny_generator().synthesis(torch.zeros(2, 5, 12)),
            r"w must have shape \(batch, 6, 12\), not \(2, 5, 12\)",
        ),
        (
            lambda: tiny_generator().synthesis(torch.zeros(2, 6, 12), noise="some"),
            "noise must be 'random', 'fixed', 'none' or None, not 'some'",
        ),
        (
            lambda: Discriminator(**TINY)(torch.zeros(2, 3, 8, 8)),
            r"x must have shape \(batch, 3, 16, 16\), not \(2, 3, 8, 8\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
