import json
from dataclasses import replace

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from ai.data import Dataset
from ai.examples.cli import read_config
from ai.examples.vit import Config, Model, data, run
from ai.examples.vit.attention import attention_rollout, attention_weights
from ai.examples.vit.main import DESCRIPTIONS, PRESETS, groups, load


@pytest.mark.parametrize(
    ("shape", "n_params"),
    [
        ((192, 12, 3), 5_717_416),
        ((384, 12, 6), 22_050_664),
        ((768, 12, 12), 86_567_656),
        ((1024, 24, 16), 304_326_632),
    ],
)
def test_the_published_sizes_have_their_published_number_of_parameters(shape, n_params):
    dim, depth, num_heads = shape
    with torch.device("meta"):
        model = Model(dim=dim, depth=depth, num_heads=num_heads)
    assert model.n_params == n_params


def small(**options) -> Model:
    shape = {"dim": 24, "depth": 3, "num_heads": 2, **options}
    return Model(16, 4, 2, 5, **shape).init(seed=0)


def images(n: int = 6, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(n, 2, 16, 16, generator=torch.Generator().manual_seed(1)).to(dtype)


def timm_with_the_weights_of(model: Model, pool: str) -> VisionTransformer:
    theirs = VisionTransformer(
        img_size=16,
        patch_size=4,
        in_chans=2,
        num_classes=5,
        embed_dim=24,
        depth=3,
        num_heads=2,
        global_pool="token" if pool == "cls" else "avg",
        class_token=pool == "cls",
        fc_norm=False,
    ).double()
    ours = model.state_dict()
    state = {
        "pos_embed": ours["positions.table"][None],
        "patch_embed.proj.weight": ours["patches.weight"],
        "patch_embed.proj.bias": ours["patches.bias"],
        "norm.weight": ours["blocks.norm.weight"],
        "norm.bias": ours["blocks.norm.bias"],
        "head.weight": ours["head.weight"],
        "head.bias": ours["head.bias"],
    }
    if pool == "cls":
        state["cls_token"] = ours[next(key for key in ours if key.startswith("cls."))].reshape(1, 1, -1)
    for i in range(3):
        for part in ("weight", "bias"):
            block = f"blocks.blocks.{i}"
            state[f"blocks.{i}.norm1.{part}"] = ours[f"{block}.norm1.{part}"]
            state[f"blocks.{i}.norm2.{part}"] = ours[f"{block}.norm2.{part}"]
            state[f"blocks.{i}.attn.qkv.{part}"] = torch.cat([ours[f"{block}.attn.{x}.{part}"] for x in ("q", "kv")])
            state[f"blocks.{i}.attn.proj.{part}"] = ours[f"{block}.attn.out.{part}"]
            state[f"blocks.{i}.mlp.fc1.{part}"] = ours[f"{block}.mlp.0.{part}"]
            state[f"blocks.{i}.mlp.fc2.{part}"] = ours[f"{block}.mlp.1.{part}"]
    theirs.load_state_dict(state)
    return theirs


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_outputs_and_gradients_are_those_of_timm(pool, on_device):
    model = small(pool=pool).double()
    for parameter in model.parameters():  # biases and norms off their simple initial values
        nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    theirs = timm_with_the_weights_of(model, pool)
    a, b = (images(dtype=torch.float64).requires_grad_() for _ in range(2))
    y, z = on_device(model)(a), theirs(b)
    assert (y - z).abs().max() < 1e-12
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (y * weights).sum().backward()
    (z * weights).sum().backward()
    assert (a.grad - b.grad).abs().max() < 1e-11
    assert (model.head.weight.grad - theirs.head.weight.grad).abs().max() < 1e-11
    mine, other = model.blocks.blocks[0].attn.q.weight.grad, theirs.blocks[0].attn.qkv.weight.grad[:24]
    assert (mine - other).abs().max() < 1e-11


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_every_pixel_and_every_parameter_matters(pool, on_device):
    model = small(pool=pool)
    x = images(2).requires_grad_()
    on_device(model)(x).logsumexp(1).sum().backward()
    assert (x.grad != 0).all()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())
    assert on_device(model)(images()).std(0).min() > 0.05


def test_stochastic_depth_skips_blocks_of_some_images_while_training_only(any_device):
    model = small(drop_path=0.5).to(any_device)
    x = images(1).to(any_device).expand(64, -1, -1, -1)
    assert torch.equal(model.eval()(x)[0], model(x)[-1])
    torch.manual_seed(0)
    outputs = model.train()(x)
    assert len(outputs.detach().round(decimals=5).unique(dim=0)) > 3


