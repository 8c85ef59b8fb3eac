"""Convolutions behind a low-pass filter, against the published formula, inside and at the border."""

import pytest
import torch
import torch.nn.functional as F

import ai.model as m

TAPS = (1, 3, 3, 1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def published(x, weight, taps, *, up=1, down=1):
    """Inserts zeros, pads once for filter and kernel together, filters, convolves, thins: each at full size.

    The padding is that of `conv2d_resample` in the published networks.
    """
    kernel = torch.tensor(taps, dtype=x.dtype)
    kernel = torch.outer(kernel, kernel) / kernel.sum() ** 2 * up**2
    before = after = weight.shape[-1] // 2
    n = len(taps)
    if up > 1:
        before, after = before + (n + up - 1) // 2, after + (n - up) // 2
    if down > 1:
        before, after = before + (n - down + 1) // 2, after + (n - down) // 2
    batch, nc, height, width = x.shape
    spread = x.new_zeros(batch, nc, height * up, width * up)
    spread[:, :, ::up, ::up] = x
    spread = F.pad(spread, (before, after, before, after))
    filtered = F.conv2d(spread, kernel.flip(0, 1).expand(nc, 1, n, n), groups=nc)
    return F.conv2d(filtered, weight)[:, :, ::down, ::down]


@pytest.mark.reference("conv, blur", "conv2d_resample of StyleGAN2, written out")
@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("taps", [TAPS, (1, 2, 1), (1, 2, 5, 4, 2)])
@pytest.mark.parametrize(("stride", "how"), [(2, {"down": 2}), (4, {"down": 4}), (0.5, {"up": 2}), (0.25, {"up": 4})])
def test_filter_and_kernel_share_one_border(stride, how, taps, k, on_device):
    x, weight = torch.randn(2, 3, 8, 8).double(), torch.randn(4, 3, k, k).double()
    expected = published(x, weight, taps, **how)
    torch.testing.assert_close(
        on_device(m.f.conv)(x, weight, stride=stride, kernel=taps), expected, rtol=1e-12, atol=1e-12
    )
    layer = m.conv(3, 4, k, stride, blur=taps, bias=False).double()
    layer.load_state_dict({"weight": weight})
    torch.testing.assert_close(on_device(layer)(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.reference("modconv, blur", "conv2d_resample of StyleGAN2, written out")
@pytest.mark.parametrize(("stride", "how"), [(2, {"down": 2}), (0.5, {"up": 2})])
@pytest.mark.parametrize("form", ["images", "weights"])
def test_modulated_ones_too(stride, how, form, on_device):
    x, weight, style = torch.randn(2, 3, 8, 8).double(), torch.randn(4, 3, 3, 3).double(), torch.randn(2, 3).double()
    rows = []
    for image, s in zip(x, style, strict=True):
        scaled = weight * s[None, :, None, None]
        scaled = scaled / (scaled.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        rows.append(published(image[None], scaled, TAPS, **how))
    found = on_device(m.f.modconv)(x, weight, style, stride=stride, kernel=TAPS, form=form)
    torch.testing.assert_close(found, torch.cat(rows), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stride", [2, 4])
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_a_ramp_comes_out_at_the_centres_of_the_pixels_that_become_one(stride, k, on_device):
    ramp = torch.arange(32.0).double().expand(1, 1, 32, 32)
    weight = torch.full((1, 1, k, k), 1 / k**2, dtype=torch.float64)
    found = on_device(m.f.conv)(ramp, weight, stride=stride, kernel=TAPS)
    off = 0.5 if k % 2 == 0 and stride % 2 == 0 else 0.0  # an even kernel and an even filter have no common centre
    inner = slice(2, -2)
    expected = on_device(m.f.resample)(ramp, stride)[..., inner, inner]
    torch.testing.assert_close(found[..., inner, inner] + off, expected, rtol=1e-12, atol=1e-12)
    assert found.shape == (1, 1, 32 // stride, 32 // stride)


@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize("stride", [0.5, 1, 2, 4])
@pytest.mark.parametrize("padtype", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("taps", [(1, 1), (1, 2, 1), TAPS])
def test_the_size_over_the_stride_with_a_filter_too(k, stride, padtype, taps, on_device):
    size = int(8 / stride)
    layer = m.conv(2, 3, k, stride, padtype=padtype, blur=taps)
    assert on_device(layer)(torch.randn(1, 2, 8, 8)).shape == (1, 3, size, size)


@pytest.mark.parametrize("stride", [0.5, 1, 2])
@pytest.mark.parametrize("padtype", ["replicate", "circular", "reflect"])
def test_a_constant_image_stays_constant_up_to_its_border(stride, padtype, on_device):
    layer = m.conv(1, 1, 3, stride, padtype=padtype, blur=TAPS, bias=False).double()
    layer.load_state_dict({"weight": torch.full((1, 1, 3, 3), 1 / 9, dtype=torch.float64)})
    found = on_device(layer)(torch.ones(1, 1, 8, 8).double())
    torch.testing.assert_close(found, torch.ones_like(found), rtol=1e-12, atol=1e-12)


def test_groups_are_filtered_and_enlarged_apart(on_device):
    x, layer = torch.randn(2, 4, 5, 5).double(), m.conv(4, 6, 3, 0.5, groups=2, blur=TAPS).double()
    parts = [
        published(part, weight, TAPS, up=2)
        for part, weight in zip(x.chunk(2, 1), layer.weight.chunk(2, 0), strict=True)
    ]
    torch.testing.assert_close(on_device(layer)(x), torch.cat(parts, 1), rtol=1e-12, atol=1e-12)


def test_half_precision_survives_large_styles(on_device):
    layer = m.modconv(64, 64, 8, scale_w=True).double()
    x, z = torch.randn(2, 64, 8, 8).double(), 1000 * torch.randn(2, 8).double()
    expected = layer(x, z).float()
    found = on_device(layer.half())(x.half(), z.half())
    torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.02)
    weights = on_device(m.f.modconv)(x.half(), layer.weight, layer.style(z.half()), form="weights")
    images = on_device(m.f.modconv)(x.half(), layer.weight, layer.style(z.half()), form="images")
    torch.testing.assert_close(weights, images, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    "make",
    [
        lambda: m.blur((1, -1)),
        lambda: m.upfirdn((1, 0, -1)),
        lambda: m.resample(2, (1, -2, 1)),
        lambda: m.conv(2, 2, blur=(1, -1)),
        lambda: m.modconv(2, 2, 2, blur=(1, -1)),
        lambda: m.f.blur(torch.zeros(1, 1, 4, 4), (1, -1)),
    ],
)
def test_a_filter_that_sums_to_zero_is_refused(make):
    with pytest.raises(ValueError, match=r"kernel \(\(1, .*\)\) must not sum to 0"):
        make()


def test_a_gain_may_be_negative(on_device):
    x = torch.randn(1, 2, 6, 6).double()
    torch.testing.assert_close(
        on_device(m.f.upfirdn)(x, TAPS, gain=-2.0), -2 * m.f.upfirdn(x, TAPS), rtol=1e-12, atol=1e-12
    )
