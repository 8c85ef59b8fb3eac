"""The examples on a device: whole tiny runs, and training steps that wait for nothing."""

from dataclasses import replace
from importlib import import_module

import pytest
import torch
from torch import nn

from ai.examples.alphazero.loss import AlphaZero
from ai.examples.augment import affine
from ai.examples.gpt.main import NextCharacter, windows
from ai.examples.gpt.model import Model
from ai.examples.stylegan2.loss import StyleGAN2Loss
from ai.examples.stylegan2.model import Discriminator, Generator
from ai.train import Classify, HookInterface, MultiTrainer, Trainer, opt
from tests.devices import assert_close, lies_on
from tests.pretended_cuda import PretendedCuda

TINY = {
    "vit": {},
    "diffusion": {},
    "stylegan2": {"steps": 2},
    "muzero": {"game": "ai.game:SlidingTiles(size=2, max_steps=6)", "steps": 2, "reanalyse": None},
}


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cuda"], indirect=True)  # their own tests run them on the CPU
@pytest.mark.parametrize("name", TINY)
def test_a_tiny_run_ends_well_on_the_device(name, device, tmp_path):
    main = import_module(f"ai.examples.{name}.main")
    found = main.run(replace(main.PRESETS["tiny"], device=device, trial=str(tmp_path / "trial"), **TINY[name]))
    assert all(value == value for value in found.values())
    assert (tmp_path / "trial" / "metrics.jsonl").read_text()


@pytest.mark.parametrize("name", ["alphazero", "dqn", "gpt", "muzero", "ppo", "sac", "sampled_muzero"])
def test_a_device_that_is_not_there_is_named_before_anything_is_made(name, tmp_path):
    main = import_module(f"ai.examples.{name}.main")
    config = replace(main.PRESETS["tiny"], device="cuda:97", trial=str(tmp_path / "trial"))
    with pytest.raises(ValueError, match=r"device 'cuda:97' is not available: torch sees [0-9]+ CUDA devices"):
        main.run(config)
    assert not list(tmp_path.iterdir())


class Silent(HookInterface):
    """Logs nothing; between the second step and the last nothing may wait."""

    def __init__(self, no_sync, last):
        self.context, self.last, self.inside = no_sync(), last, False

    def wants_log(self, step):
        return False

    def step(self, step):
        if step == 1:
            self.context.__enter__()
            self.inside = True
        if step == self.last:
            self.done()

    def done(self):
        if self.inside:
            self.inside = False
            self.context.__exit__(None, None, None)


@pytest.mark.parametrize("augment", [None, affine(15, 0.1, 0.2, 0.3)], ids=["plain", "augmented"])
def test_a_round_of_stylegan2_waits_for_nothing_and_learns_what_the_cpu_learns(augment, device, no_sync):
    def learn(device, hook):
        torch.manual_seed(0)
        generator = Generator(8, nc_max=8, z_dim=4, w_dim=4, n_mapping=2, n_classes=3).init(seed=0)
        models = {"g": generator.to(device), "d": Discriminator(8, nc_max=8, n_classes=3).init(seed=1).to(device)}
        rng = torch.Generator().manual_seed(2)
        batches = [
            {"x": torch.rand(4, 3, 8, 8, generator=rng).to(device), "y": torch.arange(4).to(device) % 3}
            for _ in range(6)
        ]
        env = StyleGAN2Loss(r1_interval=2, path_interval=2, mirror=True, augment=augment)
        opts = {key: opt.adam(model, lr=1e-3, betas=(0.0, 0.99)) for key, model in models.items()}
        MultiTrainer(env, batches, ema=0.9).train(models, opts, hook, steplimit=6)
        return {key: dict(model.state_dict()) for key, model in models.items()}

    ours = learn(device, Silent(no_sync, 5))
    assert lies_on(ours, device)
    if device == "cpu" or (PretendedCuda.active is not None and augment is None):  # a GPU draws other latents
        expected = learn("cpu", None)
        names = [name for name in expected["d"] if "noise" not in name]
        assert_close([ours["d"][name] for name in names], [expected["d"][name] for name in names], torch.float16)


