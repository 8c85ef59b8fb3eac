"""`torch.set_default_device`: it decides where a module is made, and reaches nothing that lies elsewhere."""

import ast
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import ai.model as m
import ai.util
from ai.data import Datagen, Dataset, ReplayBuffer
from ai.examples.diffusion.exact import GaussianMixture
from ai.examples.gpt.corpus import Alphabet
from ai.examples.gpt.measure import bits_per_character
from ai.examples.metrics.frechet import split_distance
from ai.examples.metrics.kernel import kernel_distance
from ai.examples.stylegan2.model import Generator
from ai.examples.stylegan2.pictures import styles
from ai.game import CartPole, GameEnvironments, Gumbel, Play, Rollouts, Search, SelfPlay, TicTacToe
from ai.train import RL, Classify, Gan, Hook, MultiTrainer, RLTrainer, Trainer, opt
from tests.devices import assert_close
from tests.pretended_cuda import PretendedCuda

X = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
Y = torch.arange(64) % 3


def net(*sizes):
    return m.Model(m.seq(m.fc(sizes[0], 8, actv="relu"), m.norm.layer(8), m.fc(8, sizes[1]))).init(seed=0)


def trained(device):
    """With all that a run may have beside its model, on data of the CPU."""
    torch.manual_seed(0)
    model, lines = net(6, 3).to(device), {}
    ds = Dataset({"x": X, "y": Y})
    hook = Hook(log=lambda step, values: lines.update(values), log_interval=2, val_data=ds.loader(32, device))
    how = {"accumulate": 2, "ema": 0.5, "on_nan": "skip", "precision": "bf16"}
    env = Classify(label_smoothing=0.1, class_weights=[1, 2, 3], ignore_index=9, top_k=(2,))
    trainer = Trainer(env, ds.loader(8, device, train=True), **how)
    trainer.train(model, opt.adam(model, clip_norm=1.0), hook, steplimit=4)
    return [list(model.parameters()), torch.tensor([lines["val_loss"], lines["grad_norm"]], device="cpu")]


def rounds(device):
    torch.manual_seed(0)
    models = {"g": net(2, 6).to(device), "d": net(6, 1).to(device)}
    data = Dataset({"x": X}).loader(8, device, train=True)
    opts = {key: opt.adam(model) for key, model in models.items()}
    MultiTrainer(Gan(2, r1=1.0, r1_interval=2), data, ema=0.5).train(models, opts, [], steplimit=3)
    return [list(model.parameters()) for model in models.values()]


class Player(m.Model):
    def __init__(self, n_seen=18, n_actions=9):
        super().__init__()
        self.flat, self.policy, self.value = m.flatten(), m.fc(n_seen, n_actions), m.fc(n_seen, 1)

    def forward(self, x):
        x = self.flat(x)
        return self.policy(x), self.value(x).tanh()


class Actor(Player):
    def forward(self, x):
        return m.Categorical(self.policy(x)), self.value(x).squeeze(-1)


def played(device):
    model = Player().init(seed=0).to(device)
    source = SelfPlay(TicTacToe(), model, Play(games=4, simulations=4))
    data = Datagen(source).loader(8, device, n_workers=0, buffer=ReplayBuffer(256, n_step=1))
    RLTrainer(RL(), data).train(model, opt.adam(model), [], steplimit=3)
    return list(model.parameters())


def searched(device):
    game, model = TicTacToe(), Player().init(seed=0).to(device)
    found = Search(game, model, simulations=8, rule=Gumbel())(game.init(3, 0))
    return [torch.from_numpy(np.asarray(found.action)), torch.from_numpy(np.asarray(found.value))]


def acted(device):
    model = Actor(4, 2).init(seed=0).to(device)
    rollouts = Rollouts(GameEnvironments(CartPole(), 3), model, steps=6)
    rollouts.start(0, 0)
    return {key: torch.from_numpy(column) for key, column in next(rollouts).columns.items()}


