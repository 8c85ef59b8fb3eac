import copy
import pickle

import pytest
import torch
from torch import nn

import ai.model as m
from tests.model.blocks import BLOCKS, IMAGE

OLD = torch.__version__ < "2.7"
every_block = pytest.mark.parametrize("name", BLOCKS)


def built(name):
    torch.manual_seed(0)
    return m.Model(BLOCKS[name].make()).init(seed=0)


def run(model, name, **how):
    torch.manual_seed(1)
    return model(*BLOCKS[name].inputs(**how))


@every_block
def test_every_parameter_gets_a_gradient_and_every_number_of_the_input_has_an_effect(name):
    model = built(name).double().eval()
    inputs = BLOCKS[name].inputs(torch.float64)
    differentiable = not BLOCKS[name].integers
    if differentiable:
        for x in inputs:
            x.requires_grad_()
    torch.manual_seed(1)
    out = model(*inputs)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=out.dtype)
    (out * weights).sum().backward()
    if name != "param" and differentiable:  # a parameter takes only the number of rows from its input
        for x in inputs:
            assert (x.grad.abs() > 1e-12).all()
    for key, parameter in model.net.named_parameters():
        if key not in BLOCKS[name].idle:
            assert parameter.grad is not None, key
            assert parameter.grad.abs().sum() > 1e-9, key


@every_block
def test_same_seed_same_weights_and_another_seed_others(name):
    a, b, c = built(name).init(seed=3), built(name).init(seed=3), built(name).init(seed=4)
    for (key, x), y in zip(a.state_dict().items(), b.state_dict().values(), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=0, msg=key)
    drawn = [key for key, p in a.named_parameters() if p.dim() > 1]
    assert all((a.state_dict()[key] != c.state_dict()[key]).any() for key in drawn)


@every_block
def test_a_model_built_on_the_meta_device_draws_the_same(name):
    with torch.device("meta"):
        model = m.Model(BLOCKS[name].make())
    model.init(seed=0)
    expected = built(name)
    torch.testing.assert_close(model.state_dict(), expected.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(run(model, name), run(expected, name), rtol=0, atol=0)


@every_block
@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_saved_and_loaded_it_computes_the_same(name, ending, tmp_path):
    model = built(name)
    model.save(tmp_path / f"model.{ending}")
    loaded = m.Model(BLOCKS[name].make()).init(tmp_path / f"model.{ending}")
    torch.testing.assert_close(run(loaded, name), run(model, name), rtol=0, atol=0)


@every_block
def test_copied_it_computes_the_same(name):
    model = built(name).eval()
    expected = run(model, name)
    torch.testing.assert_close(run(copy.deepcopy(model), name), expected, rtol=0, atol=0)


@every_block
def test_pickled_it_computes_the_same(name):
    model = built(name).eval()
    expected = run(model, name)
    torch.testing.assert_close(run(pickle.loads(pickle.dumps(model)), name), expected, rtol=0, atol=0)


def outputs_and_gradients(call, model, inputs):
    model.zero_grad()
    torch.manual_seed(1)
    own = [x.clone().requires_grad_(x.is_floating_point()) for x in inputs]
    out = call(*own)
    if out.requires_grad:
        out.square().sum().backward()
    return [out.detach(), *(x.grad for x in own), *(p.grad for p in model.parameters())]


@pytest.mark.slow
@every_block
def test_it_compiles_as_one_graph_with_its_gradients(name):
    model = built(name).double().eval()
    inputs = BLOCKS[name].inputs(torch.float64)
    expected = outputs_and_gradients(model, model, inputs)
    torch.compiler.reset()
    with torch._dynamo.config.patch(allow_rnn=True):  # torch leaves its recurrent layers out unless asked
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        found = outputs_and_gradients(compiled, model, inputs)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@every_block
def test_it_runs_under_bfloat16_autocast(name):
    if OLD and name in ("conv all options", "modconv"):
        pytest.skip("torch 2.6 draws other noise in bfloat16 than in float32")
    model = built(name)
    with torch.autocast("cpu", torch.bfloat16):
        out = run(model, name)
    out.float().sum().backward() if out.requires_grad else None
    torch.testing.assert_close(out.float(), run(model, name).float(), rtol=0.1, atol=0.15)


@pytest.mark.parametrize("name", [name for name, block in BLOCKS.items() if block.shapes[0] == IMAGE])
def test_channels_last_gives_the_same(name):
    model = built(name).eval()
    expected = run(model, name)
    model = model.to(memory_format=torch.channels_last)
    first, *rest = BLOCKS[name].inputs()
    torch.manual_seed(1)
    out = model(first.contiguous(memory_format=torch.channels_last), *rest)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("plain", "more"),
    [
        (lambda: m.fc(4, 4), lambda: m.fc(4, 4, actv="relu", dropout=0.1, scale_w=True, lr_mult=0.1)),
        (lambda: m.conv(4, 4), lambda: m.conv(4, 4, actv="mish", gain=2.0, clamp=1.0, stride=2, padtype="reflect")),
    ],
)
def test_an_added_option_loads_the_file_saved_without_it(plain, more, tmp_path):
    m.Model(plain()).init().save(tmp_path / "plain.safetensors")
    loaded = m.Model(more()).init(tmp_path / "plain.safetensors")
    assert set(loaded.state_dict()) == {"net.weight", "net.bias"}