@pytest.mark.parametrize("how", [{}, {"top_k": 3}, {"temperature": 0.0}])
def test_a_gpt_writes_without_waiting_for_each_code(how, device, no_sync):
    model = Model(11, context=8, dim=8, depth=1, num_heads=2).init(seed=0).eval()
    prompt = torch.tensor([[1, 2, 3], [4, 5, 6]])
    with torch.no_grad():
        expected = model.generate(prompt, 12, generator=torch.Generator().manual_seed(0), **how)
        model.to(device)
        there, generator = prompt.to(device), torch.Generator(device).manual_seed(0)
        with no_sync():
            written = model.generate(there, 12, generator=generator, **how)
    assert lies_on(written, device)
    if device == "cpu" or PretendedCuda.active is not None or how == {"temperature": 0.0}:
        assert torch.equal(written.cpu(), expected)


def learnt(env, make, batches, device, hook):
    torch.manual_seed(0)
    model = make().to(device)
    Trainer(env, batches(device)).train(model, opt.sgd(model, lr=0.1), hook, steplimit=4)
    return dict(model.state_dict())


class Both(nn.Module):
    """A policy and a value of what is seen."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(6, 4)

    def forward(self, obs):
        out = self.net(obs)
        return out[:, :3], out[:, 3].tanh()


def positions(device):
    rng = torch.Generator().manual_seed(0)
    batch = {
        "obs": torch.randn(4, 6, generator=rng),
        "policy": torch.tensor([[0.5, 0.5, 0.0]]).repeat(4, 1),
        "legal": torch.tensor([[True, True, False]]).repeat(4, 1),
        "target": torch.tensor([1.0, -1.0, 0.0, 1.0]),
        "value": torch.zeros(4),
        "full": torch.tensor([1.0, 0.0, 1.0, 0.0]),
    }
    return [{key: column.to(device) for key, column in batch.items()}] * 4


OWN = {
    "alphazero": (AlphaZero(search_share=0.25, fast_weight=0.5), Both, positions),
    "gpt": (
        NextCharacter(),
        lambda: Model(11, context=8, dim=8, depth=1, num_heads=2).init(seed=0),
        lambda device: windows(torch.arange(99) % 11, 8).loader(4, device, train=True),
    ),
}


@pytest.mark.parametrize("name", ["diffusion.main", "stylegan2.commands"])
def test_a_model_is_asked_for_on_a_device_that_is_there(name):
    averaged = import_module(f"ai.examples.{name}").averaged
    for device, message in (("gpu", r"name that torch knows .*, got 'gpu'"), ("cuda:97", "'cuda:97' is not available")):
        with pytest.raises(ValueError, match=f"device .*{message}"):
            averaged("nowhere", device)


@pytest.mark.parametrize("name", OWN)
def test_a_step_of_an_examples_own_loss_waits_for_nothing_and_learns_what_the_cpu_learns(name, device, no_sync):
    found = learnt(*OWN[name], device, Silent(no_sync, 3))
    assert lies_on(found, device)
    assert_close(found, learnt(*OWN[name], "cpu", None))


def test_a_step_of_the_mnist_network_in_channels_last_waits_for_nothing(device, no_sync):
    from ai.examples.mnist.model import ConvNet

    model = ConvNet().init(seed=0).to(device, memory_format=torch.channels_last)
    rng = torch.Generator().manual_seed(0)
    batches = [
        {"x": torch.randn(4, 1, 28, 28, generator=rng).to(device), "y": torch.arange(4).to(device)} for _ in range(4)
    ]
    Trainer(Classify(), batches, precision="bf16").train(
        model, opt.sgd(model, momentum=0.9), Silent(no_sync, 3), steplimit=4
    )
    assert lies_on(dict(model.state_dict()), device)
    assert isinstance(model, nn.Module)
