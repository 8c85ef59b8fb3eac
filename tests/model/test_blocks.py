import copy
import pickle

import pytest
import torch
from torch import nn

import ai.model as m
from tests.model.blocks import BLOCKS, IMAGE

every_block = pytest.mark.parametrize("name", BLOCKS)


def built(name):
    torch.manual_seed(0)
    return m.Model(BLOCKS[name].make()).init(seed=0)


def run(model, name, **how):
    torch.manual_seed(1)
    return model(*BLOCKS[name].inputs(**how))


@every_block
def test_every_parameter_gets_a_gradient_and_every_input_has_an_effect(name):
    model = built(name).double()
    inputs = [x.requires_grad_() for x in BLOCKS[name].inputs(torch.float64)]
    out = model(*inputs)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=out.dtype)
    (out * weights).sum().backward()
    if name != "param":
        for x in inputs:
            assert x.grad.abs().sum() > 0
    for key, parameter in model.net.named_parameters():
        if key not in BLOCKS[name].idle and not key.endswith("k.bias"):
            assert parameter.grad is not None, key
            assert parameter.grad.abs().sum() > 1e-12, key


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


@pytest.mark.parametrize("name", [name for name in BLOCKS if name != "lstm"])  # whose test block holds a lambda
def test_pickled_it_computes_the_same(name):
    model = built(name).eval()
    expected = run(model, name)
    torch.testing.assert_close(run(pickle.loads(pickle.dumps(model)), name), expected, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in BLOCKS if name != "lstm"]
)  # torch does not trace its recurrent layers
def test_it_compiles_as_one_graph(name):
    model = built(name).eval()
    expected = run(model, name)
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(run(compiled, name), expected, rtol=1e-5, atol=1e-5)


@every_block
def test_it_runs_under_bfloat16_autocast(name):
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


def test_embed_looks_up_its_rows():
    table = m.embed(5, 3)
    index = torch.tensor([[4, 0]], dtype=torch.uint8)
    torch.testing.assert_close(table(index), table.weight[[4, 0]][None], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: m.fc(4, 4, actv="rellu"), r"actv \('rellu'\) must be one of .*relu"),
        (lambda: m.conv(4, 4, norm="bach"), r"norm \('bach'\) must be one of batch"),
        (lambda: m.conv(4, 4, padtype="mirror"), r"padtype \('mirror'\) must be one of zeros"),
        (lambda: m.fc(0, 4), r"n1 \(0\) must be at least 1"),
        (lambda: m.fc(4, 4, lr_mult=0), r"lr_mult \(0\) must be above 0"),
        (lambda: m.fc(4, 4, dropout=1.0), r"dropout \(1.0\) must lie in \[0, 1\)"),
        (lambda: m.conv(4, 0), r"nc2 \(0\) must be at least 1"),
        (lambda: m.conv(4, 4, 2), r"k \(2\) must be odd"),
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
        (lambda: m.drop_path(1.0), r"p \(1.0\) must lie in"),
        (lambda: m.clamp(0), r"bound \(0\) must be positive"),
        (lambda: m.repeat(-1, m.null()), r"n \(-1\) must be at least 0"),
    ],
)
def test_bad_arguments_are_named_at_construction(make, message):
    with pytest.raises(ValueError, match=message):
        make()
