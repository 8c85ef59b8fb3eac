"""The loss of policies over sampled actions, beside that of logits and by hand."""

import pytest
import torch

import ai.model as m
from ai.train import MuZero


class Said(m.Model):
    """Gives a policy made of its parameters, whatever it sees."""

    def __init__(self, policy):
        super().__init__()
        self.policy = policy
        self.said = torch.nn.ParameterList([torch.tensor([[0.3, -0.2, 0.6]] * 4), torch.tensor([[0.1, -0.4, 0.2]] * 4)])

    def represent(self, obs):
        return obs

    def dynamics(self, state, action):
        return state, torch.zeros(len(state))

    def predict(self, state):
        policy = self.policy(self.said[0]) if self.policy is not m.Gaussian else m.Gaussian(*self.said)
        return policy, torch.zeros(len(state))


def batch(weights, sampled=None):
    zeros = torch.zeros(4, 2)
    made = {"obs": torch.zeros(4, 1), "action": zeros, "reward": zeros, "target": zeros, "mask": zeros == 0}
    return {**made, "policy": weights} | ({} if sampled is None else {"sampled": sampled})


def graded(model, loss, batch):
    value = loss(model, batch, 0)
    model.zero_grad()
    value.backward()
    return value.detach(), model.said[0].grad.clone()


def test_over_all_choices_the_loss_is_the_one_of_logits():
    weights = torch.rand(4, 2, 3, generator=torch.Generator().manual_seed(0)).softmax(-1)
    sampled = torch.arange(3).expand(4, 2, 3)
    for loss in (MuZero(), MuZero(entropy_weight=0.3)):
        plain = graded(Said(lambda logits: logits), loss, batch(weights))
        over = graded(Said(m.Categorical), loss, batch(weights, sampled))
        torch.testing.assert_close(over, plain)


def test_the_loss_of_movements_is_their_weighted_density():
    generator = torch.Generator().manual_seed(1)
    weights = torch.rand(4, 2, 5, generator=generator).softmax(-1)
    weights[0, 0] = torch.tensor([1.0, 0, 0, 0, 0])
    sampled = torch.randn(4, 2, 5, 3, generator=generator)
    model = Said(m.Gaussian)
    mean, log_std = (said.detach()[:, None, None] for said in model.said)
    normal = torch.distributions.Normal(mean, log_std.exp())
    by_hand = -(weights * normal.log_prob(sampled).sum(-1)).sum(-1)  # [B, 2]; one step unrolled has the weight 1
    value, _ = graded(model, MuZero(), batch(weights, sampled))
    torch.testing.assert_close(value, by_hand.sum(1).mean())
    paid, _ = graded(model, MuZero(entropy_weight=0.5), batch(weights, sampled))
    torch.testing.assert_close(paid, value - normal.entropy().sum(-1).mean())  # half of it at each of two moments


def test_an_action_without_weight_is_not_asked_though_it_be_impossible():
    policy = lambda mean: m.SquashedGaussian(mean, torch.zeros(4, 3))  # noqa: E731
    weights = torch.tensor([1.0, 0.0]).expand(4, 2, 2)
    sampled = torch.zeros(4, 2, 2, 3)
    sampled[:, :, 1] = 5.0  # beyond what tanh reaches
    value, gradient = graded(Said(policy), MuZero(), batch(weights, sampled))
    assert value.isfinite()
    assert gradient.isfinite().all()


def test_what_the_loss_lacks_is_named():
    weights = torch.full((4, 2, 3), 1 / 3)
    with pytest.raises(ValueError, match="batch must have 'sampled', the actions that 'policy' weighs"):
        MuZero()(Said(m.Gaussian), batch(weights), 0)
    with pytest.raises(TypeError, match=r"predict must give logits or a policy of ai.model, got dict"):
        MuZero()(Said(lambda said: {}), batch(weights), 0)
