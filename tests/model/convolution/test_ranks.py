import pytest
import torch
import torch.nn.functional as F
from timm.models.convnext import ConvNeXtBlock
from torch import nn

import ai.model as m


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


SHAPES = {1: (2, 4, 12), 2: (2, 4, 12, 8), 3: (2, 4, 6, 8, 6)}


@pytest.mark.parametrize("rank", SHAPES)
@pytest.mark.parametrize("padtype", ["zeros", "circular", "replicate", "reflect", "none"])
@pytest.mark.parametrize(
    ("k", "stride", "dilation"), [(3, 1, 1), (3, 2, 1), (3, 1, 2), (2, 2, 1), (2, 1, 1), (4, 2, 1)]
)
def test_sizes_are_divided_by_the_stride_and_plain_ones_are_torchs(rank, padtype, k, stride, dilation, on_device):
    layer = m.conv_nd(rank, 4, 6, k, stride, dilation=dilation, padtype=padtype)
    kind = getattr(nn, f"Conv{rank}d")
    x = torch.randn(SHAPES[rank])
    expected = tuple(size // stride for size in x.shape[2:])
    if padtype == "none":
        expected = tuple((size - dilation * (k - 1) - 1) // stride + 1 for size in x.shape[2:])
    assert on_device(layer)(x).shape == (2, 6, *expected)
    assert type(layer) is kind or (type(layer[1]) is kind and k % 2 == 0)


def test_an_even_kernel_has_the_odd_pixel_after(on_device):
    x = torch.randn(2, 3, 9).double()
    layer = m.conv_nd(1, 3, 5, 4).double()
    expected = F.conv1d(F.pad(x, (1, 2)), layer[1].weight, layer[1].bias)
    torch.testing.assert_close(on_device(layer)(x), expected, rtol=1e-12, atol=1e-12)
    square, general = m.conv(3, 5, 2, norm="group").double(), m.conv_nd(2, 3, 5, 2, norm="group").double()
    general[1].load_state_dict({"weight": square.weight, "bias": square.bias})
    image = torch.randn(2, 3, 6, 6).double()
    torch.testing.assert_close(on_device(general)(image), square(image), rtol=1e-12, atol=1e-12)


def test_rectangular_and_dilated_kernels_reach_as_far_as_they_say(on_device):
    layer = m.conv_nd(2, 1, 1, (1, 3), dilation=(1, 2), bias=False)
    nn.init.ones_(layer.weight)
    x = torch.zeros(1, 1, 5, 7)
    x[0, 0, 2, 3] = 1
    rows, columns = torch.nonzero(on_device(layer)(x)[0, 0], as_tuple=True)
    assert rows.tolist() == [2, 2, 2]
    assert columns.tolist() == [1, 3, 5]


@pytest.mark.parametrize("rank", SHAPES)
@pytest.mark.parametrize(("k", "stride"), [(4, 2), (2, 2), (3, 2), (5, 2), (3, 1), (6, 3)])
def test_transposed_ones_multiply_the_size(rank, k, stride, on_device):
    x = torch.randn(SHAPES[rank])
    layer = m.conv_transposed(4, 6, k, stride, rank=rank)
    assert type(layer) is getattr(nn, f"ConvTranspose{rank}d")
    assert on_device(layer)(x).shape == (2, 6, *(size * stride for size in x.shape[2:]))


@pytest.mark.parametrize("make", [lambda: m.conv_nd(1, 192, 192, 3, actv="relu", padtype="circular"),
                                  lambda: m.conv_nd(1, 192, 192, 3, actv="gelu", padtype="circular")])  # fmt: skip
def test_activations_keep_their_size(make):
    x = torch.randn(8, 192, 8)
    with torch.no_grad():
        for layer in m.Model(m.repeat(10, make)).init(seed=0).net:
            x = layer(x)
    assert 0.5 < x.std() < 2


@pytest.mark.reference("pool", "torch.nn.MaxPool, AvgPool")
@pytest.mark.parametrize("rank", SHAPES)
@pytest.mark.parametrize("kind", ["max", "avg"])
def test_pooling_is_torchs_and_leaves_out_what_lies_beyond_the_border(rank, kind, on_device):
    x = torch.randn(SHAPES[rank])
    name = "MaxPool" if kind == "max" else "AvgPool"
    torch.testing.assert_close(on_device(m.pool(2, kind=kind, rank=rank))(x), getattr(nn, f"{name}{rank}d")(2)(x))
    torch.testing.assert_close(on_device(m.pool(3, 1, kind, rank=rank))(torch.ones_like(x)), torch.ones_like(x))


@pytest.mark.reference("convnext_blk", "timm.models.convnext.ConvNeXtBlock")
def test_a_convnext_block_is_timms(on_device):
    theirs, ours = ConvNeXtBlock(8, ls_init_value=0.3).double(), m.convnext_blk(8, layer_scale=0.3).double()
    nn.init.normal_(theirs.gamma)
    names = {"conv": "conv_dw", "norm": "norm", "mlp.0": "mlp.fc1", "mlp.1": "mlp.fc2"}
    state = {f"{a}.{end}": theirs.state_dict()[f"{b}.{end}"] for a, b in names.items() for end in ("weight", "bias")}
    ours.load_state_dict({**state, "scale.gamma": theirs.gamma})
    x = torch.randn(2, 8, 9, 9).double()
    torch.testing.assert_close(on_device(ours)(x), theirs(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: m.conv_nd(4, 2, 2), r"rank \(4\) must be 1, 2 or 3"),
        (lambda: m.conv_nd(2, 0, 2), r"nc1 \(0\) must be at least 1"),
        (lambda: m.conv_nd(2, 2, 2, (3, 3, 3)), r"k \(\(3, 3, 3\)\) must be a whole number above 0, or 2 of them"),
        (lambda: m.conv_nd(1, 2, 2, stride=0), r"stride \(0\) must be a whole number above 0"),
        (lambda: m.conv_nd(1, 4, 6, groups=4), r"groups \(4\) must divide nc1 \(4\) and nc2 \(6\)"),
        (lambda: m.conv_nd(1, 2, 2, padtype="same"), r"padtype \('same'\) must be one of zeros"),
        (lambda: m.conv_nd(1, 2, 2, norm="instance", init_gain=0.1), r"init_gain \(0.1\) must be 1 with norm"),
        (lambda: m.conv_transposed(2, 2, 1, 2), r"k \(1\) must be at least stride \(2\)"),
        (lambda: m.pool(kind="mean"), r"kind \('mean'\) must be max or avg"),
        (lambda: m.pool(0), r"k \(0\) and stride \(0\) must be at least 1"),
        (lambda: m.convnext_blk(0), r"nc \(0\) and k \(7\) must be at least 1"),
        (lambda: m.gru(3, 4, dropout=0.1), r"dropout \(0.1\) must be 0 with one layer"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
