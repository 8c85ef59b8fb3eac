"""Each example's model leaves torch: as an exported program, and through ONNX, for batches of any size."""

import warnings

import numpy as np
import pytest
import torch
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import ai.model as m
from ai.examples.alphazero import model as alphazero
from ai.examples.autoencoder.model import ImgAutoencoder
from ai.examples.diffusion.model import MLP, UNet
from ai.examples.gpt.model import Model as Gpt
from ai.examples.mnist.model import ConvNet
from ai.examples.mnist.model import Model as FullyConnected
from ai.examples.muzero.model import Model as MuZero
from ai.examples.stylegan2.model import Generator
from ai.examples.vit.model import Model as ViT


def images(*shape):
    return lambda n: (torch.randn(n, *shape),)


def noisy(*shape):
    return lambda n: (torch.randn(n, *shape), torch.rand(n) + 0.1)


MODELS = {
    "mnist": (FullyConnected, images(1, 28, 28)),
    "mnist conv": (ConvNet, images(1, 28, 28)),
    "autoencoder": (lambda: ImgAutoencoder(16, 4, 1, 4, 8), images(1, 16, 16)),
    "vit": (lambda: ViT(16, 4, 3, 10, dim=24, depth=1), images(3, 16, 16)),
    "gpt": (
        lambda: Gpt(11, context=8, dim=16, depth=1, num_heads=2),
        lambda n: (torch.randint(11, (n, 8)),),
    ),
    "diffusion": (lambda: m.DiffusionModel(MLP(dim=16), [2]), noisy(2)),
    "diffusion unet": (
        lambda: m.DiffusionModel(UNet(4, 1, nc=8, nc_mult=(1,), n_blocks=1), [1, 4, 4]),
        noisy(1, 4, 4),
    ),
    "stylegan2": (lambda: Generator(8, nc_base=128, nc_max=16, z_dim=12, w_dim=12, n_mapping=2), images(12)),
    "alphazero": (alphazero.MLP, images(2, 3, 3)),
    "alphazero conv": (lambda: alphazero.ResNet(nc=8, n_blocks=1), images(2, 6, 7)),
    "muzero": (lambda: MuZero(dim=16, dim_state=8), images(2, 3, 3)),
}


def built(name):
    make, inputs = MODELS[name]
    torch.manual_seed(0)
    return make().init(seed=0).eval(), inputs


def parts(out):
    return [out] if isinstance(out, torch.Tensor) else list(out)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_one_program_serves_batches_of_any_size_in_torch_and_in_onnxruntime(name, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model, inputs = built(name)
    args = inputs(3)
    shapes = tuple({0: torch.export.Dim("batch", min=2)} for _ in args)
    program = torch.export.export(model, args, dynamic_shapes=shapes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, about its inner workings
        torch.onnx.export(program, dynamo=True, verbose=False).save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    for n in (2, 5):
        args = inputs(n)
        with torch.no_grad():
            expected = parts(model(*args))
            for found, wanted in zip(parts(program.module()(*args)), expected, strict=True):
                torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
        outs = session.run(None, dict(zip(names, map(np.asarray, args), strict=True)))
        for found, wanted in zip(outs, expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("gpt", "stylegan2", "diffusion unet")])
def test_features_are_extracted(name):
    if name in ("diffusion", "muzero") and torch.__version__ < "2.7":
        pytest.skip("torch.fx of torch 2.6 does not follow what depends on a type of numbers")
    model, inputs = built(name)
    _, names = get_graph_node_names(model)
    middle = names[len(names) // 2]
    found = create_feature_extractor(model, {middle: "middle", names[-1]: "last"})(*inputs(2))
    assert set(found) == {"middle", "last"}
