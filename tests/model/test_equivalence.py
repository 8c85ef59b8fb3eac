"""Layers with equal weights against torch.nn, timm, scipy, and published formulas written out slowly."""

import operator

import numpy as np
import pytest
import scipy.signal
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block as TimmBlock
from torch import nn

import ai.model as m
from tests.devices import assert_close

both_types = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def same(on_device):
    """Compares outputs, and gradients of the inputs and of paired parameters: ours on the device, theirs on the CPU."""

    def compare(ours, theirs, inputs, tolerance, pairs):
        grads = []
        for module in (on_device(ours), theirs):
            own = [x.clone().requires_grad_() for x in inputs]
            out = module(*own)
            (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)).sum().backward()
            grads.append([out.detach(), *(x.grad for x in own)])
        grads[0] += [p.grad for p, _ in pairs]
        grads[1] += [p.grad for _, p in pairs]
        for a, b in zip(*grads, strict=True):
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * max(1.0, b.abs().max().item()))

    return compare


@pytest.mark.reference("fc", "torch.nn.Linear")
@both_types
def test_fc_is_linear(dtype, tolerance, same):
    theirs, ours = nn.Linear(8, 5).to(dtype), m.fc(8, 5).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    same(ours, theirs, [torch.randn(3, 8, dtype=dtype)], tolerance, [(ours.weight, theirs.weight)])


@pytest.mark.reference("fc, equalised", "Karras et al., 2018, section 4.1")
@both_types
def test_equalised_fc_is_linear_with_scaled_weights(dtype, tolerance, on_device):
    ours = m.fc(8, 5, scale_w=True, lr_mult=0.1, bias_init=1.0).to(dtype)
    x = torch.randn(3, 8, dtype=dtype)
    expected = x @ (ours.weight * 0.1 / 8**0.5).T + 1.0
    torch.testing.assert_close(on_device(ours)(x), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.reference("conv", "torch.nn.Conv2d")
@both_types
@pytest.mark.parametrize("padtype", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("stride", [1, 2])
def test_conv_is_conv2d(padtype, stride, dtype, tolerance, same):
    theirs = nn.Conv2d(4, 6, 3, stride, 1, padding_mode=padtype).to(dtype)
    ours = m.conv(4, 6, stride=stride, padtype=padtype).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    same(ours, theirs, [torch.randn(2, 4, 7, 7, dtype=dtype)], tolerance, [(ours.weight, theirs.weight)])


@pytest.mark.reference("conv of other kernels and strides", "torch.nn.Conv2d")
@both_types
@pytest.mark.parametrize(
    ("k", "stride", "how"),
    [
        (4, 2, {"padding": 1}),  # DCGAN
        (2, 2, {"padding": 0}),
        (4, 4, {"padding": 0}),  # patches
        (8, 4, {"padding": 2}),
        (2, 4, {"padding": 0}),
        (2, 1, {"padding": "same"}),
        (4, 1, {"padding": "same"}),
        (5, 2, {"padding": 2}),
        (1, 2, {"padding": 0}),
    ],
)
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_conv_of_any_kernel_is_conv2d_and_divides_the_size_by_the_stride(
    k, stride, how, dtype, tolerance, same, on_device
):
    theirs, ours = nn.Conv2d(4, 6, k, stride, **how).to(dtype), m.conv(4, 6, k, stride).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 4, 8, 8, dtype=dtype)
    assert on_device(ours)(x).shape == (2, 6, 8 // stride, 8 // stride)
    same(ours, theirs, [x], tolerance, [(ours.weight, theirs.weight)])


@pytest.mark.parametrize(("k", "stride"), [(8, 4), (4, 2), (3, 1), (5, 2)])
def test_without_a_border_conv_is_conv2d_of_no_padding(k, stride, on_device):
    theirs, ours = nn.Conv2d(4, 6, k, stride), m.conv(4, 6, k, stride, padtype="none")
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 4, 21, 21)
    assert_close(on_device(ours)(x), theirs(x))


@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize("stride", [0.5, 1, 2, 4])
@pytest.mark.parametrize("padtype", ["zeros", "reflect", "replicate", "circular"])
def test_every_kernel_stride_and_border_gives_the_size_over_the_stride(k, stride, padtype, on_device):
    size = int(8 / stride)
    assert on_device(m.conv(2, 3, k, stride, padtype=padtype))(torch.randn(1, 2, 8, 8)).shape == (1, 3, size, size)
    assert on_device(m.f.conv)(torch.randn(1, 2, 8, 8), torch.randn(3, 2, k, k), stride=stride).shape == (
        1,
        3,
        size,
        size,
    )


def test_conv_applies_its_options_in_order(on_device):
    ours = m.conv(4, 6, 3, 2, "lrelu", "batch", gain=1.5, clamp=0.7, blur=(1, 2, 1)).double()
    x = torch.randn(3, 4, 8, 8, dtype=torch.float64)
    # One border for both: the filter's four taps and the kernel's three reach two pixels beyond the image, and one.
    taps = torch.outer(*[torch.tensor([0.25, 0.5, 0.25]).double()] * 2).expand(4, 1, 3, 3)
    filtered = F.conv2d(F.pad(x, (2, 1, 2, 1)), taps, groups=4)
    y = F.batch_norm(F.conv2d(filtered, ours.weight, None, 2), None, None, training=True)
    expected = (F.leaky_relu(y, 0.2) * 1.5).clamp(-0.7, 0.7)
    torch.testing.assert_close(on_device(ours)(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.reference("upfirdn", "scipy.signal.upfirdn")
@both_types
@pytest.mark.parametrize("kernel", [(1, 3, 3, 1), (1, 2, 4)])
@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2), (3, 2)])
def test_upfirdn_is_scipys(kernel, up, down, dtype, tolerance, on_device):
    x = torch.randn(2, 3, 6, 5, dtype=dtype)
    pad = len(kernel) - 1
    ours = on_device(m.f.upfirdn)(x, kernel, up, down, (pad, pad), gain=4.0)
    taps = np.array(kernel, dtype=np.float64) / sum(kernel) * 2
    theirs = x.double().numpy()
    for axis in (2, 3):
        theirs = scipy.signal.upfirdn(taps, theirs, up, down, axis=axis)
    theirs = torch.from_numpy(theirs).to(dtype)
    height, width = min(ours.shape[2], theirs.shape[2]), min(ours.shape[3], theirs.shape[3])
    assert abs(ours.shape[2] - theirs.shape[2]) <= up  # scipy leaves out the zeros after the last sample
    torch.testing.assert_close(ours[..., :height, :width], theirs[..., :height, :width], rtol=tolerance, atol=tolerance)


