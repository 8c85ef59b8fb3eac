import math
import os
import signal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ai.data import Datagen, ReplayBuffer
from ai.train import RL, Hook, MuZero, RLTrainer, Support, opt


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(2, 4)

    def forward(self, obs):
        out = self.net(obs)
        return out[:, :3], out[:, 3]


class Source:
    """Notes which version made each episode."""

    def start(self, seed, worker):
        self.rng = np.random.default_rng(seed)
        self.versions = []

    def update_params(self, state_dict, version):
        self.versions.append((version, float(state_dict["net.bias"].sum())))

    def __next__(self):
        obs = self.rng.normal(size=(5, 2)).astype(np.float32)
        policy = np.eye(3, dtype=np.float32)[(obs[:4, 0] > 0).astype(int)]
        made = {"obs": obs, "action": policy.argmax(1), "reward": np.ones(4, np.float32), "policy": policy}
        return {**made, "value": np.zeros(4, np.float32)}


def loader(source, **how):
    return Datagen(source).loader(16, n_workers=0, buffer=ReplayBuffer(400, n_step=1, gamma=0.5), **how)


def test_parameters_are_sent_before_the_first_batch_and_at_each_multiple():
    torch.manual_seed(0)
    source, model = Source(), Net()
    first = float(model.net.bias.detach().sum())
    RLTrainer(RL(), loader(source), push_interval=4).train(model, opt.adam(model, lr=0.1), steplimit=10)
    assert [version for version, _ in source.versions] == [1, 2, 3]  # before steps 0, 4 and 8
    assert source.versions[0][1] == pytest.approx(first)
    assert source.versions[1][1] != pytest.approx(first)


def test_without_an_interval_parameters_are_sent_just_when_the_source_is_to_act():
    model, acted = Net(), []

    class Watched(Source):
        def __next__(self):
            acted.append((len(self.versions), float(model.net.bias.detach().sum()) == self.versions[-1][1]))
            return super().__next__()

    data = loader(Watched(), replay_ratio=16)  # 4 steps an episode: each after the first four allows 4 batches
    RLTrainer(RL(), data, push_interval=None).train(model, opt.adam(model, lr=0.1), steplimit=10)
    assert acted == [(1, True)] * 4 + [(2, True), (3, True), (4, True)]


def test_without_an_interval_data_must_say_when_it_acts():
    class Silent:
        def __iter__(self):
            return iter(())

        def update_params(self, state_dict):
            pass

    with pytest.raises(TypeError, match=r"push_interval=None needs data with wants_params\(batches\), not Silent"):
        RLTrainer(RL(), Silent(), push_interval=None)
    with (
        Datagen(Source()).loader(4, n_workers=1) as data,
        pytest.raises(ValueError, match=r"n_workers \(1\) act at any time"),
    ):
        RLTrainer(RL(), data, push_interval=None)


def test_validation_after_the_run_measures_the_average():
    torch.manual_seed(0)
    model, seen = Net(), {}
    task = lambda model, step: {"bias": model.net.bias.detach().sum()}  # noqa: E731
    trainer = RLTrainer(RL(), loader(Source()), ema=0.9, task=task)
    hook = Hook(task=task, log=lambda step, numbers: seen.update(numbers))
    trainer.train(model, opt.adam(model, lr=0.1), hook, steplimit=10)
    assert trainer.validate(model)["bias"] == seen["bias"] != float(model.net.bias.detach().sum())
    with trainer.averaged(model):
        assert float(model.net.bias.detach().sum()) == seen["bias"]


def test_parameters_are_sent_every_so_many_seconds(monkeypatch):
    from ai.train.engine.ranks import Ranks

    clock = iter(range(10_000))
    monkeypatch.setattr(Ranks, "time", lambda self: float(next(clock)))  # a second passes at each look
    source, model = Source(), Net()
    RLTrainer(RL(), loader(source), push_interval="3s").train(model, opt.adam(model), steplimit=12)
    assert [version for version, _ in source.versions] == [1, 2, 3, 4]


def test_synchronous_runs_are_functions_of_their_seeds():
    weights = []
    for _ in range(2):
        torch.manual_seed(0)
        model = Net()
        RLTrainer(RL(), loader(Source(), replay_ratio=4)).train(model, opt.adam(model), steplimit=20)
        weights.append(model.net.weight.detach())
    assert torch.equal(*weights)


def test_the_policy_is_learnt_and_rates_are_logged():
    torch.manual_seed(0)
    model, seen = Net(), {}

    def task(model, step):
        obs = torch.tensor([[2.0, 0.0], [-2.0, 0.0]])
        return {"right": float((model(obs)[0].argmax(1) == torch.tensor([1, 0])).float().mean())}

    trainer = RLTrainer(RL(), loader(Source(), replay_ratio=8), task=task)
    hook = Hook(log=lambda step, numbers: seen.update(numbers), log_interval=50)
    trainer.train(model, opt.adam(model, lr=0.05), hook, steplimit=120)
    assert trainer.validate(model) == {"right": 1.0}
    assert seen["data_reuse"] == pytest.approx(8, rel=0.2)
    assert {"data_episodes_per_s", "steps_per_s", "policy_loss", "value_loss"} <= set(seen)


