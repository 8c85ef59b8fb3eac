"""Blocks and models on a device: where their tensors lie, what they compute there, and that nothing waits."""

import copy

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

import ai.model as m
from ai.model import fold
from ai.model.container import _LACKING
from ai.model.noise_schedule import ddpm_time
from tests.devices import assert_close, lies_on
from tests.model.blocks import BLOCKS

# What draws anew at every call, in evaluation too, has no value to compare.
DRAWS = {"noise", "conv all options", "modconv"}


def total(out):
    return sum(x.float().square().sum() for x in tree_leaves(out) if isinstance(x, torch.Tensor))


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_computes_on_the_device_what_it_computes_on_the_cpu_and_waits_for_nothing(name, device, no_sync):
    block = BLOCKS[name]
    net = m.Model(block.make()).init(seed=0).eval()
    inputs = block.inputs()
    with torch.no_grad():
        expected = copy.deepcopy(net)(*inputs)
    net.to(device)
    there = [x.to(device) for x in inputs]
    for mode in (net.eval, net.train):
        mode()
        with no_sync():
            out = net(*there)
            if (loss := total(out)).requires_grad:
                loss.backward()
        assert lies_on(out, device)
        grads = [p.grad for p in net.parameters() if p.grad is not None]
        assert not grads or lies_on(grads, device)
        if mode == net.eval and name not in DRAWS:
            assert_close(out, expected)


@pytest.mark.parametrize("device", ["cuda"], indirect=True)
@pytest.mark.parametrize("name", [name for name, block in BLOCKS.items() if not block.integers])
def test_a_block_under_autocast_agrees_with_full_precision(name, device, no_sync):
    block = BLOCKS[name]
    if name == "lstm" and device == "cuda" and torch.bfloat16 in _LACKING:
        pytest.skip("a pretended device would compute on a processor without bfloat16")
    net = m.Model(block.make()).init(seed=0).eval().to(device)
    inputs = [x.to(device) for x in block.inputs()]
    with torch.no_grad(), no_sync():
        expected = net(*inputs)
        with torch.autocast(device, torch.bfloat16):
            out = net(*inputs)
    assert lies_on(out, device)
    if name not in DRAWS:
        # a sum over a hundred bfloat16 products of values up to 3 is off by that much at most
        assert float((total(out) - total(expected)).abs()) <= 0.1 * float(total(expected)) + 0.1


@pytest.mark.skipif(
    torch.__version__ < "2.7" and torch.version.cuda is not None and not torch.cuda.is_available(),
    reason="torch 2.6 for CUDA asks the driver for its fake tensors, too",
)
@pytest.mark.parametrize(
    "name", [name for name in BLOCKS if name not in ("lstm", "gru")]
)  # torch's own reads its weights' addresses
def test_a_block_makes_no_tensor_off_its_device_by_torchs_own_rules(name):
    """torch's fake tensors know its rules of devices exactly, and compute nothing."""
    block = BLOCKS[name]
    net = m.Model(block.make())
    tensors = dict(net.named_parameters()) | dict(net.named_buffers())
    with FakeTensorMode():
        there = {key: torch.empty(x.shape, dtype=x.dtype, device="cuda") for key, x in tensors.items()}
        inputs = [torch.empty(x.shape, dtype=x.dtype, device="cuda") for x in block.inputs()]
        for mode in (net.eval, net.train):
            assert lies_on(torch.func.functional_call(mode(), there, tuple(inputs)), "cuda")


def test_init_draws_the_same_numbers_on_every_device(device):
    def make():
        return m.Model(m.seq(m.conv(3, 4, norm="group"), m.flatten(), m.fc(4 * 64, 5, scale_w=True)))

    expected = make().init(seed=3).state_dict()
    there = make().to(device)
    assert there.init(seed=3) is there
    assert there.device.type == device
    assert_close(dict(there.state_dict()), dict(expected), torch.float64)


