"""Soft actor-critic: each part's loss by its equation, each part's gradient to its own parameters."""

import copy
import math

import pytest
import torch
from torch import nn

import ai.model as m
from ai.train import SAC
from tests.train.rl.actor_critic import Critics, apart, drawn


class Net(m.Model):
    def __init__(self):
        super().__init__()
        self.body, self.critics = m.fc(3, 4), m.Lagged(Critics())
        self.log_alpha = nn.Parameter(torch.tensor(-1.0))

    def actor(self, obs):
        return m.SquashedGaussian(*self.body(obs).chunk(2, 1))


def made(device="cpu"):
    return apart(Net).to(device), {key: x.to(device) for key, x in drawn(12).items()}


def by_parts(model, batch, alpha, wanted):
    """The three losses of the paper, each with its own graph, drawing as the loss does."""
    torch.manual_seed(7)
    critics = model.critics
    action, log_prob = model.actor(batch["next_obs"]).sample_with_log_prob()
    beyond = critics.target(batch["next_obs"], action).amin(0) - alpha * log_prob
    goal = (batch["n_step_reward"] + batch["next_discount"] * beyond).detach()
    critic = sum(0.5 * (q - goal).square().mean() for q in critics(batch["obs"], batch["action"]))
    action, log_prob = model.actor(batch["obs"]).sample_with_log_prob()
    actor = (alpha * log_prob - copy.deepcopy(critics.net)(batch["obs"], action).amin(0)).mean()
    temperature = -(model.log_alpha * (log_prob + wanted).detach()).mean()
    return critic, actor, temperature


@pytest.mark.parametrize("entropy", [None, -0.5])
def test_each_part_has_its_loss_and_its_gradient(entropy, any_device):
    model, batch = made(any_device)
    loss = SAC(tau=0.01, entropy=entropy)
    twin = copy.deepcopy(model)
    twin.critics.follow(0.01)
    parts = by_parts(twin, batch, twin.log_alpha.detach().exp(), -2 if entropy is None else entropy)
    torch.manual_seed(7)
    got = loss(model, batch, 0)
    torch.testing.assert_close(got, sum(parts))
    got.backward()
    owned = twin.critics.net.parameters(), twin.body.parameters(), [twin.log_alpha]
    ours = model.critics.net.parameters(), model.body.parameters(), [model.log_alpha]
    for part, params, mine in zip(parts, owned, ours, strict=True):
        for want, parameter in zip(torch.autograd.grad(part, list(params)), mine, strict=True):
            torch.testing.assert_close(parameter.grad, want)


def test_a_fixed_temperature_is_left_alone(any_device):
    model, batch = made(any_device)
    twin = copy.deepcopy(model)
    twin.critics.follow(0.005)
    torch.manual_seed(7)
    got = SAC(alpha=0.3)(model, batch, 0)
    got.backward()
    critic, actor, _ = by_parts(twin, batch, 0.3, 0)
    torch.testing.assert_close(got, critic + actor)
    assert model.log_alpha.grad is None


def test_weights_weigh_the_critics(any_device):
    model, batch = made(any_device)
    torch.manual_seed(7)
    plain = SAC()(copy.deepcopy(model), batch, 0)
    torch.manual_seed(7)
    doubled = SAC()(copy.deepcopy(model), {**batch, "weight": torch.full((12,), 2.0, device=any_device)}, 0)
    twin = copy.deepcopy(model)
    twin.critics.follow(0.005)
    critic, *_ = by_parts(twin, batch, twin.log_alpha.detach().exp(), -2)
    torch.testing.assert_close(doubled - plain, critic)


def test_validation_moves_no_critic():
    model, batch = made()
    before = model.critics.lagged.nets[0][0].weight.clone()
    with torch.no_grad():
        SAC()(model, batch, 0)
    assert torch.equal(model.critics.lagged.nets[0][0].weight, before)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"tau": 2}, r"tau must lie in \(0, 1\], got 2"),
        ({"alpha": -1}, "alpha must be at least 0"),
        ({"entropy": -math.inf}, "entropy must be finite, got -inf"),
        ({"alpha": math.inf}, "alpha must be finite, got inf"),
    ],
)
def test_options_out_of_range_are_refused(how, message):
    with pytest.raises(ValueError, match=message):
        SAC(**how)


def test_critics_with_an_axis_too_many_are_refused():
    model, batch = made()
    model.critics.net.register_forward_hook(lambda module, args, out: out[..., None])
    with pytest.raises(ValueError, match=r"critics must give \(2, B\) .* got \(2, 12, 1\) and \(12,\)"):
        SAC()(model, batch, 0)


def test_draws_without_the_parts_of_a_target_are_refused():
    model, batch = made()
    del batch["next_obs"]
    with pytest.raises(ValueError, match=r"the batch must hold \['next_obs'\]"):
        SAC()(model, batch, 0)


@pytest.mark.parametrize("key", ["next_discount", "weight"])
def test_a_column_where_a_number_a_row_belongs_is_refused(key):
    model, batch = made()
    batch["weight"] = torch.ones(12)
    with pytest.raises(ValueError, match=rf"{key} must have shape \(12,\), got \(12, 1\)"):
        SAC()(model, {**batch, key: batch[key][:, None]}, 0)