def test_repeated_blocks_are_no_twins():
    first, second = m.repeat(2, m.seq(m.fc(4, 4), nn.Linear(4, 4)))
    for x, y in zip(first.parameters(), second.parameters(), strict=True):
        assert x is not y
        assert x.dim() == 1 or (x != y).any()


def test_embed_looks_up_its_rows(on_device):
    table = m.embed(5, 3)
    index = torch.tensor([[4, 0]], dtype=torch.uint8)
    torch.testing.assert_close(on_device(table)(index), table.weight[[4, 0]][None], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: m.fc(4, 4, actv="rellu"), r"actv \('rellu'\) must be one of .*relu"),
        (lambda: m.conv(4, 4, norm="bach"), r"norm \('bach'\) must be one of batch"),
        (lambda: m.conv(4, 6, norm="group:4"), r"n_groups \(4\) must divide nc \(6\)"),
        (lambda: m.conv(4, 4, norm="group:"), r"norm \('group:'\) must be a name alone, or group:N"),
        (lambda: m.conv(4, 4, norm="batch:2"), r"norm \('batch:2'\) must be a name alone, or group:N"),
        (lambda: m.tx_enc_blk(8, 2, mlp_dim=0), r"hidden \(0\) must be at least 1"),
        (lambda: m.dit_blk(8, 2, 4, mlp_dim=0), r"hidden \(0\) must be at least 1"),
        (lambda: m.convnext_blk(8, hidden=0), r"hidden \(0\) must be at least 1"),
        (lambda: m.norm.batch(0), r"nc \(0\) must be at least 1"),
        (lambda: m.registers(0, 4), r"n \(0\) and dim \(4\) must be at least 1"),
        (lambda: m.conv(4, 4, padtype="mirror"), r"padtype \('mirror'\) must be one of zeros"),
        (lambda: m.fc(0, 4), r"n1 \(0\) must be at least 1"),
        (lambda: m.fc(4, 4, lr_mult=0), r"lr_mult \(0\) must be above 0"),
        (lambda: m.fc(4, 4, dropout=1.0), r"dropout \(1.0\) must lie in \[0, 1\)"),
        (lambda: m.conv(4, 0), r"nc2 \(0\) must be at least 1"),
        (lambda: m.conv(4, 4, stride=1.5), r"stride \(1.5\) must be a whole number"),
        (lambda: m.conv(4, 4, stride=0), r"stride \(0\) must be a whole number"),
        (lambda: m.conv(4, 6, groups=4), r"groups \(4\) must divide nc1 \(4\) and nc2 \(6\)"),
        (lambda: m.conv(4, 4, clamp=-1), r"clamp \(-1\) must be above 0"),
        (lambda: m.resblk(4, 4, 2.5), r"stride \(2.5\) must be a whole number"),
        (lambda: m.norm.group(6, 4), r"n_groups \(4\) must divide nc \(6\)"),
        (lambda: m.pyramid(32, 5, 4, 8, lambda *_: m.null()), r"size_in \(32\) and size_out \(5\) must be a power of"),
        (lambda: m.pyramid(32, 8, 9, 8, lambda *_: m.null()), r"nc_min \(9\) must be at least 1 and at most nc_max"),
        (lambda: m.sa(9, 2), r"n_heads \(2\) must divide dim \(9\)"),
        (lambda: m.sa(8, 4, n_kv_heads=3), r"n_kv_heads \(3\) must divide n_heads \(4\)"),
        (lambda: m.sa(6, 2, rotary=True), r"head_dim \(3\) must be even"),
        (lambda: m.modconv(4, 4, 4, "wait"), r"modtype \('wait'\) must be one of weight, adalin"),
        (lambda: m.pos_emb(4, 8, "absolute"), r"kind \('absolute'\) must be one of learned"),
        (lambda: m.pos_emb(4, 7, "sinusoidal"), r"dim \(7\) must be a multiple of 2"),
        (lambda: m.fc(4, -1), r"n2 \(-1\) must be at least 1"),
        (lambda: m.conv(4, 4, actv="gleu"), r"actv \('gleu'\) must be one of .*gelu"),
        (lambda: m.conv(4, 4, actv=3), r"actv \(3\) must be one of"),
        (lambda: m.conv(4, 4, 0), r"k \(0\) must be at least 1"),
        (lambda: m.conv(4, 4, stride=0.3), r"stride \(0.3\) must be a whole number"),
        (lambda: m.conv(4, 4, lr_mult=-1), r"lr_mult \(-1\) must be above 0"),
        (lambda: m.resblk(4, 4, norm="bach"), r"norm \('bach'\) must be one of .*batch"),
        (lambda: m.resblk_group(0, 4, 4), r"n \(0\) must be at least 1"),
        (lambda: m.se(4, 0), r"reduction \(0\) must be at least 1"),
        (lambda: m.lstm(3, 0), r"n2 \(0\) must be at least 1"),
        (lambda: m.pyramid(0, 8, 4, 8, lambda *_: m.null()), r"size_in \(0\) and size_out \(8\) must be a power of"),
        (lambda: m.sa(8, 0), r"n_heads \(0\) must be at least 1"),
        (lambda: m.sa(8, 2, 0), r"head_dim \(0\) must be at least 1"),
        (lambda: m.attn(8, 2, dim_kv=0), r"dim_kv \(0\) must be at least 1"),
        (lambda: m.sa(8, 2, dropout=1), r"dropout \(1\) must lie in \[0, 1\)"),
        (lambda: m.tx_enc_blk(9, 2), r"n_heads \(2\) must divide dim \(9\)"),
        (lambda: m.tx_enc_blk(8, 2, norm="lyer"), r"norm \('lyer'\) must be one of .*layer"),
        (lambda: m.sa(8, 2, window=0), r"window \(0\) must be at least 1 or None"),
        (lambda: m.rotary(1.0), r"base \(1.0\) must be above 1"),
        (lambda: m.rotary(scaling="yarm"), r"scaling \('yarm'\) must be one of None, linear"),
        (lambda: m.rotary(factor=2.0), r"factor \(2.0\) must be at least 1, and 1 without a scaling"),
        (lambda: m.rotary(scaling="yarn", factor=2.0), r"context \(None\) must be given for yarn and llama3"),
        (lambda: m.mlp(8, 0), r"hidden \(0\) must be at least 1"),
        (lambda: m.mlp(8, 8, "relu", gate="silu"), r"actv \('relu'\) must be left alone with a gate \('silu'\)"),
        (lambda: m.layer_scale(0), r"dim \(0\) must be at least 1"),
        (lambda: m.fc(4, 4, bias=False, bias_init=1.0), r"bias_init \(1.0\) must be 0 without a bias"),
        (lambda: m.lstm(3, 4, dropout=0.5), r"dropout \(0.5\) must be 0 with one layer"),
        (lambda: m.modconv(4, 4, 4, "adalin", demod=False), r"demod \(False\) must be left at True"),
        (lambda: m.tx_enc(0, 8), r"n \(0\) must be at least 1"),
        (lambda: m.tx_dec(0, 8), r"n \(0\) must be at least 1"),
        (lambda: m.modconv(4, 4, 0), r"z_dim \(0\) must be at least 1"),
        (lambda: m.modconv(4, 4, 4, k=0), r"k \(0\) must be at least 1"),
        (lambda: m.modconv(4, 4, 4, stride=1.5), r"stride \(1.5\) must be a whole number"),
        (lambda: m.modconv(4, 4, 4, clamp=0), r"clamp \(0\) must be above 0"),
        (lambda: m.modconv(4, 4, 4, lr_mult=0), r"lr_mult \(0\) must be above 0"),
        (lambda: m.modfc(0, 4, 4), r"n1 \(0\) must be at least 1"),
        (lambda: m.modresblk(4, 4, 4, modtype="wait"), r"modtype \('wait'\) must be one of"),
        (lambda: m.pos_emb(0, 8), r"n \(0\) and dim \(8\) must be at least 1"),
        (lambda: m.pos_emb(4, 6, "2d"), r"dim \(6\) must be a multiple of 4"),
        (lambda: m.pos_emb(4, 8, "2d"), r"n \(4\) must be \(height, width\)"),
        (lambda: m.embed(0, 8), r"n \(0\) and dim \(8\) must be at least 1"),
        (lambda: m.patch_emb(3, 8, 0), r"patch \(0\) must be at least 1"),
        (lambda: m.resample(1.5), r"stride \(1.5\) must be a whole number"),
        (lambda: m.blur(()), r"kernel \(\(\)\) must have at least one tap"),
        (lambda: m.upfirdn(()), r"kernel \(\(\)\) must have at least one tap"),
        (lambda: m.upfirdn((1, 1), 0), r"up \(0\) and down \(1\) must be at least 1"),
        (lambda: m.minibatch_std(0), r"group_size \(0\) must be at least 1"),
        (lambda: m.drop_path(1.0), r"p \(1.0\) must lie in"),
        (lambda: m.clamp(0), r"bound \(0\) must be positive"),
        (lambda: m.repeat(-1, m.null()), r"n \(-1\) must be at least 0"),
    ],
)
def test_bad_arguments_are_named_at_construction(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: m.sa(8, "2"), "n_heads"),
        (lambda: m.tx_enc(2.0, 8, 2), "n"),
        (lambda: m.mlp(8, 16.0), "hidden"),
        (lambda: m.layer_scale(8.5), "dim"),
        (lambda: m.registers(2.0, 8), "n"),
        (lambda: m.embed(5.0, 8), "n"),
        (lambda: m.pos_emb((2.0, 3), 8, "2d"), "height"),
        (lambda: m.patch_emb(3, 8, 4.0), "patch"),
        (lambda: m.time_emb(4.0), "dim"),
        (lambda: m.dit_blk(8, 2, 4.0), "z_dim"),
        (lambda: m.vq(4.0, 3), "n_codes"),
        (lambda: m.conv_nd(2, 3, 4, 3.0), "k"),
        (lambda: m.conv_nd(2, 3, 4, (3, 3.0)), "k"),
        (lambda: m.conv_transposed(3, 4, 4.0), "k"),
        (lambda: m.pool(2.0), "k"),
        (lambda: m.convnext_blk(8.0), "nc"),
        (lambda: m.norm.group(8, 2.0), "n_groups"),
        (lambda: m.norm.batch("8"), "nc"),
        (lambda: m.norm.layer(8.0), "dim"),
        (lambda: m.lstm(4.0, 3), "n1"),
        (lambda: m.gru(4, 3.0), "n2"),
        (lambda: m.repeat(2.0, m.null), "n"),
        (lambda: m.modconv(4, 4, 4.0), "z_dim"),
        (lambda: m.modfc(4, 4.0, 4), "n2"),
        (lambda: m.resblk_group(2.0, 4, 4), "n"),
        (lambda: m.se(4, 2.0), "reduction"),
        (lambda: m.minibatch_std(3.0), "group_size"),
    ],
)
def test_a_number_that_is_not_whole_is_named(make, name):
    with pytest.raises(TypeError, match=rf"^{name} must be a whole number( or None)?, got "):
        make()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: m.f.resample(x, 3), r"stride \(3\) must divide the image's size \(8 x 8\)"),
        (lambda x: m.f.conv(x, torch.ones(1, 4, 3, 3), padtype="mirror"), r"padtype \('mirror'\) must be one of zeros"),
        (lambda x: m.f.upfirdn(x, (1,) * 9), r"kernel \(9 taps\) must fit the padded image \(8 x 8\)"),
        (lambda x: m.f.upfirdn(x, torch.ones(2, 2)), r"kernel must be a list of taps, not of shape \(2, 2\)"),
        (lambda x: m.f.minibatch_std(x, 3, 3), r"n_features \(3\) must divide nc \(4\)"),
        (lambda x: m.f.rearrange(x, "b c h w -> b c h"), r"must have the same axes, each once, on both sides"),
        (
            lambda x: m.f.rearrange(x, "b c h w -> b c w h", p=2),
            r"sizes \(p=2\) must be of axes of 'b c h w -> b c w h'",
        ),
        (lambda x: m.f.rearrange(x, "b c (h w -> b c h w"), r"must have its parentheses in pairs"),
        (lambda x: m.f.rearrange(x, "b c ((h) w) -> b c h w"), r"must have its parentheses in pairs"),
        (lambda x: m.f.rearrange(x, "b c h) w -> b c h w"), r"must have its parentheses in pairs"),
        (lambda x: m.f.rearrange(x, "b c h -> b c h"), r"names 3 axes, the tensor has shape \(3, 4, 8, 8\)"),
        (lambda x: m.f.rearrange(x, "b c (h p) w -> b c h p w"), r"needs the sizes of all but one of h, p"),
        (lambda x: m.f.rearrange(x, "b c (h p) w -> b c h p w", p=3), r"axis \(h p\) of .* has size 8, which 3"),
        (lambda x: m.sa(8, 2)(x[0], mask=torch.ones(8, 8).long()), r"mask must be bool .* got torch.int64: give"),
        (lambda x: m.patch_emb(4, 8, 3)(x), r"patch \(3\) must divide the image's size \(8 x 8\)"),
        (
            lambda x: m.pos_emb(4, 8)(x.flatten(2)[:, :, :8].repeat(1, 2, 1)),
            r"x must end at position 4 at most, not at 8",
        ),
        (lambda x: m.norm.instance(4)(x[0, 0]), r"instance norm needs \(batch, 4, …\), got shape \(8, 8\)"),
        (lambda x: m.norm.batch(4)(x[0, 0, 0]), r"batch norm needs \(batch, 4, …\), got shape \(8,\)"),
    ],
)
def test_inputs_that_do_not_fit_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.randn(IMAGE))