def slow_modulated(x, z, layer, stride):
    """Karras et al. 2020, equations 1 to 3, a sample at a time."""
    style = F.linear(z, layer.style.weight, layer.style.bias)
    if stride < 1:
        x = F.interpolate(x, scale_factor=1 / stride, mode="nearest")
    rows = []
    for image, s in zip(x, style, strict=True):
        weight = layer.weight * s[None, :, None, None]
        if layer.demod:
            weight = weight / torch.sqrt((weight**2).sum((1, 2, 3), keepdim=True) + 1e-8)
        before, after = m.f.border(layer.k, max(1, int(stride)))
        padded = F.pad(image[None], (before, after, before, after))
        rows.append(F.conv2d(padded, weight, layer.bias, max(1, int(stride))))
    return torch.cat(rows)


@pytest.mark.reference("modconv", "Karras et al., 2020, equations 1 and 3")
@both_types
@pytest.mark.parametrize("form", ["images", "weights"])
@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2, 0.5])
@pytest.mark.parametrize("demod", [True, False])
def test_modconv_is_the_papers_formula(k, stride, demod, form, dtype, tolerance, monkeypatch, on_device):
    monkeypatch.setattr(m.f, "_weights_are_faster", lambda *_: form == "weights")
    layer = m.modconv(4, 6, 5, k=k, stride=stride, demod=demod).to(dtype)
    inputs = [torch.randn(3, 4, 8, 8, dtype=dtype), torch.randn(3, 5, dtype=dtype)]

    def grads(function):
        layer.zero_grad()
        own = [x.clone().requires_grad_() for x in inputs]
        out = function(*own)
        out.square().sum().backward()
        return [out.detach(), *(x.grad for x in own), layer.weight.grad.clone()]

    for ours, theirs in zip(
        grads(on_device(layer)), grads(lambda x, z: slow_modulated(x, z, layer, stride)), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * max(1.0, theirs.abs().max().item()))