def test_recomputed_attention_weights_give_the_layers_own_output(on_device):
    layer = small().blocks.blocks[1].attn.double()
    x = torch.randn(3, 7, 24, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = on_device(attention_weights)(layer, x)
    assert torch.allclose(weights.sum(-1), torch.ones(3, 2, 7, dtype=torch.float64))
    values = layer.kv(x).unflatten(-1, (2, 2, -1))[:, :, 1].transpose(1, 2)
    mixed = (weights @ values).transpose(1, 2).flatten(2)
    assert (layer.out(mixed) - layer(x)).abs().max() < 1e-12


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_rollout_is_a_distribution_over_the_patches(pool, on_device):
    model = small(pool=pool).train()
    maps = on_device(attention_rollout)(model, images(3))
    assert maps.shape == (3, 4, 4)
    assert (maps > 0).all()
    total = maps.sum((1, 2))
    assert (total <= 1 + 1e-5).all()
    if pool == "mean":
        assert torch.allclose(total, torch.ones(3))
    assert model.training
    assert not maps.requires_grad


def test_rollout_finds_the_only_patch_that_the_class_token_reads():
    model = small(pool="cls", depth=1)
    with torch.no_grad():
        model.positions.table.zero_()
        attention = model.blocks.blocks[0].attn
        for part in (attention.q, attention.kv):
            part.weight.zero_()
            part.bias.zero_()
        attention.q.bias.fill_(4.0)
        attention.kv.weight[:24] = torch.eye(24) * 4  # keys are the tokens
        model.patches.weight.copy_(model.patches.weight.abs())
    x = torch.full((1, 2, 16, 16), -1.0)
    x[:, :, 4:8, 8:12] = 1  # patch (1, 2)
    weights = attention_rollout(model, x)[0]
    assert weights.argmax() == 1 * 4 + 2 or weights[1, 2] == weights.max()


def test_layerwise_decay_slows_what_lies_near_the_input():
    model = small()
    assert groups(model, 1.0)(model)[1]["weight_decay"] == 0
    factors = {}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for group in groups(model, 0.5)(model):
        for parameter in group["params"]:
            factors[names[id(parameter)]] = group["lr_factor"]
    assert factors["head.weight"] == 1
    assert [factors[f"blocks.blocks.{i}.attn.q.weight"] for i in range(3)] == [0.125, 0.25, 0.5]
    assert factors["patches.weight"] == factors["positions.table"] == 0.0625


def test_embeddings_norms_and_biases_are_not_decayed():
    model = small()
    decayed, exempt = groups(model, 1.0)(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(p)].rpartition(".")[2] for p in decayed["params"]} == {"weight"}
    assert any(names[id(p)] == "positions.table" for p in exempt["params"])
    assert any(names[id(p)].startswith("cls") for p in exempt["params"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_size": 5}, r"patch_size \(5\) must divide imsize \(224\)"),
        ({"pool": "max"}, "pool must be 'cls' or 'mean', got 'max'"),
        ({"num_heads": 5}, r"n_heads \(5\) must divide dim \(192\)"),
    ],
)
def test_bad_shapes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Model(**options)


def test_cifars_size_cannot_be_chosen():
    with pytest.raises(ValueError, match="imsize must be 32, that of CIFAR's images, got 16"):
        load(Config(dataset="cifar10"))


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_builds_its_model(preset):
    config = PRESETS[preset]
    with torch.device("meta"):
        model = Model(config.imsize, config.patch_size, 3, 10, dim=config.dim, depth=config.depth,
                      num_heads=config.num_heads, pool=config.pool)  # fmt: skip
    assert model.n_params > 0
    assert PRESETS.keys() == DESCRIPTIONS.keys()


def test_the_command_line_reads_presets(monkeypatch):
    monkeypatch.setattr("sys.argv", ["vit", "tiny", "--steps", "2", "--pool", "cls"])
    config = read_config(PRESETS, DESCRIPTIONS, None)
    assert (config.steps, config.pool, config.imsize) == (2, "cls", 8)


@pytest.mark.slow
def test_the_tiny_preset_leaves_a_whole_trial(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("AI_LAB_PATH", str(tmp_path))
    numbers = run(PRESETS["tiny"])
    folder = tmp_path / "vit"
    for picture in ("confusion.png", "attention.png"):
        assert (folder / picture).read_bytes().startswith(b"\x89PNG")
    assert json.loads((folder / "accuracy.json").read_text())["reference"] == "digits, 360 held-out images"
    assert (folder / "snapshots" / "000000004" / "model.safetensors").exists()
    assert 0 <= numbers["accuracy"] <= 1
    assert f"{numbers['accuracy']:.2%}" in capsys.readouterr().out
    assert run(replace(PRESETS["tiny"], resume=True)) == numbers  # there is nothing left to train


def test_cifar_is_augmented_as_deit_does(monkeypatch):
    pixels = torch.randint(0, 256, (24, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(24, dtype=torch.uint8) % 10

    def stored(*, n_classes):
        scaled = {"x": lambda x: x.float() / 127.5 - 1}
        return Dataset({"x": pixels, "y": labels}, postprocess=scaled, default_split=(16, 8))

    monkeypatch.setattr(data, "cifar_dataset", stored)
    train_set, held_out = data.cifar(10, mixup_alpha=0.8, cutmix_alpha=1.0)
    a, b = (next(iter(train_set.loader(16, train=True, seed=0, n_workers=0))) for _ in range(2))
    assert torch.equal(a["x"], b["x"])
    assert a["y"].shape == (16, 10)
    assert torch.allclose(a["y"].sum(1), torch.ones(16))
    assert ((a["y"] > 0).sum(1) <= 2).all()
    originals = pixels[:16].float() / 127.5 - 1
    nearest = torch.cdist(a["x"].flatten(1), originals.flatten(1)).min(1).values
    assert (nearest > 1).all()
    plain = next(iter(held_out.loader(8)))
    assert torch.equal(plain["x"], pixels[16:].float() / 127.5 - 1)
    assert plain["y"].dtype == torch.uint8

    unmixed, _ = data.cifar(10, mixup_alpha=0, cutmix_alpha=0)
    assert next(iter(unmixed.loader(16, train=True, n_workers=0)))["y"].dtype == torch.uint8