def test_axes_may_have_any_name():
    x = torch.arange(12.0).view(2, 6)
    expected = x.view(2, 2, 3).transpose(1, 2)
    for found in (
        m.f.rearrange(x, "b (x y) -> b y x", x=2),
        m.rearrange("b (x y) -> b y x", x=2)(x),
        m.f.rearrange(x, "self (pattern y) -> self y pattern", pattern=2),
        m.rearrange("self (function y) -> self y function", function=2)(x),
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_float_mask_of_another_type_is_taken(on_device):
    net, x = m.sa(8, 2).double(), torch.randn(2, 5, 8, dtype=torch.float64)
    allowed = torch.ones(5, 5, dtype=torch.bool).tril()
    added = torch.zeros(5, 5).masked_fill(~allowed, -torch.inf)
    torch.testing.assert_close(on_device(net)(x, mask=added), net(x, mask=allowed))


@pytest.mark.parametrize("short", [torch.bfloat16, torch.float16])
def test_a_recurrent_layer_computes_where_the_processor_lacks_the_type_of_autocast(monkeypatch, short):
    net, x = m.lstm(8, 4, 2), torch.randn(2, 6, 8)
    monkeypatch.setattr("ai.model.container._LACKING", {short})
    expected, (hidden, cell) = net(x)
    with torch.autocast("cpu", short):
        found = net(x)
        torch.testing.assert_close(found[0], expected.to(short), rtol=0, atol=0)
        torch.testing.assert_close(found[1], (hidden.to(short), cell.to(short)), rtol=0, atol=0)
        again, _ = net(x, found[1])
        assert again.dtype == short
    packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([6, 3]), batch_first=True)
    with torch.autocast("cpu", short):
        assert net(packed)[0].data.dtype == short


def test_structures_pickled_by_earlier_versions_compute_the_same():
    net = m.rearrange("b (x y) -> b y x", x=2)
    net.options, net.fixed = {"pattern": net.fixed[0], "x": 2}, ()
    del net.fixed
    x = torch.arange(12.0).view(2, 6)
    torch.testing.assert_close(pickle.loads(pickle.dumps(net))(x), m.rearrange("b (x y) -> b y x", x=2)(x))
    attention = m.sa(8, 2, causal=True, rotary=True)
    old = copy.deepcopy(attention)
    old.rotary = True
    for name in ("window", "alibi", "scale"):
        del vars(old)[name]
    tokens = torch.randn(2, 5, 8)
    torch.testing.assert_close(pickle.loads(pickle.dumps(old))(tokens), attention(tokens), rtol=0, atol=0)