def test_rl_loss_equals_its_formula(on_device):
    logits, value = torch.randn(4, 3), torch.randn(4, 1)
    policy, target, weight = torch.rand(4, 3).softmax(1), torch.randn(4), torch.rand(4)
    batch = {"obs": torch.zeros(4), "policy": policy, "target": target, "weight": weight}
    model = lambda obs: (logits.to(obs.device), value.to(obs.device))  # noqa: E731
    found = on_device(RL(value_weight=0.5))(model, batch, 0)
    wanted = (-(policy * logits.log_softmax(1)).sum(1) + 0.5 * (value[:, 0] - target) ** 2) * weight
    assert found.item() == pytest.approx(wanted.mean().item(), rel=1e-5)


def test_support_turns_scalars_into_two_bins_and_back(on_device):
    support = Support(20)
    x = torch.linspace(-300, 300, 41)
    p = on_device(support.to_probabilities)(x)
    assert torch.allclose(p.sum(-1), torch.ones(41))
    assert int((p > 0).sum(-1).max()) <= 2
    assert torch.allclose(on_device(support.to_scalar)((p + 1e-30).log()), x, rtol=1e-3, atol=1e-2)
    h = math.copysign(math.sqrt(8) - 1, 7.0) + 0.001 * 7.0  # h(7), by hand
    assert float((p[0] * 0).sum()) == 0.0
    assert float((support.to_probabilities(torch.tensor([7.0]))[0] * torch.arange(-20, 21)).sum()) == pytest.approx(h)


def test_support_keeps_float64(on_device):
    support = Support(20)
    x = torch.tensor([1 / 3, -7.5, 123.4], dtype=torch.float64)
    p = on_device(support.to_probabilities)(x)
    h = x.sign() * ((x.abs() + 1).sqrt() - 1) + 0.001 * x
    assert torch.allclose((p * torch.arange(-20, 21)).sum(-1), h, rtol=1e-13, atol=0)
    assert torch.allclose(on_device(support.to_scalar)((p + 1e-300).log()), x, rtol=1e-9, atol=0)


@pytest.mark.parametrize("support", [None, Support(20)])
def test_gradients_of_a_float64_model_are_computed_in_float64(support):
    # Central differences reach 1e-9 in float64, and not 1e-4 where float32 is on the way.
    w = torch.tensor([0.3, -0.7], dtype=torch.float64, requires_grad=True)
    policy = torch.tensor([[0.2, 0.8]], dtype=torch.float64)
    batch = {
        "obs": torch.zeros(1), "action": torch.zeros(1, 2), "policy": policy[:, None].repeat(1, 2, 1),
        "target": torch.full((1, 2), 1 / 3, dtype=torch.float64),
        "reward": torch.full((1, 2), 0.1, dtype=torch.float64),
        "mask": torch.ones(1, 2, dtype=torch.bool),
    }  # fmt: skip
    bins = 1 if support is None else 41

    class Model:
        def __init__(self, w):
            self.w = w

        def scalar(self):
            found = (self.w[:1] * torch.arange(1, bins + 1) / bins).sin()[None]
            return found[:, 0] if support is None else found

        def represent(self, obs):
            return obs

        def dynamics(self, state, action):
            return state, self.scalar()

        def predict(self, state):
            return (self.w * self.w)[None], self.scalar()

    def muzero(w):
        return MuZero(support)(Model(w), batch, 0)

    def rl(w):
        flat = {"obs": batch["obs"], "policy": policy, "target": batch["target"][:, 0]}
        return RL(entropy=0.1)(lambda obs: (w[None], w[:1].sin()), flat, 0)

    assert torch.autograd.gradcheck(muzero, (w,), eps=1e-6, atol=1e-8)
    assert torch.autograd.gradcheck(rl, (w,), eps=1e-6, atol=1e-8)


