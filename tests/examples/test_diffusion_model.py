import pytest
import torch

from ai.examples.diffusion.model import MLP, UNet

TINY = {"imsize": 8, "nc_img": 2, "n_classes": 3, "nc": 8, "nc_mult": (1, 2), "n_blocks": 1, "attn_sizes": (4,)}


def ddpmpp_parameters(*, nc, nc_mult, n_blocks, attn_sizes, imsize, nc_img, n_classes):
    """Counts the parameters of the published network from its description, block by block."""
    dim = 4 * nc

    def linear(n1, n2):
        return n1 * n2 + n2

    def conv(n1, n2, k):
        return n1 * n2 * k * k + n2

    def block(n1, n2, *, resampled=False, attn=False):
        count = 2 * n1 + conv(n1, n2, 3) + linear(dim, n2) + 2 * n2 + conv(n2, n2, 3)
        if n1 != n2 or resampled:
            count += conv(n1, n2, 1)
        if attn:
            count += 2 * n2 + conv(n2, 3 * n2, 1) + conv(n2, n2, 1)
        return count

    total = linear(nc, dim) + linear(dim, dim) + conv(nc_img, nc, 3)
    total += linear(n_classes, nc) if n_classes else 0
    width, skips = nc, [nc]
    for level, mult in enumerate(nc_mult):
        if level:
            total += block(width, width, resampled=True)
            skips.append(width)
        for _ in range(n_blocks):
            total += block(width, nc * mult, attn=imsize >> level in attn_sizes)
            width = nc * mult
            skips.append(width)
    total += block(width, width, attn=True) + block(width, width)
    for level in range(len(nc_mult) - 1, -1, -1):
        if level < len(nc_mult) - 1:
            total += block(width, width, resampled=True)
        for i in range(n_blocks + 1):
            attn = i == n_blocks and imsize >> level in attn_sizes
            total += block(width + skips.pop(), nc * nc_mult[level], attn=attn)
            width = nc * nc_mult[level]
    return total + 2 * width + conv(width, nc_img, 3)


def test_parameter_count_is_that_of_the_published_cifar_network():
    """55,733,891 published (55.7 million), of which 9 x 128 take the augmentation vector that is left out here."""
    with torch.device("meta"):
        n = sum(p.numel() for p in UNet().parameters())
    assert n == 55_733_891 - 9 * 128


@pytest.mark.parametrize(
    "config",
    [
        {
            "nc": 128,
            "nc_mult": (2, 2, 2),
            "n_blocks": 4,
            "attn_sizes": (16,),
            "imsize": 32,
            "nc_img": 3,
            "n_classes": 10,
        },
        TINY,
    ],
)
def test_parameter_count_follows_the_description(config):
    with torch.device("meta"):
        assert sum(p.numel() for p in UNet(**config).parameters()) == ddpmpp_parameters(**config)


def networks():
    torch.manual_seed(0)
    return {
        "mlp": (MLP(2, n_classes=3, dim=16, n_layers=2), torch.randn(4, 2)),
        "unet": (UNet(**TINY, dropout=0.0), torch.randn(4, 2, 8, 8)),
    }


@pytest.mark.parametrize("name", ["mlp", "unet"])
def test_output_depends_on_data_noise_and_class(name, on_device):
    net, x = networks()[name]
    with torch.no_grad():
        for parameter in net.parameters():  # away from the small start of residual branches
            parameter.add_(0.1 * torch.randn_like(parameter))
    noise, label = torch.tensor([-1.0, 0.0, 0.5, 1.0]), torch.tensor([0, 1, 2, 0])
    out = on_device(net)(x, noise, label)
    assert out.shape == x.shape
    assert not torch.allclose(out, on_device(net)(x + 0.1, noise, label))
    assert not torch.allclose(out, on_device(net)(x, noise + 0.1, label))
    assert not torch.allclose(out, on_device(net)(x, noise, (label + 1) % 3))


@pytest.mark.parametrize("name", ["mlp", "unet"])
def test_rows_do_not_influence_each_other(name, on_device):
    net, x = networks()[name]
    net.eval()
    noise, label = torch.tensor([-1.0, 0.0, 0.5, 1.0]), torch.tensor([0, 1, 2, 0])
    whole = on_device(net)(x, noise, label)
    for row in range(4):
        alone = net(x[row : row + 1], noise[row : row + 1], label[row : row + 1])
        torch.testing.assert_close(alone, whole[row : row + 1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["mlp", "unet"])
def test_a_label_of_minus_one_is_no_label(name, on_device):
    net, x = networks()[name]
    noise = torch.zeros(4)
    without = net(x, noise, None)
    torch.testing.assert_close(on_device(net)(x, noise, torch.full((4,), -1)), without)
    mixed = on_device(net)(x, noise, torch.tensor([-1, 2, -1, 1]))
    torch.testing.assert_close(mixed[[0, 2]], without[[0, 2]])
    assert not torch.allclose(mixed[1], without[1], atol=1e-6)


@pytest.mark.parametrize("name", ["mlp", "unet"])
def test_every_parameter_learns_from_the_first_step(name, on_device):
    net, x = networks()[name]
    on_device(net)(x, torch.randn(4), torch.tensor([0, 1, 2, 0])).square().sum().backward()
    assert [key for key, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_labels_may_be_bytes():
    net, x = networks()["mlp"]
    label = torch.tensor([0, 1, 2, 0])
    torch.testing.assert_close(net(x, torch.zeros(4), label.byte()), net(x, torch.zeros(4), label))


def test_an_image_size_that_does_not_halve_is_refused():
    with pytest.raises(ValueError, match=r"imsize \(18\) must be divisible by 2 once for each of the 3 levels but one"):
        UNet(18)
