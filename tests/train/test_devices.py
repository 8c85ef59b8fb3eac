"""Training on a device: the same numbers, everything in its place, and no wait in a step that does not log."""

import copy
from inspect import signature

import numpy as np
import pytest
import torch
from torch import nn

import ai.model as m
import ai.train
from ai.data import Datagen, ReplayBuffer
from ai.examples.muzero.model import Model as World2
from ai.train import (
    DQN,
    IQL,
    PPO,
    RL,
    SAC,
    AdversarialAutoencoder,
    Classify,
    Contrastive,
    Diffusion,
    Distill,
    Ema,
    Gan,
    Hook,
    HookInterface,
    MultiTrainer,
    MuZero,
    NextToken,
    NonFiniteError,
    Reconstruct,
    Regress,
    RLTrainer,
    Snapshots,
    Support,
    Trainer,
    loss,
    opt,
    schedule,
)
from ai.train.engine.update import Update
from ai.train.saving.host_copies import HostCopies
from ai.train.snapshot import load_model_state
from tests.devices import approximately, assert_close, beside, lies_on
from tests.pretended_cuda import PretendedCuda

N_STEPS = 5


class Silent(HookInterface):
    """Logs nothing, and lets nothing wait from the second step (or the one after `first`) to the last but one."""

    def __init__(self, no_sync, first=0):
        self.no_sync, self.first, self.entered = no_sync, first, None

    def step(self, step):
        if step == self.first + 1:
            self.entered = self.no_sync()
            self.entered.__enter__()
        if step == self.first + N_STEPS - 1:
            self.leave()

    def wants_log(self, step):
        return False

    def done(self):
        self.leave()

    def leave(self):
        entered, self.entered = self.entered, None
        if entered is not None:
            entered.__exit__(None, None, None)


def batches(device, rows=8, n=2 * N_STEPS, uint8=False):
    rng = torch.Generator().manual_seed(0)
    made = []
    for _ in range(n):
        x, y = torch.randn(rows, 6, generator=rng), torch.randint(0, 3, (rows,), generator=rng)
        made.append({"x": x.to(device), "y": (y.to(torch.uint8) if uint8 else y).to(device)})
    return made


def net():
    return m.Model(m.seq(m.fc(6, 16, actv="relu"), m.norm.layer(16), m.fc(16, 3))).init(seed=0)


def trained(device, hook, *, make=opt.adam, how=None, **options):
    model = net().to(device)
    trainer = Trainer(Classify(), batches(device, uint8=True), **options)
    optimizer = make(model, lr=0.05)
    assert trainer.train(model, optimizer, hook, steplimit=N_STEPS, schedule=how) == N_STEPS
    return model, trainer, optimizer