class Unrolled(nn.Module):
    """A linear MuZero whose parts are easy to follow by hand."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(1.0))

    def represent(self, obs):
        return obs * self.w

    def dynamics(self, state, action):
        return state + action[:, None], state[:, 0]

    def predict(self, state):
        return torch.cat([state, -state], 1), state[:, 0]


def test_muzero_loss_equals_its_formula_and_masks_the_policy_past_the_end(on_device):
    obs, action = torch.tensor([[0.5]]), torch.tensor([[1.0, 2.0, 0.0]])
    policy = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]])
    target, reward = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[2.0, 3.0, 0.0]])
    batch = {
        "obs": obs, "action": action, "policy": policy, "target": target, "reward": reward,
        "mask": torch.tensor([[True, True, False]]), "index": torch.tensor([9]),
    }  # fmt: skip
    noted = []
    loss = MuZero(priorities=lambda index, error: noted.append((int(index), float(error))))
    found = on_device(loss)(Unrolled(), batch, 0)
    states = [0.5, 1.5, 3.5]
    wanted = 0.0
    for k, s in enumerate(states):
        scale = 1.0 if k == 0 else 0.5
        logits = torch.tensor([s, -s])
        if k < 2:
            wanted += scale * float(F.cross_entropy(logits[None], policy[:, k]))
        wanted += scale * (s - float(target[0, k])) ** 2
        if k > 0:
            wanted += scale * (states[k - 1] - float(reward[0, k - 1])) ** 2
    assert found.item() == pytest.approx(wanted, rel=1e-5)
    assert noted == [(9, pytest.approx(0.5, abs=1e-4))]


def test_consistency_draws_unrolled_states_to_those_that_are_seen(on_device):
    obs = torch.tensor([[[0.5], [1.0], [9.0]]])
    policy = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]])
    batch = {
        "obs": obs, "action": torch.tensor([[1.0, 2.0, 0.0]]), "policy": policy, "target": torch.zeros(1, 3),
        "reward": torch.zeros(1, 3), "mask": torch.tensor([[True, True, False]]), "index": torch.tensor([9]),
    }  # fmt: skip
    plain = on_device(MuZero(obs_unrolled=True))(Unrolled(), batch, 0)
    drawn = on_device(MuZero(obs_unrolled=True, consistency_weight=3.0))(Unrolled(), batch, 0)
    # the states 1.5 and 3.5 beside 1 and 9, each worth a half; what was seen last is of a step that was taken
    assert (drawn - plain).item() == pytest.approx(3.0 * 0.5 * (0.5**2 + 5.5**2), rel=1e-5)
    batch["mask"] = torch.tensor([[True, False, False]])  # 9 repeats the end of an episode
    shorter = [MuZero(obs_unrolled=True, consistency_weight=w)(Unrolled(), batch, 0).item() for w in (0.0, 3.0)]
    assert shorter[1] - shorter[0] == pytest.approx(3.0 * 0.5 * 0.5**2, rel=1e-5)
    with pytest.raises(ValueError, match=r"consistency_weight \(1\) needs obs_unrolled=True"):
        MuZero(consistency_weight=1)


def test_bad_input_is_refused():
    with pytest.raises(TypeError, match=r"data must have update_params\(state_dict\).*, not list"):
        RLTrainer(RL(), [])
    with pytest.raises(ValueError, match="push_ema=True needs ema"):
        RLTrainer(RL(), loader(Source()), push_ema=True)
    with pytest.raises(ValueError, match="validate needs data, or a task"):
        RLTrainer(RL(), loader(Source())).validate(Net())
    batch = {"obs": torch.zeros(2, 2), "policy": torch.ones(2, 3), "target": torch.zeros(3)}
    with pytest.raises(ValueError, match=r"the model's value \(2,\) and target \(3,\) must agree"):
        RL()(Net(), batch, 0)


class NeverDone(Source):
    """Plays on and on; `next` would not come back."""

    def __init__(self):
        self.polled = 0

    def poll(self):
        self.polled += 1

    def __next__(self):
        raise AssertionError("a deadline must not wait for a whole episode")


def test_a_time_limit_ends_the_wait_for_the_first_batch(capsys, monkeypatch):
    source, model = NeverDone(), Net()
    monkeypatch.setattr("ai.train.loop.loop.perf_counter", lambda: 20.0 * source.polled)
    trainer = RLTrainer(RL(), loader(source))
    assert trainer.train(model, opt.adam(model), timelimit=90, steplimit=5) == 0
    assert source.polled == 5
    assert "the data ended" not in capsys.readouterr().err


def test_a_time_limit_leaves_batches_as_they_were():
    def trained(**limit):
        torch.manual_seed(0)
        model, source = Net(), Source()
        for ratio in (None, 3.0):
            made = loader(source, replay_ratio=ratio)
            RLTrainer(RL(), made, accumulate=2).train(model, opt.adam(model), steplimit=5, **limit)
        return model.net.weight.detach(), source.versions

    (one, versions), (other, others) = trained(), trained(timelimit=1000)
    assert torch.equal(one, other)
    assert versions == others


def test_a_signal_ends_the_wait_for_the_first_batch():
    class Told(NeverDone):
        def poll(self):
            super().poll()
            if self.polled == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    source, model = Told(), Net()
    with pytest.raises(SystemExit) as ended:
        RLTrainer(RL(), loader(source)).train(model, opt.adam(model), Hook(log_interval=10), steplimit=5)
    assert ended.value.code == 0  # nothing was made, nothing is lost
    assert source.polled == 3
