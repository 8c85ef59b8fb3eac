"""Implicit Q-learning against its equations, row by row."""

import copy
import math

import pytest
import torch
from torch import nn

import ai.model as m
from ai.data import Draws, ReplayBuffer
from ai.train import IQL, Trainer, opt
from tests.train.rl.actor_critic import Critics, apart, drawn


class Net(m.Model):
    def __init__(self):
        super().__init__()
        self.body, self.worth, self.critics = m.fc(3, 2), m.fc(3, 1), m.Lagged(Critics())

    def actor(self, obs):
        mean = self.body(obs)
        return m.Gaussian(mean, torch.zeros_like(mean))

    def value(self, obs):
        return self.worth(obs)[:, 0]


def made():
    return apart(Net), drawn(10)


def test_each_part_has_its_loss_and_its_gradient(on_device):
    model, batch = made()
    twin = copy.deepcopy(model)
    twin.critics.follow(0.1)
    parts = dict.fromkeys(("critics", "worth", "body"), 0.0)
    for k in range(10):
        obs, action = batch["obs"][k : k + 1], batch["action"][k : k + 1]
        q1, q2 = twin.critics(obs, action)[:, 0]
        beyond = twin.value(batch["next_obs"][k : k + 1]).item()
        goal = batch["n_step_reward"][k] + batch["next_discount"][k] * beyond
        parts["critics"] += ((q1 - goal) ** 2 + (q2 - goal) ** 2) / 10
        u = twin.critics.target(obs, action).min().item() - twin.value(obs)[0]
        parts["worth"] += abs(0.8 - float(u.item() < 0)) * u**2 / 10
        density = -0.5 * ((action - twin.body(obs)) ** 2).sum() - math.log(2 * math.pi)
        parts["body"] -= min(math.exp(2.0 * u.item()), 3.0) * density / 10
    loss = on_device(IQL(expectile=0.8, temperature=2.0, tau=0.1, most=3.0))(model, batch, 0)
    torch.testing.assert_close(loss, sum(parts.values()))
    loss.backward()
    for name, part in parts.items():
        own = [p for p in getattr(twin, name).parameters() if p.requires_grad]
        got = [p.grad for p in getattr(model, name).parameters() if p.requires_grad]
        torch.testing.assert_close(got, list(torch.autograd.grad(part, own)))


def test_the_best_of_what_was_done_is_learnt_and_nothing_beyond_it():
    rng = torch.Generator().manual_seed(0)
    buffer = ReplayBuffer(1000, n_step=1)
    for action in torch.randint(3, (300,), generator=rng):  # of four actions the last, and best, was never taken
        buffer.add({"obs": torch.zeros(2, 3), "action": action[None], "reward": action[None] / 2})

    class Choices(Net):
        def __init__(self):
            super().__init__()
            self.body, self.critics = m.fc(3, 4), m.Lagged(Table())

        def actor(self, obs):
            return m.Categorical(self.body(obs))

    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.of = nn.Parameter(torch.zeros(2, 4))

        def forward(self, obs, action):
            return self.of[:, action]

    model = Choices().init(seed=0)
    Trainer(IQL(tau=1.0, expectile=0.9), Draws(buffer, 64)).train(model, opt.adam(model, lr=0.1), steplimit=80)
    torch.testing.assert_close(model.critics.net.of[0, :3], torch.tensor([0, 0.5, 1]), atol=0.05, rtol=0)
    chances = model.actor(torch.zeros(1, 3)).logits.softmax(-1)[0]
    assert chances.argmax() == 2
    assert chances[3] < 0.1


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"expectile": 1.0}, r"expectile must lie in \(0, 1\), got 1.0"),
        ({"temperature": -1.0}, "temperature must be at least 0, got -1.0"),
        ({"temperature": float("inf")}, "temperature must be finite, got inf"),
        ({"tau": 0.0}, r"tau must lie in \(0, 1\], got 0.0"),
        ({"most": 0.0}, "most must be positive, got 0.0"),
    ],
)
def test_options_out_of_range_are_refused(how, message):
    with pytest.raises(ValueError, match=message):
        IQL(**how)


def test_rewards_of_another_shape_are_refused():
    model, batch = made()
    batch["n_step_reward"] = batch["n_step_reward"][:, None]
    with pytest.raises(ValueError, match=r"rewards of shape \(B,\), got \(2, 10\), \(10,\) and \(10, 1\)"):
        IQL()(model, batch, 0)


def test_weights_weigh_every_part(on_device):
    model, batch = made()
    env = on_device(IQL(tau=1e-9))
    rows = [env(model, {key: value[k : k + 1] for key, value in batch.items()}, 0) for k in range(10)]
    weight = torch.arange(10, dtype=torch.float64)
    got = env(model, {**batch, "weight": weight}, 0)
    torch.testing.assert_close(got, (weight * torch.stack(rows)).mean())


@pytest.mark.parametrize("key", ["next_discount", "weight"])
def test_a_column_where_a_number_a_row_belongs_is_refused(key):
    model, batch = made()
    batch["weight"] = torch.ones(10)
    with pytest.raises(ValueError, match=rf"{key} must have shape \(10,\), got \(10, 1\)"):
        IQL()(model, {**batch, key: batch[key][:, None]}, 0)