OPTIONS = {
    "plain": {},
    "micro-batches": {"accumulate": 2},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "fp16 skip": {"precision": "fp16", "on_nan": "skip"},
    "average": {"ema": 0.9},
    "skip": {"on_nan": "skip"},
    "stop": {"on_nan": "stop"},
    "all": {"accumulate": 2, "precision": "bf16", "ema": 0.9, "on_nan": "skip"},
}
LOWER = {"bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_silent_step_waits_for_nothing_and_learns_what_the_cpu_learns(name, device, no_sync):
    options = OPTIONS[name]
    model, _, _ = trained(device, Silent(no_sync), **options)
    expected, _, _ = trained("cpu", Silent(no_sync) if device == "cpu" else None, **options)
    # Adam's first steps follow the signs of gradients: of rounded ones, near zero, some are the other way
    close = LOWER.get(options.get("precision"), torch.float32)
    if device == "cpu" or close == torch.float32 or PretendedCuda.active is not None:
        assert_close(list(model.parameters()), list(expected.parameters()), close)
    assert lies_on(dict(model.state_dict()), device)


class Counted:
    """A metric that waits for the device at each batch."""

    def __init__(self):
        self.n = 0

    def update(self, chances, classes):
        self.n += int(classes.numel() * (chances.sum() > 0).item())

    def compute(self):
        return torch.tensor(float(self.n))

    def reset(self):
        self.n = 0


def test_what_a_hook_and_an_environment_measure_costs_a_silent_step_nothing(device, no_sync, tmp_path):
    lines = {}
    hook = Hook(
        log=lambda step, values: lines.setdefault(step, {}).update(values),
        val_data=batches(device, n=2),
        val_interval=N_STEPS,
        task=lambda model, step: {"weight": model.net[0].weight.mean()},
        task_interval=N_STEPS,
        snapshots=Snapshots(tmp_path),
        save_interval=N_STEPS,
        stopper=lambda step, metrics: False,
    )
    model = net().to(device)
    trainer = Trainer(Classify(top_k=(2,), metrics={"counted": Counted()}), batches(device), ema=0.9, on_nan="skip")
    trainer.train(model, opt.adam(model), [Silent(no_sync), hook], steplimit=N_STEPS)
    assert set(lines) == {0, N_STEPS - 1, N_STEPS}  # the first step, the last, and what was measured after it
    assert lines[N_STEPS]["val_counted"] == 16


class Playing:
    """A source of episodes of eight steps."""

    def start(self, seed, worker):
        self.rng, self.versions = np.random.default_rng(seed), []

    def update_params(self, state_dict, version):
        self.versions.append(version)

    def __next__(self):
        policy = np.full((8, 3), 1 / 3, np.float32)
        made = {"obs": self.rng.normal(size=(9, 6)).astype(np.float32), "action": np.zeros(8, np.int64)}
        return made | {"reward": np.ones(8, np.float32), "policy": policy, "value": np.zeros(8, np.float32)}


def test_a_silent_step_of_data_that_the_model_plays_waits_for_nothing_and_learns_what_the_cpu_learns(device, no_sync):
    def learn(device, hook):
        torch.manual_seed(0)
        model, source = Pair().to(device), Playing()
        data = Datagen(source).loader(16, device, n_workers=0, buffer=ReplayBuffer(64, n_step=1), replay_ratio=8)
        trainer = RLTrainer(RL(entropy=0.1), data, push_interval=N_STEPS - 1, push_ema=True, ema=0.5)
        trainer.train(model, opt.adam(model, lr=0.05), hook, steplimit=N_STEPS)
        assert source.versions == [1, 2]  # before the first step and the last
        return list(model.parameters())

    found = learn(device, Silent(no_sync))
    assert lies_on(found, device)
    assert_close(found, learn("cpu", None))


def test_a_run_in_a_stream_of_its_own_learns_and_saves_what_one_in_the_default_stream_does(device, tmp_path):
    def learn(folder):
        hook = Hook(snapshots=Snapshots(tmp_path / folder), save_interval=2, log_interval=2)
        return list(trained(device, hook, ema=0.9, precision="bf16", on_nan="skip", accumulate=2)[0].parameters())

    expected = learn("default")
    with beside(device):
        found = learn("beside")
        assert_close(found, expected, torch.bfloat16)
    for name in ("model", "ema"):
        ours, theirs = (
            load_model_state(tmp_path / f / f"{N_STEPS:09d}", ema=name == "ema") for f in ("beside", "default")
        )
        assert_close(ours, theirs, torch.bfloat16)


SILENT = {name: make for name, make in opt.FACTORIES.items() if name != "adafactor"}  # torch's own reads its norms
if not hasattr(torch.optim, "Muon"):
    del SILENT["muon"]


@pytest.mark.parametrize("make", list(SILENT.values()), ids=list(SILENT))
@pytest.mark.parametrize("limits", [{}, {"clip_norm": 0.1, "clip_value": 0.05}], ids=["free", "clipped"])
def test_every_optimiser_steps_without_waiting(make, limits, device, no_sync):
    def limited(model, lr):
        return make(model, lr=lr, **limits)

    model, _, _ = trained(device, Silent(no_sync), make=limited, how=schedule.cosine(N_STEPS, warmup=2))
    expected, _, _ = trained("cpu", None, make=limited, how=schedule.cosine(N_STEPS, warmup=2))
    dtype = torch.bfloat16 if make is opt.muon else None  # in which it makes its matrices orthogonal
    assert_close(list(model.parameters()), list(expected.parameters()), dtype)


@pytest.mark.parametrize("make", [opt.sgd, opt.adam, opt.adamw])
def test_an_optimiser_on_cuda_is_fused(make, device):
    model = net().to(device)
    fused = make(model).defaults.get("fused")
    assert bool(fused) == (device == "cuda" or make is not opt.sgd)


def labelled(weight):
    class Weighted(Classify):
        def __call__(self, model, batch, step):
            return super().__call__(model, batch, step), weight(batch)

    return Weighted()


WEIGHTS = {
    "a number": lambda batch: 2.0,
    "a tensor there": lambda batch: (batch["y"] > 0).float().sum() + 1,
    "a tensor of the CPU": lambda batch: torch.tensor(2.0),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_of_losses_may_lie_on_either_device(name, device, no_sync):
    def learn(device, hook):
        model = net().to(device)
        Trainer(labelled(WEIGHTS[name]), batches(device), accumulate=2).train(
            model, opt.adam(model, lr=0.05), hook, steplimit=N_STEPS
        )
        return list(model.parameters())

    assert_close(learn(device, Silent(no_sync)), learn("cpu", None))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_logged_step_reads_the_same_numbers_on_every_device(accumulate, device):
    def numbers(device):
        lines = {}
        hook = Hook(
            log=lambda step, values: lines.setdefault(step, {}).update(values),
            log_interval=2,
            val_data=batches(device, n=2),
            val_interval=2,
        )
        trained(device, hook, accumulate=accumulate, ema=0.9)
        return {step: {k: v for k, v in line.items() if "per_s" not in k} for step, line in lines.items()}

    ours, expected = numbers(device), numbers("cpu")
    assert ours.keys() == expected.keys()
    for step, line in expected.items():
        assert ours[step] == approximately(line)
        assert "val_accuracy" in line or "accuracy" in line


@pytest.mark.parametrize("on_nan", ["raise", "stop", "skip"])
@pytest.mark.parametrize("make", [opt.adam, opt.sgd])
def test_what_is_not_finite_is_dealt_with_on_every_device(on_nan, make, device):
    model = net().to(device)
    data = batches(device, n=3)
    data[1]["x"] = data[1]["x"] * torch.nan
    trainer = Trainer(Classify(), data, on_nan=on_nan)
    if on_nan == "raise":
        with pytest.raises(NonFiniteError, match="the loss is not finite by step 3"):
            trainer.train(model, make(model))
    else:
        trainer.train(model, make(model))
        assert all(bool(p.isfinite().all()) for p in model.parameters()) == (on_nan == "skip")


def test_a_moving_average_lies_with_its_model_and_is_swapped_without_waiting(device, no_sync):
    model = net().to(device)
    ema = Ema(model, 0.5, warmup=False)
    first = copy.deepcopy(dict(model.state_dict()))
    with no_sync(), torch.no_grad():
        torch._foreach_add_(list(model.parameters()), 2.0)
        ema.update(1)
        with ema.swapped_in():
            halfway = {name: value.clone() for name, value in model.state_dict().items()}
    assert lies_on(ema.state_dict(), device)
    assert_close({k: v - 1 for k, v in halfway.items()}, first)
    assert_close({k: v - 2 for k, v in model.state_dict().items()}, first)


# -- environments


class Denoiser(nn.Module):
    sigma_data = 0.5

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(6, 6)

    def forward(self, x, sigma):
        return self.net(x) + sigma.log()[:, None]


class Code(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode, self.decode = nn.Linear(6, 2), nn.Linear(2, 6)


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.policy, self.value = nn.Linear(6, 3), nn.Linear(6, 1)

    def forward(self, x):
        return self.policy(x), self.value(x)


class World(nn.Module):
    def __init__(self, bins):
        super().__init__()
        self.see, self.move, self.policy = nn.Linear(6, 4), nn.Linear(5, 4), nn.Linear(4, 3)
        self.value, self.reward = nn.Linear(4, bins), nn.Linear(4, bins)

    def represent(self, obs):
        return self.see(obs)

    def dynamics(self, state, action):
        state = self.move(torch.cat([state, action[:, None].to(state.dtype)], 1))
        return state, self.reward(state)

    def predict(self, state):
        return self.policy(state), self.value(state)


class Continuous(World):
    def predict(self, state):
        return m.Gaussian(self.policy(state), torch.zeros_like(state[:, :3])), self.value(state)


class Lucky(World):
    """A `StochasticModel` of five codes."""

    def __init__(self, bins):
        super().__init__(bins)
        self.choose, self.odds, self.code = nn.Linear(5, 4), nn.Linear(4, 5), nn.Linear(12, 5)
        self.fall = nn.Linear(9, 4)

    def afterstate_dynamics(self, state, action):
        return self.choose(torch.cat([state, action[:, None].to(state.dtype)], 1))

    def afterstate_prediction(self, afterstate):
        return self.odds(afterstate), self.value(afterstate)

    def chance_code(self, obs, following):
        return self.code(torch.cat([obs, following], 1)).softmax(1)

    def dynamics(self, afterstate, code):
        state = self.fall(torch.cat([afterstate, code], 1))
        return state, self.reward(state)


class Expectile(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.worth, self.critics = nn.Linear(6, 4), nn.Linear(6, 1), m.Lagged(Critics())

    def actor(self, obs):
        return m.Gaussian(*self.body(obs).chunk(2, 1))

    def value(self, obs):
        return self.worth(obs)[:, 0]


class Tokens(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Embedding(7, 4), nn.Linear(4, 7))


def drawn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def unrolled():
    return {
        "obs": drawn(4, 3, 6), "action": torch.zeros(4, 3, dtype=torch.int64), "reward": drawn(4, 3),
        "policy": drawn(4, 3, 3).softmax(-1), "target": drawn(4, 3), "mask": drawn(4, 3) > 0, "weight": drawn(4).abs(),
        "index": torch.arange(4),
    }  # fmt: skip


def picture():
    return drawn(2, 3, 16, 16).tanh()


def labels():
    return {"x": drawn(4, 6), "y": torch.arange(4) % 3}


def played():
    return {"obs": drawn(4, 6), "policy": drawn(4, 3).softmax(1), "target": drawn(4), "weight": drawn(4).abs()}


class Actor(nn.Module):
    def __init__(self):
        super().__init__()
        self.policy, self.value = nn.Linear(6, 3), nn.Linear(6, 1)

    def forward(self, obs):
        return m.Categorical(self.policy(obs)), self.value(obs).squeeze(-1)


class Normed(Actor):
    """What it has seen sets the scale of what it sees."""

    def __init__(self):
        super().__init__()
        self.seen = m.running_norm(6)

    def forward(self, obs):
        return super().forward(self.seen(obs))


class Critics(nn.Module):
    def __init__(self):
        super().__init__()
        self.nets = nn.ModuleList([nn.Linear(8, 1), nn.Linear(8, 1)])

    def forward(self, obs, action):
        return torch.stack([net(torch.cat([obs, action], 1))[:, 0] for net in self.nets])


class Soft(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.critics = nn.Linear(6, 4), m.Lagged(Critics())
        self.log_alpha = nn.Parameter(torch.tensor(-1.0))

    def actor(self, obs):
        return m.SquashedGaussian(*self.body(obs).chunk(2, 1))


class Values(nn.Module):
    def __init__(self, quantiles=1):
        super().__init__()
        heads = (m.rearrange("b (a q) -> b a q", a=3),) if quantiles > 1 else ()
        self.q = m.Lagged(nn.Sequential(nn.Linear(6, 3 * quantiles), *heads))


def acted():
    return {
        "obs": drawn(4, 5, 6), "action": drawn(4, 5).abs().long() % 3, "log_prob": -drawn(4, 5).abs(),
        "advantage": drawn(4, 5), "target": drawn(5, 4).T, "value": drawn(4, 5), "mask": drawn(4, 5) > -1,
        "legal": torch.ones(4, 5, 3, dtype=torch.bool),
    }  # fmt: skip


def stepped(action=None):
    return {
        "obs": drawn(4, 6), "action": torch.arange(4) % 3 if action is None else action, "n_step_reward": drawn(4),
        "next_obs": drawn(6, 4).T, "next_discount": torch.tensor([0.9, 0.0, 0.9, 0.0]), "weight": drawn(4).abs(),
        "index": torch.arange(4),
    }  # fmt: skip


def padded():
    """Episodes of unlike lengths, with nonsense where there is no step."""
    batch, mask = acted(), torch.arange(5) < torch.tensor([5, 3, 1, 4])[:, None]
    for key in ("obs", "log_prob", "advantage", "target", "value"):
        batch[key] = torch.where(mask if batch[key].ndim == 2 else mask[..., None], batch[key], torch.nan)
    return batch | {"mask": mask, "legal": torch.arange(3) < torch.tensor([1, 2, 3, 3])[:, None, None].expand(4, 5, 1)}


def lacking():
    """Some actions are illegal, and past an end all are."""
    legal = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 0, 0], [1, 1, 1]]).bool()
    return stepped() | {"legal": legal, "next_legal": legal}


def sampled():
    return unrolled() | {"sampled": drawn(4, 3, 3, 3), "legal": torch.ones(4, 3, 3, dtype=torch.bool)}


def texts():
    return {"x": torch.arange(20).view(4, 5) % 7}


PARTS = {"pixel": loss.mse, "mae": loss.mae, "huber": loss.huber, "ssim": (0.5, loss.ssim_loss)}

ENVIRONMENTS = {
    "classify": (Classify(label_smoothing=0.1, top_k=(2,)), lambda: nn.Linear(6, 3), labels),
    "classify mixed": (Classify(), lambda: nn.Linear(6, 3), lambda: {"x": drawn(4, 6), "y": drawn(4, 3).softmax(1)}),
    "regress": (Regress(), lambda: nn.Linear(6, 3), lambda: {"x": drawn(4, 6), "y": drawn(4, 3)}),
    "reconstruct": (Reconstruct(loss.ComboLoss(PARTS)), lambda: nn.Conv2d(3, 3, 1), lambda: {"x": picture()}),
    "perceptual": (
        Reconstruct(loss.Perceptual(nn.Conv2d(3, 2, 3))),
        lambda: nn.Conv2d(3, 3, 1),
        lambda: {"x": picture()},
    ),
    "diffusion": (Diffusion(), Denoiser, lambda: {"x": drawn(4, 6)}),
    "rl": (RL(entropy=0.1), Pair, played),
    "ppo": (PPO(entropy=0.1, clip_value=0.2), Actor, acted),
    "dqn": (DQN(follow_every=1, tau=0.5, priorities=lambda index, error: None), Values, stepped),
    "dqn of quantiles": (DQN(follow_every=1), lambda: Values(5), stepped),
    "dqn of chances": (DQN(follow_every=1, support=(-1, 2)), lambda: Values(5), stepped),
    "sac": (SAC(), Soft, lambda: stepped(drawn(4, 2).tanh())),
    "muzero": (MuZero(Support(4), obs_unrolled=True, consistency_weight=0.1), lambda: World(9), unrolled),
    "contrastive": (Contrastive(), lambda: nn.Linear(6, 3), lambda: {"x": drawn(4, 6), "y": drawn(6, 4).T}),
    "contrastive views": (Contrastive(lambda x: x.flip(1)), lambda: nn.Linear(6, 3), lambda: {"x": drawn(4, 6)}),
    "distill": (Distill(nn.Linear(6, 3), Classify()), lambda: nn.Linear(6, 3), labels),
    "classify without one class": (Classify(ignore_index=2, class_weights=[1, 2, 3]), lambda: nn.Linear(6, 3), labels),
    "next token": (NextToken(ignore_index=2), Tokens, texts),
    "ppo of padded episodes": (PPO(entropy=0.1, clip_value=0.2), Normed, padded),
    "dqn with masks": (DQN(double=True, follow_every=1), Values, lacking),
    "iql": (IQL(), Expectile, lambda: stepped(drawn(4, 2).tanh())),
    "muzero of luck": (MuZero(Support(4), obs_unrolled=True, consistency_weight=0.1), lambda: Lucky(9), unrolled),
    "muzero of sampled actions": (MuZero(obs_unrolled=True, entropy_weight=0.1), lambda: Continuous(1), sampled),
    "muzero of scalars": (MuZero(obs_unrolled=True), lambda: World(1), unrolled),
}


DRAWS = ("diffusion", "sac")


def of(loss):
    """The mean of a loss that may have a weight beside it."""
    return loss[0] if isinstance(loss, tuple) else loss


def test_no_environment_of_the_library_is_left_out_here():
    """Each class that is called with `(…, batch, step)` has a row above or below."""
    found = set()
    for value in (vars(ai.train).get(name) for name in ai.train.__all__):  # what is loaded later is no class
        if isinstance(value, type) and "__call__" in vars(value):
            if list(signature(value.__call__).parameters)[-2:] == ["batch", "step"]:
                found.add(value)
    assert found == {type(env) for env, *_ in (*ENVIRONMENTS.values(), *ROUNDS.values())}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_an_environment_loses_on_the_device_what_it_loses_on_the_cpu(name, device, no_sync):
    if name == "sac" and PretendedCuda.active is not None and torch.__version__ < "2.7":
        pytest.skip("torch 2.6 makes zeros for the gradient of min() where nothing that pretends a device sees it")
    env, make, batch = ENVIRONMENTS[name]
    env = copy.deepcopy(env)  # a teacher is moved
    torch.manual_seed(0)
    model = make()
    if device == "cpu" or name not in DRAWS or PretendedCuda.active is not None:  # a GPU draws other noise
        torch.manual_seed(1)
        with torch.no_grad():
            expected = float(of(env(copy.deepcopy(model), batch(), 0)).detach())
    model.to(device)
    data = {key: value.to(device) for key, value in batch().items()}
    with torch.no_grad():
        env(copy.deepcopy(model), data, 0)  # what is made once, such as a network of features, is made here
    torch.manual_seed(1)
    with no_sync():
        value = of(env(model, data, 0))
        value.backward()
    assert lies_on(value, device)
    if device == "cpu" or name not in DRAWS or PretendedCuda.active is not None:
        assert float(value.detach()) == approximately(expected)
    assert lies_on([p.grad for p in model.parameters() if p.grad is not None], device)


ROUNDS = {
    "non_saturating": (Gan(2, r1=1.0, r1_interval=2), {"g": lambda: nn.Linear(2, 6), "d": lambda: nn.Linear(6, 1)}),
    "hinge": (Gan(2, loss="hinge"), {"g": lambda: nn.Linear(2, 6), "d": lambda: nn.Linear(6, 1)}),
    "wgan_gp": (Gan(2, loss="wgan_gp"), {"g": lambda: nn.Linear(2, 6), "d": lambda: nn.Linear(6, 1)}),
    "adversarial autoencoder": (AdversarialAutoencoder(), {"ae": Code, "d": lambda: nn.Linear(2, 1)}),
}


@pytest.mark.parametrize("name", ROUNDS)
@pytest.mark.parametrize("precision", [None, "bf16"])
def test_a_silent_round_of_several_models_waits_for_nothing(name, precision, device, no_sync):
    env, made = ROUNDS[name]
    torch.manual_seed(0)
    models = {key: make().to(device) for key, make in made.items()}
    before = copy.deepcopy({key: dict(model.state_dict()) for key, model in models.items()})
    trainer = MultiTrainer(env, batches(device), precision=precision, ema=0.9)
    opts = {key: opt.adam(model) for key, model in models.items()}
    assert trainer.train(models, opts, Silent(no_sync), steplimit=N_STEPS) == N_STEPS
    for key, model in models.items():
        assert lies_on(dict(model.state_dict()), device)
        assert any(not torch.equal(before[key][name], value) for name, value in model.state_dict().items())


def test_muzeros_priorities_reach_the_buffer_without_a_wait_in_the_step(device, no_sync):
    buffer = ReplayBuffer(64, alpha=1.0, unroll=2, n_step=2, seed=0)
    rng = np.random.default_rng(0)
    for _ in range(3):
        obs = rng.normal(size=(9, 6)).astype(np.float32)
        value, reward = rng.normal(size=8).astype(np.float32), rng.normal(size=8).astype(np.float32)
        buffer.add({
            "obs": obs, "action": np.zeros(8, np.int64), "reward": reward, "value": value,
            "discount": np.ones(8, np.float32), "policy": np.full((8, 3), 1 / 3, np.float32),
        })  # fmt: skip
    env = MuZero(obs_unrolled=True, priorities=buffer.update_priorities)
    model = World(1).to(device)
    batch = {key: value.to(device) for key, value in buffer.sample(4).items()}
    with no_sync():
        env(model, batch, 0).backward()
    state = buffer.state_dict()
    assert len(set(state["priority"].tolist()) - {0.0}) > 2


def test_a_snapshot_of_a_device_resumes_there_and_on_the_cpu(device, tmp_path):
    def run(device, steplimit, resume):
        model = World2((6,), 3, dim=8, dim_state=4).init(seed=0).to(device)
        hook = Hook(snapshots=Snapshots(tmp_path), save_interval=2, resume=resume, log_interval=None)

        def env(model, batch, step):
            return nn.functional.cross_entropy(model(batch["x"])[0], batch["y"])

        Trainer(env, batches(device), ema=0.9).train(model, opt.adam(model), hook, steplimit=steplimit)
        return list(model.parameters())

    whole = run(device, 5, False)
    (tmp_path / "000000005").rename(tmp_path / "other")
    (tmp_path / "000000004").rename(tmp_path / "another")
    assert_close(run(device, 5, True), whole)
    (tmp_path / "000000005").rename(tmp_path / "third")
    (tmp_path / "000000004").rename(tmp_path / "fourth")
    assert_close(run("cpu", 5, True), whole)


@pytest.mark.parametrize("make", [opt.sgd, opt.adam])
def test_a_snapshot_of_the_cpu_goes_on_with_the_devices_own_kernels(make, device, no_sync, tmp_path):
    def run(device, folder, steplimit, *more):
        model = net().to(device)
        optimizer = make(model, lr=0.05) if make is opt.adam else make(model, lr=0.05, momentum=0.9)
        hook = Hook(snapshots=Snapshots(tmp_path / folder), resume=True, log_interval=None)
        Trainer(Classify(), batches(device)).train(model, optimizer, [hook, *more], steplimit=steplimit)
        return model, optimizer

    run("cpu", "resumed", 2)
    model, optimizer = run(device, "resumed", 2 + N_STEPS, Silent(no_sync, first=2))
    assert bool(optimizer.param_groups[0]["fused"]) == (device == "cuda" or make is opt.adam)
    assert_close(list(model.parameters()), list(run("cpu", "whole", 2 + N_STEPS)[0].parameters()))


def test_copies_for_a_snapshot_are_whole_when_they_are_handed_out(device):
    copies, weight = HostCopies(), torch.arange(4.0).to(device)
    state = {"weight": weight, "tied": [weight], "empty": weight[:0]}
    first = copies.take(state)
    assert lies_on(first, "cpu")
    assert first["weight"].tolist() == [0, 1, 2, 3]
    assert first["tied"][0] is first["weight"]
    weight += 1  # what was handed out is no longer read by the device
    assert first["weight"].tolist() == [0, 1, 2, 3]
    assert copies.take(state)["weight"].tolist() == [1, 2, 3, 4]


def test_an_update_reads_its_sums_where_they_lie(device):
    model = net().to(device)
    update = Update("", lambda batch, step: Classify()(model, batch, step), model, opt.adam(model))
    update(batches(device)[:1], 0)
    total, count = update.read_loss()
    assert count == 1
    assert total > 0
    assert update.find_non_finite() is None
    assert lies_on(update.state_dict(), device)


def test_graphs_are_asked_of_the_compiler_and_told_where_each_update_begins(device, monkeypatch):
    asked, begun = [], []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **how: asked.append(how))
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: begun.append(None))
    if device == "cpu":
        with pytest.raises(ValueError, match="compile='graphs' needs models on CUDA, and Model is on cpu"):
            trained(device, None, compile="graphs")
        assert not asked
    else:
        trained(device, None, compile="graphs", accumulate=2)
        assert asked == [{"mode": "reduce-overhead"}]
        assert len(begun) == N_STEPS  # micro-batches of one update share their gradients


def test_an_unknown_way_to_compile_is_refused():
    with pytest.raises(ValueError, match="compile must be True, 'graphs' or a dict of options, not 'fast'"):
        Trainer(Classify(), [], compile="fast")


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_gradients_reach_under_autocast_whatever_they_reach_without(name):
    """Autocast keeps cast weights; those of a pass without gradients must not serve one that has them."""
    env, make, batch = ENVIRONMENTS[name]

    def reached(enabled):
        torch.manual_seed(0)
        model = make()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = of(copy.deepcopy(env)(model, batch(), 0))
        loss.float().backward()
        return {name for name, p in model.named_parameters() if p.grad is not None}

    assert reached(True) == reached(False) != set()