@pytest.mark.parametrize("stride", [1, 2, 0.5])
def test_filtered_modconv_is_the_same_in_both_forms(stride, on_device):
    x, weight, style = (
        torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 3, 8, 8), (5, 3, 3, 3), (2, 3))
    )
    found = []
    for form in ("images", "weights"):
        out = on_device(m.f.modconv)(x, weight, style, torch.ones(5).double(), stride, kernel=(1, 3, 3, 1), form=form)
        found.append([out, *torch.autograd.grad(out.square().sum(), (x, weight, style))])
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match=r"form \('weight'\) must be images, weights or None"):
        m.f.modconv(x, weight, style, form="weight")


def test_modconv_makes_weights_for_large_images_of_few_channels_only():
    large, small = torch.zeros(2, 8, 64, 64), torch.zeros(2, 8, 4, 4)
    weight = torch.zeros(8, 8, 3, 3)
    assert m.f._weights_are_faster(large, weight)
    assert not m.f._weights_are_faster(small, weight)
    assert not m.f._weights_are_faster(large.contiguous(memory_format=torch.channels_last), weight)


def copy_attention(ours, weight, bias, out):
    """From projections stacked as q, k, v."""
    dim = ours.q.weight.shape[0]
    with torch.no_grad():
        for own, start, stop in ((ours.q, 0, dim), (ours.kv, dim, 3 * dim)):
            own.weight.copy_(weight[start:stop])
            own.bias.copy_(bias[start:stop])
    ours.out.load_state_dict(out.state_dict())


@pytest.mark.reference("attn, sa", "torch.nn.MultiheadAttention")
@both_types
def test_attention_is_torchs(dtype, tolerance, same, on_device):
    theirs = nn.MultiheadAttention(8, 2, batch_first=True).to(dtype)
    ours = m.sa(8, 2).to(dtype)
    copy_attention(ours, theirs.in_proj_weight, theirs.in_proj_bias, theirs.out_proj)
    x = torch.randn(2, 5, 8, dtype=dtype)
    same(ours, lambda x: theirs(x, x, x, need_weights=False)[0], [x], tolerance, [])
    padding = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    expected = theirs(x, x, x, key_padding_mask=~padding, need_weights=False)[0]
    torch.testing.assert_close(on_device(ours)(x, mask=padding[:, None]), expected, rtol=tolerance, atol=tolerance)
    with pytest.raises(ValueError, match=r"a mask of two axes \(2, 5\) must be \(T, S\), here \(5, 5\)"):
        ours(x, mask=padding)


@pytest.mark.reference("tx_enc_blk", "timm.models.vision_transformer.Block")
@both_types
def test_encoder_block_is_timms(dtype, tolerance, same):
    theirs = TimmBlock(16, 4, qkv_bias=True).to(dtype)
    ours = m.tx_enc_blk(16, 4, norm=lambda dim: m.norm.layer(dim, eps=theirs.norm1.eps)).to(dtype)
    copy_attention(ours.attn, theirs.attn.qkv.weight, theirs.attn.qkv.bias, theirs.attn.proj)
    for own, other in ((ours.norm1, theirs.norm1), (ours.norm2, theirs.norm2)):
        own.load_state_dict(other.state_dict())
    ours.mlp[0].load_state_dict(theirs.mlp.fc1.state_dict())
    ours.mlp[1].load_state_dict(theirs.mlp.fc2.state_dict())
    pairs = [(ours.mlp[0].weight, theirs.mlp.fc1.weight), (ours.norm1.weight, theirs.norm1.weight)]
    same(ours, theirs, [torch.randn(2, 6, 16, dtype=dtype)], tolerance, pairs)


