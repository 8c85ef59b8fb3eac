"""A lagged network follows once an update, of however many micro-batches that is made."""

import copy

import pytest
import torch
from torch import nn

import ai.model as m
from ai.train import DQN, IQL, SAC, Trainer, opt
from tests.train.rl.actor_critic import Critics, apart, drawn


class ActorCritic(m.Model):
    def __init__(self):
        super().__init__()
        self.body, self.worth, self.critics = m.fc(3, 2), m.fc(3, 1), m.Lagged(Critics())
        self.log_alpha = nn.Parameter(torch.zeros(()))

    def actor(self, obs):
        mean = self.body(obs)
        return m.SquashedGaussian(mean, torch.zeros_like(mean))

    def value(self, obs):
        return self.worth(obs)[:, 0]


class Values(m.Model):
    def __init__(self):
        super().__init__()
        self.critics = self.q = m.Lagged(m.fc(3, 2))


@pytest.mark.parametrize(
    "env", [SAC(tau=0.1), IQL(tau=0.1), DQN(tau=0.1, follow_every=1), DQN(tau=0.1, follow_every=2)]
)
def test_lagged_network_follows_once_an_update(env):
    model = apart(Values if isinstance(env, DQN) else ActorCritic)
    batch = {**drawn(6), "action": torch.zeros(6, dtype=torch.long)} if isinstance(env, DQN) else drawn(6)
    if isinstance(env, IQL):
        batch["action"] = batch["action"].clamp(-0.9, 0.9)
    twin = copy.deepcopy(model)
    Trainer(env, [batch] * 6, accumulate=3).train(model, opt.sgd(model, lr=0.0), [])  # two updates, nothing moves
    for _ in range(1 if getattr(env, "follow_every", 1) == 2 else 2):
        twin.critics.follow(0.1)
    torch.testing.assert_close(list(model.critics.lagged.parameters()), list(twin.critics.lagged.parameters()))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_it_follows_once_where_the_optimizer_asks_again_and_again(accumulate):
    model, batch = apart(Values), {**drawn(6), "action": torch.zeros(6, dtype=torch.long)}
    twin, asked = copy.deepcopy(model), []
    env = DQN(tau=0.1, follow_every=1)

    def counted(*given):
        asked.append(1)
        return env(*given)

    optimizer = torch.optim.LBFGS(model.parameters(), lr=1e-3, max_iter=4)
    Trainer(counted, [batch] * accumulate, accumulate=accumulate).train(model, optimizer, [])
    assert len(asked) > accumulate
    twin.q.follow(0.1)
    torch.testing.assert_close(list(model.q.lagged.parameters()), list(twin.q.lagged.parameters()))


def test_after_an_error_in_a_later_micro_batch_it_follows_again():
    model, batch = apart(Values), {**drawn(6), "action": torch.zeros(6, dtype=torch.long)}
    env = DQN(tau=0.5, follow_every=1)
    with pytest.raises(ValueError, match="the batch must hold"):
        Trainer(env, [batch, {"obs": batch["obs"]}], accumulate=2).train(model, opt.sgd(model, lr=0.0), [])
    twin = copy.deepcopy(model)
    twin.q.follow(0.5)
    env(model, batch, 0)
    torch.testing.assert_close(list(model.q.lagged.parameters()), list(twin.q.lagged.parameters()))


@pytest.mark.parametrize("env", [SAC(), IQL()])
def test_what_is_seen_beyond_a_true_end_counts_for_nothing(env, any_device):
    model = apart(ActorCritic).to(any_device)
    batch = {key: x.to(any_device) for key, x in drawn(6).items()}
    batch["action"] = batch["action"].clamp(-0.9, 0.9)
    losses = []
    for _ in range(2):
        torch.manual_seed(0)
        losses.append(env(copy.deepcopy(model), batch, 0))
        batch["next_obs"][1::2] = torch.nan
    assert torch.equal(*losses)