class Denoiser(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(4, 4)

    def forward(self, x, noise):
        return self.net(x) + noise[:, None]


def denoised(device):
    model = m.DiffusionModel(Denoiser(), [4], precond="ddpm").init(seed=0).to(device)
    ways = ({"schedule": "linear", "sampler": "ddpm"}, {"sampler": "heun", "churn": 2.0})
    return [model.sample(3, steps=4, seed=1, **how) for how in ways]


def generated(device):
    model = Generator(8, nc_max=8, z_dim=4, w_dim=4, n_mapping=2, n_classes=3).init(seed=0).eval().to(device)
    model.measure_w_avg(16)
    return styles(model, [0, 1], truncation=0.5, label=1)


def measured(device):
    mixture = GaussianMixture([[-1.0, 0.0], [1.0, 0.0]], std=0.1)
    points = mixture.sample(32, seed=0)
    codes = Alphabet("abc").encode("abcabcabcabc")
    model = m.Model(nn.Embedding(4, 4)).init(seed=0).to(device)
    numbers = [
        split_distance(points, n_splits=2),
        *kernel_distance(points, points + 1, subset_size=8, n_subsets=2),
        bits_per_character(model, codes, n_codes=4, context=4, stride=2),
        float(mixture.denoise(points.to(device), 0.5).sum()),
    ]
    return [points, mixture.covariance, torch.tensor(numbers, device="cpu")]


USES = {use.__name__: use for use in (trained, rounds, played, searched, acted, denoised, generated, measured)}


@pytest.mark.parametrize("device", ["cuda"], indirect=True)
@pytest.mark.parametrize("name", USES)
def test_a_default_device_changes_nothing_of_what_a_model_on_the_cpu_or_there_learns_and_finds(name, device):
    expected = USES[name]("cpu")
    for where in ("cpu", device) if PretendedCuda.active is not None else ("cpu",):  # a GPU draws other numbers
        with torch.device(device):
            found = USES[name](where)
        assert_close(found, expected, torch.bfloat16 if name == "trained" else None)


@pytest.mark.parametrize("device", ["cuda"], indirect=True)
def test_pictures_are_saved_under_a_default_device(device, tmp_path):
    images = torch.rand(3, 1, 4, 4) * 2 - 1
    ai.util.save_img_grid(tmp_path / "a.png", images)
    with torch.device(device):
        ai.util.save_img_grid(tmp_path / "b.png", images)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


FACTORIES = (
    "arange as_tensor asarray empty empty_strided eye full hann_window linspace logspace normal "
    "ones rand randint randn randperm range scalar_tensor tensor tril_indices triu_indices zeros"
).split()
# What a module is made of is made where the module is: in its `__init__`, and by these functions of the kind.
OF_MODULES = {"like_torchs", "sinusoid"}


def test_whatever_is_made_outside_of_a_module_says_where():
    """A call of a factory without `device` would be heard by a default device, in a path that no test above takes."""
    called = re.compile(rf"\btorch\.({'|'.join(FACTORIES)})\(")
    silent, n_found = [], 0

    def walk(node, function):
        nonlocal n_found
        function = node.name if isinstance(node, ast.FunctionDef) else function
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in FACTORIES:
            if isinstance(node.func.value, ast.Name) and node.func.value.id == "torch":
                n_found += 1
                says = any(given.arg in ("device", "out", None) for given in node.keywords)
                if not says and function != "__init__" and function not in OF_MODULES:
                    silent.append(f"{file}:{node.lineno}: {ast.unparse(node)}")
        for child in ast.iter_child_nodes(node):
            walk(child, function)

    root = Path(__file__).parents[2]
    for file in [*root.glob("packages/*/src/**/*.py"), *root.glob("examples/src/**/*.py")]:
        if called.search(text := file.read_text()):
            walk(ast.parse(text), None)
    assert silent == []
    assert n_found > 200