@pytest.mark.reference("tx_enc_blk", "torch.nn.TransformerEncoderLayer")
@both_types
def test_encoder_block_is_torchs(dtype, tolerance, same):
    theirs = nn.TransformerEncoderLayer(16, 4, 32, 0.0, batch_first=True, norm_first=True).to(dtype)
    ours = m.tx_enc_blk(16, 4, mlp_dim=32, actv="relu").to(dtype)
    copy_attention(ours.attn, theirs.self_attn.in_proj_weight, theirs.self_attn.in_proj_bias, theirs.self_attn.out_proj)
    ours.mlp[0].load_state_dict(theirs.linear1.state_dict())
    ours.mlp[1].load_state_dict(theirs.linear2.state_dict())
    same(ours, theirs, [torch.randn(2, 6, 16, dtype=dtype)], tolerance, [(ours.mlp[0].weight, theirs.linear1.weight)])


@pytest.mark.reference("tx_dec_blk", "torch.nn.TransformerDecoderLayer")
@both_types
def test_decoder_block_is_torchs(dtype, tolerance, same):
    theirs = nn.TransformerDecoderLayer(16, 4, 32, 0.0, batch_first=True, norm_first=True).to(dtype)
    ours = m.tx_dec_blk(16, 4, mlp_dim=32, actv="relu").to(dtype)
    copy_attention(ours.attn, theirs.self_attn.in_proj_weight, theirs.self_attn.in_proj_bias, theirs.self_attn.out_proj)
    cross = theirs.multihead_attn
    copy_attention(ours.cross, cross.in_proj_weight, cross.in_proj_bias, cross.out_proj)
    ours.mlp[0].load_state_dict(theirs.linear1.state_dict())
    ours.mlp[1].load_state_dict(theirs.linear2.state_dict())
    causal = nn.Transformer.generate_square_subsequent_mask(6, dtype=dtype)
    inputs = [torch.randn(2, 6, 16, dtype=dtype), torch.randn(2, 5, 16, dtype=dtype)]
    pairs = [(ours.mlp[0].weight, theirs.linear1.weight), (ours.cross.out.weight, cross.out_proj.weight)]
    same(ours, lambda x, context: theirs(x, context, tgt_mask=causal), inputs, tolerance, pairs)


@pytest.mark.reference("norm.batch, instance, group, layer, rms", "torch.nn")
@both_types
@pytest.mark.parametrize(
    ("ours", "theirs", "shape"),
    [
        (m.norm.batch, nn.BatchNorm2d, (4, 6, 5, 5)),
        (m.norm.instance, nn.InstanceNorm2d, (4, 6, 5, 5)),
        (lambda n: m.norm.group(n, 2), lambda n: nn.GroupNorm(2, n), (4, 6, 5, 5)),
        (m.norm.layer, nn.LayerNorm, (4, 3, 6)),
        (lambda n: m.norm.rms(n, eps=1e-5), lambda n: nn.RMSNorm(n, eps=1e-5), (4, 3, 6)),
    ],
)
def test_norms_are_torchs(ours, theirs, shape, dtype, tolerance, same):
    own, other = ours(6).to(dtype), theirs(6).to(dtype)
    pairs = list(zip(own.parameters(), other.parameters(), strict=True))
    same(own, other, [torch.randn(shape, dtype=dtype)], tolerance, pairs)


