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
        return state, state.new_zeros(len(state))

    def predict(self, state):
        policy = self.policy(self.said[0]) if self.policy is not m.Gaussian else m.Gaussian(*self.said)
        return policy, state.new_zeros(len(state))


def batch(weights, sampled=None):
    zeros = torch.zeros(4, 2)
    made = {"obs": torch.zeros(4, 1), "action": zeros, "reward": zeros, "target": zeros, "mask": zeros == 0}
    return {**made, "policy": weights} | ({} if sampled is None else {"sampled": sampled})


def graded(model, loss, batch, on_device):
    value = on_device(loss)(model, batch, 0)
    model.zero_grad()
    value.backward()
    return value.detach(), model.said[0].grad.clone()


def test_over_all_choices_the_loss_is_the_one_of_logits(on_device):
    weights = torch.rand(4, 2, 3, generator=torch.Generator().manual_seed(0)).softmax(-1)
    sampled = torch.arange(3).expand(4, 2, 3)
    for loss in (MuZero(), MuZero(entropy_weight=0.3)):
        plain = graded(Said(lambda logits: logits), loss, batch(weights), on_device)
        over = graded(Said(m.Categorical), loss, batch(weights, sampled), on_device)
        torch.testing.assert_close(over, plain)


def test_the_loss_of_movements_is_their_weighted_density(on_device):
    generator = torch.Generator().manual_seed(1)
    weights = torch.rand(4, 2, 5, generator=generator).softmax(-1)
    weights[0, 0] = torch.tensor([1.0, 0, 0, 0, 0])
    sampled = torch.randn(4, 2, 5, 3, generator=generator)
    model = Said(m.Gaussian)
    mean, log_std = (said.detach()[:, None, None] for said in model.said)
    normal = torch.distributions.Normal(mean, log_std.exp())
    by_hand = -(weights * normal.log_prob(sampled).sum(-1)).sum(-1)  # [B, 2]; one step unrolled has the weight 1
    value, _ = graded(model, MuZero(), batch(weights, sampled), on_device)
    torch.testing.assert_close(value, by_hand.sum(1).mean())
    paid, _ = graded(model, MuZero(entropy_weight=0.5), batch(weights, sampled), on_device)
    torch.testing.assert_close(paid, value - normal.entropy().sum(-1).mean())  # half of it at each of two moments


def test_an_action_without_weight_is_not_asked_though_it_be_impossible(on_device):
    policy = lambda mean: m.SquashedGaussian(mean, torch.zeros_like(mean))  # noqa: E731
    weights = torch.tensor([1.0, 0.0]).expand(4, 2, 2)
    sampled = torch.zeros(4, 2, 2, 3)
    sampled[:, :, 1] = 5.0  # beyond what tanh reaches
    value, gradient = graded(Said(policy), MuZero(), batch(weights, sampled), on_device)
    assert value.isfinite()
    assert gradient.isfinite().all()


def test_what_the_loss_lacks_is_named():
    weights = torch.full((4, 2, 3), 1 / 3)
    with pytest.raises(ValueError, match="batch must have 'sampled', the actions that 'policy' weighs"):
        MuZero()(Said(m.Gaussian), batch(weights), 0)
    with pytest.raises(TypeError, match=r"predict must give logits or a policy of ai.model, got dict"):
        MuZero()(Said(lambda said: {}), batch(weights), 0)


class Lucky(m.Model):
    """Numbers as states: an action adds a parameter, and a code adds one of three more."""

    def __init__(self):
        super().__init__()
        self.step = torch.nn.Parameter(torch.tensor(0.5))
        self.falls = torch.nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
        self.scores = torch.nn.Parameter(torch.tensor([0.2, 0.7, 0.1]))
        self.odds = torch.nn.Parameter(torch.tensor([0.0, 1.0, -1.0]))

    def represent(self, obs):
        return obs[:, 0]

    def afterstate_dynamics(self, state, action):
        return state + self.step * action

    def afterstate_prediction(self, afterstate):
        return self.odds.expand(len(afterstate), 3), afterstate

    def chance_code(self, obs, following):
        return self.scores.roll(1) + (following - obs) * self.scores

    def dynamics(self, afterstate, code):
        return afterstate + code @ self.falls, code @ self.falls

    def predict(self, state):
        return state.new_zeros(len(state), 2), state


def lucky_batch():
    return {
        "obs": torch.tensor([[[1.0], [4.0]], [[0.0], [-3.0]]]),
        "action": torch.tensor([[1.0, 0.0], [2.0, 0.0]]),
        "reward": torch.tensor([[2.5, 0.0], [0.0, 0.0]]),
        "target": torch.tensor([[1.0, 3.0], [0.0, 5.0]]),
        "mask": torch.tensor([[True, True], [False, False]]),
        "policy": torch.full((2, 2, 2), 0.5),
    }


@pytest.mark.parametrize("cut", [0.0, 0.25])
def test_the_loss_of_learnt_luck_is_that_by_hand(cut, on_device):
    model, batch = Lucky(), lucky_batch()
    batch["target"][1, 0] = cut  # past a true end a value is 0
    found = on_device(MuZero(obs_unrolled=True, commitment_weight=0.5))(model, batch, 0)
    # scores at differences of 3 and -3: the highest is code 1 and code 2
    scores = torch.tensor([[0.1 + 0.6, 0.2 + 2.1, 0.7 + 0.3], [0.1 - 0.6, 0.2 - 2.1, 0.7 - 0.3]])
    afterstate, fell = torch.tensor([1.5, 1.0]), torch.tensor([2.0, 3.0])
    code = torch.tensor([[0.0, 1, 0], [0, 0, 1]])
    chance = -torch.tensor([0.0, 1.0, -1.0]).log_softmax(0)[1:] + 0.5 * (scores - code).square().sum(1)
    chance = chance * torch.tensor([1.0, float(cut == 0)])  # past an end nothing comes about, past a cut who knows
    value = (torch.tensor([1.0, 0.0]) - torch.tensor([1.0, cut])).square()  # at the roots
    value = value + (afterstate - torch.tensor([1.0, cut])).square()  # an afterstate is worth what its action brings
    value = value + (afterstate + fell - torch.tensor([3.0, 5.0])).square()
    reward = (fell - torch.tensor([2.5, 0.0])).square()
    policy = torch.tensor([2.0, 0.0]) * torch.log(torch.tensor(2.0))
    by_hand = (policy + reward + value + chance).mean()
    torch.testing.assert_close(found.detach(), by_hand.detach())


def test_what_follows_teaches_the_codes_scores_and_what_they_foresee_does_not(on_device):
    model, env = Lucky(), on_device(MuZero(obs_unrolled=True, commitment_weight=0.0))
    env(model, lucky_batch(), 0).backward()
    straight = model.scores.grad.clone()
    assert (straight != 0).all()  # though a code is a choice
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    with torch.no_grad():
        model.odds.copy_(torch.tensor([5.0, -5.0, 0.0]))
    model.zero_grad()
    env(model, lucky_batch(), 0).backward()
    torch.testing.assert_close(model.scores.grad, straight)


def test_luck_is_told_by_two_observations():
    with pytest.raises(ValueError, match="obs_unrolled must be True for a model with chance_code"):
        MuZero()(Lucky(), lucky_batch() | {"obs": torch.zeros(2, 1)}, 0)
    with pytest.raises(ValueError, match="commitment_weight"):
        MuZero(commitment_weight=float("nan"))