def test_saved_weights_come_back_on_the_device(device, tmp_path):
    net = m.Model(m.fc(3, 2)).init(seed=1).to(device)
    net.save(tmp_path / "x.safetensors")
    other = m.Model(m.fc(3, 2)).to(device).init(tmp_path / "x.safetensors")
    assert_close(dict(other.state_dict()), dict(net.state_dict()), torch.float64)
    assert lies_on(dict(other.state_dict()), device)


@pytest.mark.parametrize("ending", ["safetensors", "pt"])
def test_a_device_that_is_not_there_is_named_and_not_taken_for_a_fault_of_the_file(ending, tmp_path):
    m.save_state({"x": torch.ones(2)}, path := tmp_path / f"x.{ending}")
    for device, what in (("warp", "is there, not 'warp': [A-Z]"), ("cuda:99", "is there, not 'cuda:99': [A-Z]")):
        with pytest.raises(ValueError, match=f"^device must be one that {what}"):
            m.load_state(path, device)
    with pytest.raises(ValueError, match=r"^device must be one that torch knows, such as 'cpu' or 'cuda:1', not None$"):
        m.load_state(path, None)
    assert m.load_state(path, "meta")["x"].is_meta
    assert m.load_state(path, "cpu:0")["x"].device.type == "cpu"  # torch knows it, and no loader does


class Denoiser(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(4, 4)

    def forward(self, x, noise, label=None):
        shift = 0 if label is None else torch.where(label < 0, 0.0, 0.1 * label.float())[:, None]
        return self.net(x) + noise[:, None] * 0.1 + shift


def diffusion(**options):
    return m.DiffusionModel(Denoiser(), [4], **options).init(seed=0)


@pytest.mark.parametrize("precond", ["edm", "ddpm"])
def test_a_diffusion_model_trains_without_waiting(precond, device, no_sync):
    x, sigma = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0.1, 1.0, 20.0])
    model = diffusion(precond=precond, label_dropout=0.5)
    with torch.no_grad():
        expected = copy.deepcopy(model)(x, sigma)
    model.to(device)
    x, sigma, label = x.to(device), sigma.to(device), torch.tensor([0, 1, 2], dtype=torch.uint8).to(device)
    with no_sync():
        out = model(x, sigma)
        model(x, sigma, label).sum().backward()
    assert lies_on(out, device)
    assert_close(out, expected)


@pytest.mark.parametrize(
    "how",
    [
        {"sampler": "heun", "churn": 2.0},
        {"sampler": "ddpm", "schedule": "linear"},
        {"sampler": "dpmpp_2m", "label": torch.arange(3), "guidance": 2.0},
    ],
)
def test_a_seed_gives_the_same_samples_on_every_device_and_steps_do_not_wait_for_each_other(how, device, no_sync):
    model = diffusion(precond="ddpm")
    expected = copy.deepcopy(model).sample(3, steps=5, seed=2, **how)
    model.to(device)
    how = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in how.items()}
    with no_sync():
        out = model.sample(3, steps=5, seed=2, **how)
    assert lies_on(out, device)
    assert_close(out, expected)


def test_the_ddpm_step_of_a_noise_level_is_the_same_on_every_device(device, no_sync):
    sigma = torch.tensor([1e-4, 0.01, 0.5, 3.0, 100.0, 1e4])
    there = sigma.to(device)
    with no_sync():
        out = ddpm_time(there)
    assert_close(out, ddpm_time(sigma))


def test_a_folded_copy_lies_where_the_model_does(device):
    net = m.Model(m.seq(m.conv(3, 4, norm="batch", actv="relu"), m.flatten())).init(seed=0).eval().to(device)
    x = torch.randn(2, 3, 5, 5).to(device)
    with torch.no_grad():
        assert_close(fold(net)(x), net(x))


def test_a_cache_of_keys_and_values_lies_where_the_tokens_do(device, no_sync):
    net = m.Model(m.tx_enc(1, 8, 2, causal=True, rotary=True)).init(seed=0).eval().to(device)
    tokens = torch.randn(2, 5, 8).to(device)
    cache = m.KVCache()
    with torch.no_grad(), no_sync():
        whole = net(tokens)
        parts = torch.cat([net(tokens[:, :3], cache=cache), net(tokens[:, 3:], cache=cache)], 1)
    assert_close(parts, whole)
