"""What torch's own exporters and tracers make of the blocks: one program for batches of any size."""

import pytest
import torch
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import ai.model as m
from tests.model.blocks import BLOCKS

OLD = torch.__version__ < "2.7"
EXPORTED = [name for name in BLOCKS if name != "minibatch_std"]  # which is a statistic of the whole batch


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The tensor attributes .*_flat_weights")  # torch's own, of its recurrent layers
@pytest.mark.parametrize("name", EXPORTED)
def test_it_is_exported_for_batches_of_any_size(name):
    if OLD and name == "instance":
        pytest.skip("torch 2.6 exports no instance norm of a batch of any size")
    torch.manual_seed(0)
    model, block = m.Model(BLOCKS[name].make()).init(seed=0).eval(), BLOCKS[name]
    inputs = block.inputs()
    batch = torch.export.Dim("batch", min=2)
    shapes = tuple({0: batch} for _ in inputs)
    program = torch.export.export(model.net, inputs, dynamic_shapes=shapes, strict=False).module()
    for n in (2, 5):
        some = tuple(torch.cat([x, x, x])[:n] for x in inputs)
        torch.manual_seed(1)  # of those that draw noise
        expected = model(*some)
        torch.manual_seed(1)
        torch.testing.assert_close(program(*some), expected, rtol=1e-5, atol=1e-5)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = m.seq(m.fc(3, 16, actv="silu"), m.fc(16, 2))

    def forward(self, x, noise):
        return self.layers(torch.cat([x, noise.unsqueeze(1)], 1))


WHOLE = {
    "readme": (lambda: m.Model(m.seq(m.flatten(), m.fc(784, 10))), ((3, 1, 28, 28),)),
    "diffusion": (lambda: m.DiffusionModel(Net(), [2]), ((3, 2), (3,))),
    "diffusion by v": (lambda: m.DiffusionModel(Net(), [2], precond="v"), ((3, 2), (3,))),
    "two inputs": (lambda: m.Model(m.modresblk(4, 6, 5, 2)), ((3, 4, 8, 8), (3, 5))),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_model_is_exported_for_batches_of_any_size(name):
    make, shapes = WHOLE[name]
    model = make().init(seed=0).eval()
    inputs = tuple(torch.rand(shape) + 0.1 for shape in shapes)
    batch = torch.export.Dim("batch")
    first, *rest = ({0: batch} for _ in inputs)
    # A model that wraps a network takes further arguments as a tuple; so does its specification.
    wrapped = type(model).forward is m.Model.forward and rest
    spec = (first, tuple(rest)) if wrapped else (first, *rest)
    program = torch.export.export(model, inputs, dynamic_shapes=spec, strict=False).module()
    for n in (2, 5):
        some = tuple(torch.cat([x, x])[:n] for x in inputs)
        torch.testing.assert_close(program(*some), model(*some), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "shape", "node"),
    [
        (lambda: m.Model(m.seq(m.conv(3, 4, actv="relu"), m.flatten(), m.fc(256, 2))), (2, 3, 8, 8), "net.1"),
        (lambda: m.Model(m.seq(m.patch_emb(3, 8, 4), m.pos_emb(4, 8), m.tx_enc(2, 8, 2))), (2, 3, 8, 8), "net.1"),
        (lambda: m.Model(m.seq(m.resblk(3, 4, 2), m.resblk(4, 3, 0.5))), (2, 3, 8, 8), "net.0"),
        (lambda: m.Model(m.tx_enc(2, 8, 2, rotary=True, causal=True)), (2, 5, 8), "net.blocks.0"),
    ],
)
def test_features_are_extracted_by_node_name(make, shape, node):
    if OLD and node == "net.blocks.0":
        pytest.skip("torch.fx of torch 2.6 does not follow what depends on a type of numbers")
    model, x = make().init(seed=0).eval(), torch.randn(shape)
    _, names = get_graph_node_names(model)
    chosen = [name for name in names if name.startswith(node)][-1]
    seen = []
    model.get_submodule(node).register_forward_hook(lambda module, args, out: seen.append(out))
    expected = model(x)
    extractor = create_feature_extractor(model, {chosen: "inner", names[-1]: "outer"})
    found = extractor(x)
    torch.testing.assert_close(found["outer"], expected)
    torch.testing.assert_close(found["inner"], seen[0])