@pytest.mark.reference('norm="group:N"', "torch.nn.GroupNorm")
@pytest.mark.parametrize("n_groups", [1, 2, 3, 6])
def test_group_norm_by_name_has_any_number_of_groups_that_divides(n_groups, same, on_device):
    x, theirs = torch.randn(3, 6, 5, 5, dtype=torch.float64), nn.GroupNorm(n_groups, 6).double()
    same(m.norm.make(f"group:{n_groups}", 6).double(), theirs, [x], 1e-12, [])
    tokens = m.norm.make(f"group:{n_groups}", 6, last=True).double()(x.flatten(2).transpose(1, 2))
    torch.testing.assert_close(tokens.transpose(1, 2).view_as(x), theirs(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [6, 4])  # as many columns as channels, and not
def test_a_norm_by_name_finds_the_channels_of_images_and_of_tokens(size, on_device):
    x = torch.randn(3, 6, 5, size, dtype=torch.float64)

    def over(axes):
        return (x - x.mean(axes, keepdim=True)) / (x.var(axes, unbiased=False, keepdim=True) + 1e-5).sqrt()

    root = (x.square().mean(1, keepdim=True) + 1e-6).sqrt()
    expected = {"layer": over((1,)), "rms": x / root, "batch": over((0, 2, 3)), "instance": over((2, 3))}
    for name, value in expected.items():
        made = m.norm.make(name, 6).double()
        torch.testing.assert_close(on_device(made)(x), value, rtol=1e-12, atol=1e-12, msg=name)
        tokens, theirs = x.flatten(2).transpose(1, 2), value.flatten(2).transpose(1, 2)
        made = m.norm.make(name, 6, last=True).double()
        torch.testing.assert_close(on_device(made)(tokens), theirs, rtol=1e-12, atol=1e-12, msg=name)
    assert m.conv(3, 6, norm="layer")(torch.randn(2, 3, size, size)).shape == (2, 6, size, size)
    assert m.tx_enc_blk(8, 2, norm="batch")(torch.randn(2, 5, 8)).shape == (2, 5, 8)


@pytest.mark.reference("modconv, adalin", "Kim et al., 2020, U-GAT-IT, equation 1")
@both_types
def test_adalin_is_the_papers_formula(dtype, tolerance, on_device):
    layer = m.modconv(4, 6, 5, "adalin").to(dtype)
    x, z = torch.randn(2, 4, 8, 8, dtype=dtype), torch.randn(2, 5, dtype=dtype)
    y = F.conv2d(x, layer.weight, layer.bias, padding=1)
    by_channel, by_image = F.instance_norm(y), F.layer_norm(y, y.shape[1:])
    gamma, beta = layer.adalin.style(z)[:, :, None, None].chunk(2, 1)
    rho = layer.adalin.rho.view(1, -1, 1, 1)
    expected = (1 + gamma) * (rho * by_channel + (1 - rho) * by_image) + beta
    torch.testing.assert_close(on_device(layer)(x, z), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.reference("se, norm.pixel", "Hu et al., 2018; Karras et al., 2018")
@both_types
def test_squeeze_and_excitation_and_pixel_norm_are_their_formulas(dtype, tolerance, on_device):
    x = torch.randn(2, 16, 4, 4, dtype=dtype)
    layer = m.se(16, 2).to(dtype)
    down, up = layer.weigh[1], layer.weigh[2]
    weights = torch.sigmoid(F.relu(x.mean((2, 3)) @ down.weight.T + down.bias) @ up.weight.T + up.bias)
    torch.testing.assert_close(on_device(layer)(x), x * weights[:, :, None, None], rtol=tolerance, atol=tolerance)
    expected = x / (x.pow(2).mean(1, keepdim=True) + 1e-8).sqrt()
    torch.testing.assert_close(on_device(m.norm.pixel())(x), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.reference("attn, grouped queries", "the same keys for each head of a group")
def test_grouped_queries_are_heads_with_shared_keys(on_device):
    grouped = m.sa(8, 4, n_kv_heads=2).double()
    full = m.sa(8, 4).double()
    full.q.load_state_dict(grouped.q.state_dict())
    full.out.load_state_dict(grouped.out.state_dict())
    with torch.no_grad():
        for name in ("weight", "bias"):
            shared = getattr(grouped.kv, name).unflatten(0, (2, 2, 2)).repeat_interleave(2, 1)
            getattr(full.kv, name).copy_(shared.flatten(0, 2))
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    torch.testing.assert_close(on_device(grouped)(x), full(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"rotary": True}, {"n_kv_heads": 1, "qk_norm": True, "rotary": True}])
@pytest.mark.parametrize("grad", [True, False])
def test_a_cache_gives_what_the_whole_sequence_gives(options, grad, on_device):
    net = m.tx_enc(2, 8, 2, causal=True, **options).double()
    x = torch.randn(2, 47, 8, dtype=torch.float64)
    cache = m.KVCache()
    with torch.set_grad_enabled(grad):
        parts = [on_device(net)(part, cache=cache) for part in x.split([3, 1, 2, 1, *[1] * 20, 17, 3], 1)]
        torch.testing.assert_close(torch.cat(parts, 1), net(x), rtol=1e-12, atol=1e-12)
    assert cache.length() == 47


def test_a_cache_lets_gradients_through(on_device):
    net = m.sa(8, 2, causal=True).double()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    cache, grads = m.KVCache(), []
    for run in (lambda: torch.cat([on_device(net)(part, cache=cache) for part in x.split(1, 1)], 1), lambda: net(x)):
        net.zero_grad()
        run().square().sum().backward()
        grads.append([p.grad.clone() for p in net.parameters()])
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-12)


def test_a_cache_moves_between_inference_mode_and_without(on_device):
    net = m.sa(8, 2, causal=True)
    x = torch.randn(2, 40, 8)
    cache, parts = m.KVCache(), []
    for i, part in enumerate(x.split(2, 1)):
        with torch.inference_mode() if i % 3 else torch.no_grad():
            parts.append(on_device(net)(part, cache=cache).clone())
    torch.testing.assert_close(torch.cat(parts, 1), net(x).detach(), rtol=1e-5, atol=1e-5)


def test_a_growing_cache_copies_a_token_a_few_times_at_most():
    cache, k = m.KVCache(), torch.zeros(1, 1, 1, 1)
    addresses = set()
    with torch.no_grad():
        for _ in range(1000):
            with cache.forward():
                held, _ = cache.extend(k, k)
            addresses.add((held.data_ptr(), held.stride(1)))
    assert held.shape == (1, 1, 1000, 1)
    assert len(addresses) <= 8  # each is a new buffer, twice as long


def test_a_decoders_cache_keeps_the_contexts_keys(on_device):
    net = m.tx_dec(2, 8, 2, rotary=True, dim_context=4).double()
    x, context = torch.randn(2, 6, 8).double(), torch.randn(2, 3, 4).double()
    cache, calls = m.KVCache(), []
    net.blocks[0].cross.kv.register_forward_hook(lambda *_: calls.append(1))
    parts = [on_device(net)(part, context, cache=cache) for part in x.split([2, 1, 3], 1)]
    assert len(calls) == 1
    torch.testing.assert_close(torch.cat(parts, 1), net(x, context), rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match=r"k \(1, 2, 6, 4\) must have the batch, .* of the cache, \(2, 2, 6, 4\)"):
        on_device(net)(x[:1], context[:1], cache=cache)
    with pytest.raises(ValueError, match=r"context \(2, 5, 4\) must be the one that the cache has kept, \(2, 3, 4\)"):
        on_device(net)(x, torch.zeros(2, 5, 4).double(), cache=cache)


def test_a_mask_of_two_axes_means_the_same_whatever_the_batch(on_device):
    net, x = m.sa(8, 2).double(), torch.randn(5, 5, 8, dtype=torch.float64)
    mask = torch.rand(5, 5) < 0.5
    mask.fill_diagonal_(True)
    apart = torch.cat([net(row[None], mask=mask) for row in x])
    torch.testing.assert_close(on_device(net)(x, mask=mask), apart, rtol=1e-12, atol=1e-12)


def test_mask_blocks_future_tokens(on_device):
    net = m.sa(8, 2, causal=True).double()
    x = torch.randn(1, 5, 8, dtype=torch.float64)
    changed = x.clone()
    changed[:, 3] += 1
    moved = (on_device(net)(changed) - on_device(net)(x)).abs().amax(-1)[0] > 1e-9
    assert moved.tolist() == [False, False, False, True, True]


def test_rotary_scores_depend_on_distances_alone(on_device):
    from ai.model.position import rotate

    turn = on_device(rotate)
    q, k = torch.randn(1, 1, 1, 8).double(), torch.randn(1, 1, 1, 8).double()
    scores = [(turn(q, start) * turn(k, start + 3)).sum().item() for start in (0, 5, 40)]
    assert scores == pytest.approx([scores[0]] * 3, abs=1e-12)
    # one pair of features is a complex number turned by its position
    assert torch.view_as_complex(turn(q[..., :2], 2).contiguous()).item() == pytest.approx(
        complex(*q[0, 0, 0, :2]) * complex(np.exp(2j)), abs=1e-12
    )


@pytest.mark.parametrize(("batch", "group"), [(0, 1), (1, 1), (3, 3), (5, 1), (6, 3), (10, 2), (8, 4)])
def test_minibatch_std_takes_any_batch(batch, group, on_device):
    x = torch.randn(batch, 2, 4, 4)
    found = on_device(m.f.minibatch_std)(x)
    assert found.shape == (batch, 3, 4, 4)
    if batch:
        assert_close(found, m.f.minibatch_std(x, group))


def test_minibatch_std_by_hand(on_device):
    x = torch.tensor([0.0, 1.0, 4.0, 9.0]).view(4, 1, 1, 1)
    extra = on_device(m.f.minibatch_std)(x, group_size=2)[:, 1, 0, 0]  # groups: images 0 and 2, images 1 and 3
    torch.testing.assert_close(extra, torch.tensor([2.0, 4.0, 2.0, 4.0]))


GRADCHECKED = {
    "upfirdn": (lambda: m.upfirdn((1, 3, 3, 1), 2, 1, (2, 1), 4), (1, 2, 3, 4)),
    "upfirdn down, cropped": (lambda: m.upfirdn((1, 2, 4), 1, 2, (-1, 2)), (1, 2, 6, 5)),
    "blur": (lambda: m.blur((1, 2, 4)), (1, 2, 4, 4)),
    "resample up": (lambda: m.resample(0.5), (1, 2, 3, 3)),
    "resample up, filtered": (lambda: m.resample(0.5, (1, 3, 3, 1)), (1, 2, 3, 3)),
    "resample down": (lambda: m.resample(2), (1, 2, 4, 4)),
    "resample down, filtered": (lambda: m.resample(2, (1, 3, 3, 1)), (1, 2, 4, 4)),
    "fc equalised": (lambda: m.fc(4, 3, actv="mish", scale_w=True, lr_mult=0.1), (2, 4)),
    "conv": (lambda: m.conv(2, 3, 3, 2, "silu", "group", blur=(1, 3, 3, 1), padtype="reflect"), (1, 2, 6, 6)),
    "conv up": (lambda: m.conv(2, 3, 3, 0.5, "gelu", scale_w=True, gain=1.4), (1, 2, 3, 3)),
    "rms": (lambda: m.norm.rms(4), (2, 3, 4)),
    "pixel": (lambda: m.norm.pixel(), (2, 3, 2, 2)),
    "batch": (lambda: m.norm.batch(2), (3, 2, 2, 2)),
    "minibatch_std": (lambda: m.minibatch_std(2), (4, 2, 2, 2)),
    "se": (lambda: m.se(2, 1), (2, 2, 3, 3)),
    "attn": (lambda: m.attn(4, 2), (1, 3, 4), (1, 2, 4)),
    "sa": (lambda: m.sa(4, 2, n_kv_heads=1, causal=True, rotary=True, qk_norm=True), (1, 3, 4)),
    "tx_enc_blk": (lambda: m.tx_enc_blk(4, 2, mlp_dim=4, norm="rms"), (1, 3, 4)),
    "tx_dec_blk": (lambda: m.tx_dec_blk(4, 2, mlp_dim=4), (1, 3, 4), (1, 2, 4)),
    "modconv": (lambda: m.modconv(2, 2, 3, scale_w=True, lr_mult=0.5), (2, 2, 3, 3), (2, 3)),
    "modconv up": (lambda: m.modconv(2, 2, 3, stride=0.5, demod=False), (2, 2, 2, 2), (2, 3)),
    "modconv adalin": (lambda: m.modconv(2, 2, 3, "adalin"), (2, 2, 3, 3), (2, 3)),
    "modfc": (lambda: m.modfc(4, 2, 3, actv="silu"), (2, 4), (2, 3)),
    "modresblk": (lambda: m.modresblk(2, 3, 3, 2, actv="silu"), (1, 2, 4, 4), (1, 3)),
    "lstm": (lambda: m.seq(m.lstm(3, 2), operator.itemgetter(0)), (2, 3, 3)),
    "patch_emb": (lambda: m.patch_emb(2, 3, 2), (1, 2, 4, 4)),
}


@pytest.mark.parametrize("name", GRADCHECKED)
def test_inputs_and_parameters_pass_gradcheck(name):
    make, *shapes = GRADCHECKED[name]
    net = make().double()
    inputs = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    names = [key for key, _ in net.named_parameters()]

    def call(*tensors):
        return torch.func.functional_call(
            net, dict(zip(names, tensors[len(inputs) :], strict=True)), tensors[: len(inputs)]
        )

    assert torch.autograd.gradcheck(call, (*inputs, *net.parameters()), fast_mode=True)
