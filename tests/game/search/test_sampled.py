"""Searches among sampled actions, in a model whose values are known: a linear-quadratic regulator, and a bowl."""

import math

import numpy as np
import pytest
import torch

import ai.model as m
from ai.game import Gumbel, Puct, Search
from ai.game.search.actions import _repeated

# x' = x + a costs x'² + a² / 2; the least that is still to be paid is P x², with P of the discounted Riccati equation.
GAMMA, FORCE = 0.9, 0.5


def _least_cost() -> float:
    cost = 0.0
    for _ in range(200):
        after = 1 + GAMMA * cost
        cost = after * FORCE / (after + FORCE)
    return cost


LEAST = _least_cost()
GAIN = (1 + GAMMA * LEAST) / (1 + GAMMA * LEAST + FORCE)  # the best action is -GAIN x


class Regulator:
    """The exact model: what is seen is x, and so is the embedding; every policy is the same wide normal."""

    def __init__(self, std=1.0):
        self.log_std = math.log(std)

    def _said(self, x):
        return m.Gaussian(torch.zeros_like(x), torch.full((1,), self.log_std)), -LEAST * x[:, 0] ** 2

    def initial(self, observation):
        return observation, *self._said(observation)

    def recurrent(self, embedding, action):
        after = embedding + action
        reward = -(after[:, 0] ** 2) - FORCE * action[:, 0] ** 2
        return after, reward, torch.full_like(reward, GAMMA), *self._said(after)


def _exact(x, action):
    """Returns what an action is worth where the best ones follow, `[B, K]`."""
    after = x[:, None] + action
    return -(after**2) - FORCE * action**2 - GAMMA * LEAST * after**2


START = torch.tensor([[0.8], [-0.5], [0.0], [1.5]], dtype=torch.float64)


@pytest.mark.parametrize("rule", [Gumbel(max_considered=24), Puct(normalize=False)])
def test_each_sampled_action_is_worth_what_the_regulator_says(rule):
    # one step deep the values beyond are exact, so each edge must be, whichever actions were drawn
    search = Search.sampled(Regulator(), samples=24, simulations=48, rule=rule, max_depth=1)
    found = search(START, 3)
    action, tried = found.actions[..., 0], found.visits > 0
    exact = _exact(START[:, 0].numpy(), action)
    np.testing.assert_allclose(found.values[tried], exact[tried], atol=1e-12)
    assert tried.sum(1).min() > 2
    if isinstance(rule, Gumbel):  # which tries all
        np.testing.assert_array_equal(found.action, exact.argmax(1))
        np.testing.assert_allclose(found.chosen()[:, 0], -GAIN * START[:, 0], atol=0.3)


def test_a_deeper_search_averages_what_the_actions_sampled_along_the_way_are_worth():
    search = Search.sampled(Regulator(), samples=4, simulations=60, rule=Puct(normalize=False), max_depth=2)
    found = search(START, 1)
    offered, tree = search._dynamics.actions._actions.numpy()[..., 0], search.tree
    start, first = START[:, 0].numpy(), found.actions[..., 0]
    reached = start[:, None] + first
    paid = -(reached**2) - FORCE * first**2
    node, rows = tree.child[:, 0].astype(int), np.arange(4)[:, None]
    assert (node > 0).all()
    second = _exact(reached.reshape(-1), offered[rows, node].reshape(-1, 4)).reshape(4, 4, 4)
    # the node's own value is counted once, what lies beyond as often as it was visited
    visits = tree.visits[rows, node]
    beyond = (-LEAST * reached**2 + (visits * second).sum(-1)) / (1 + visits.sum(-1))
    np.testing.assert_allclose(found.values, paid + GAMMA * beyond, atol=1e-9)
    best = (paid + GAMMA * second.max(-1)).max(1)
    assert (found.values.max(1) <= best).all()
    assert (best <= -LEAST * start**2 + 1e-9).all()  # the optimum


def test_the_prior_is_the_policy_s_density_over_that_of_what_proposed():
    wide = lambda policy: m.Gaussian(policy.mean, policy.log_std + math.log(2))  # noqa: E731
    found = Search.sampled(Regulator(), samples=5, proposal=wide, simulations=4)(START)
    a = found.actions[..., 0]
    ratio = np.exp(-(a**2) / 2) / (np.exp(-(a**2) / 8) / 2)
    np.testing.assert_allclose(found.prior, ratio / ratio.sum(1, keepdims=True), rtol=1e-6)
    assert a.std() > 1.2  # it is the proposal that proposes


def test_expectations_under_the_prior_are_those_under_the_policy_whatever_proposes():
    # E (a - 0.3)² of a standard normal is 1.09; of what proposes, 4 + 0.3²
    wide = lambda policy: m.Gaussian(policy.mean, policy.log_std + math.log(2))  # noqa: E731
    search = Search.sampled(Regulator(), samples=1000, proposal=wide, simulations=1)
    found = search(START[:1])
    assert (found.prior * (found.actions[..., 0] - 0.3) ** 2).sum() == pytest.approx(1.09, abs=0.15)
    own = Search.sampled(Regulator(), samples=1000, simulations=1)(START[:1])
    np.testing.assert_allclose(own.prior, 1 / 1000)
    assert (own.prior * (own.actions[..., 0] - 0.3) ** 2).sum() == pytest.approx(1.09, abs=0.15)


class Choice:
    """One choice of three, each with its reward, and the end."""

    logits = torch.log(torch.tensor([0.5, 0.3, 0.2]))

    def initial(self, observation):
        return observation, m.Categorical(self.logits.expand(len(observation), 3)), torch.zeros(len(observation))

    def recurrent(self, embedding, action):
        assert action.shape == (len(embedding),)
        _, policy, value = self.initial(embedding)
        return embedding, torch.tensor([0.1, 0.7, 0.4])[action], torch.zeros(len(action)), policy, value


@pytest.mark.parametrize("uniform", [False, True])
def test_of_an_action_drawn_often_one_place_is_open_with_the_share_of_all(uniform):
    proposal = (lambda policy: m.Categorical(torch.zeros_like(policy.logits))) if uniform else None
    found = Search.sampled(Choice(), samples=40, proposal=proposal, simulations=20)(torch.zeros(3, 1))
    for drawn, prior, visits in zip(found.actions, found.prior, found.visits, strict=True):
        count = np.bincount(drawn, minlength=3)
        weight = count * np.array([0.5, 0.3, 0.2]) if uniform else count
        places = [int((drawn == a).argmax()) for a in range(3)]  # the first of each
        np.testing.assert_allclose(prior[places], weight / weight.sum(), rtol=1e-6)
        closed = np.delete(np.arange(40), places)
        assert prior[closed].sum() == visits[closed].sum() == 0
    np.testing.assert_array_equal(found.chosen(), 1)
    np.testing.assert_allclose(found.values.max(1), 0.7, rtol=1e-6)


def test_choices_are_sampled_among_the_legal_ones_also_where_these_are_few():
    legal = np.array([[True, False, True], [False, False, True]])
    search = Search.sampled(Choice(), samples=30, simulations=12, rule=Puct(normalize=False))
    found = search(torch.zeros(2, 1), legal=legal)
    assert set(found.actions[0]) == {0, 2}
    assert set(found.actions[1]) == {2}
    np.testing.assert_array_equal(found.chosen(), 2)
    np.testing.assert_allclose(found.visits.sum(1), 12)
    share = np.bincount(found.actions[0], minlength=3)[[0, 2]] / 30  # drawn from 5/7 and 2/7
    np.testing.assert_allclose(np.sort(found.prior[0])[-2:], np.sort(share))
    search.advance(found.action)
    search(torch.zeros(2, 1), legal=np.array([[False, True, True]] * 2))
    assert (search.tree.visits[:, 0][search._dynamics.actions.offered == 0] == 0).all()


def test_a_kept_tree_without_a_legal_choice_gives_way_to_a_fresh_one():
    search = Search.sampled(Choice(), samples=1, simulations=6, rule=Puct(normalize=False))
    found = search(torch.zeros(3, 1), np.arange(3, dtype=np.uint64))
    search.advance(found.action)
    offered = search._dynamics.actions.offered[:, 0].copy()
    legal = np.ones((3, 3), bool)
    legal[1:][np.arange(2), offered[1:]] = False
    with pytest.raises(ValueError, match="legal must allow a move in every row, row 2 has none"):
        search(torch.zeros(3, 1), 5, legal=legal & np.array([[True], [True], [False]]))
    second = search(torch.zeros(3, 1), 5, legal=legal)
    assert legal[np.arange(3), second.chosen()].all()
    assert second.actions[0, 0] == offered[0]
    np.testing.assert_array_equal(second.visits.sum(1), [11, 6, 6])  # only the first row's tree was of use


@pytest.mark.parametrize(
    ("shape", "below", "kind"), [((5, 40, 1), 3, int), ((7, 30, 2), 3, float), ((3, 1, 4), 2, int)]
)
def test_repeated_actions_are_those_that_a_comparison_of_all_pairs_finds(shape, below, kind):
    actions = torch.randint(-below, below, shape, generator=torch.Generator().manual_seed(0)).to(kind)
    actions = torch.where(actions == 0, -actions, actions)  # -0.0 is 0.0
    actions[0, ::2] = 0
    same = (actions[:, :, None] == actions[:, None]).all(-1)
    first, times = _repeated(actions)
    assert torch.equal(times, same.sum(-1))
    assert torch.equal(first, same.int().argmax(-1) == torch.arange(shape[1]))


def test_what_a_row_is_offered_depends_on_its_seed_alone():
    search = Search.sampled(Regulator(), samples=6, simulations=12)
    whole = search(START, np.array([7, 8, 9, 10], np.uint64))
    alone = search(START[2:3], np.array([9], np.uint64))
    np.testing.assert_array_equal(whole.actions[2:3], alone.actions)
    np.testing.assert_array_equal(whole.values[2:3], alone.values)
    again, other = search(START, np.array([7, 8, 9, 10], np.uint64)), search(START, 4)
    np.testing.assert_array_equal(whole.values, again.values)
    assert (whole.actions != other.actions).all()


def test_the_actions_of_what_was_found_are_not_overwritten_by_the_next_search():
    search = Search.sampled(Regulator(), samples=6, simulations=12)
    first = search(START, 1)
    kept = first.actions.copy()
    search(START, 2)
    np.testing.assert_array_equal(first.actions, kept)


def test_a_tree_that_is_kept_keeps_the_actions_of_its_nodes():
    search = Search.sampled(Regulator(), samples=6, simulations=60, rule=Puct(normalize=False))
    first = search(START, 1)
    child = search.tree.child[np.arange(4), 0, first.action].copy()
    assert (child > 0).all()
    inside = search._dynamics.actions._actions[np.arange(4), child].numpy().copy()
    search.advance(first.action)
    after = START.numpy() + first.chosen()
    second = search(torch.from_numpy(after), 2)
    np.testing.assert_array_equal(second.actions, inside)
    below = search.tree.child[:, 0] > 0
    for row, place in zip(*np.nonzero(below), strict=True):
        node = search.tree.child[row, 0, place]
        reached = after[row, 0] + second.actions[row, place, 0]
        assert search.tree.value[row, node] == pytest.approx(-LEAST * reached**2)
    tried = second.visits > 0
    exact = _exact(after[:, 0], second.actions[..., 0])
    assert (second.values[tried] <= exact[tried] + 1e-9).all()


def test_what_cannot_be_sampled_is_refused_in_a_sentence():
    search = Search.sampled(Regulator(), samples=3, simulations=2)
    with pytest.raises(TypeError, match="legal must be None for movements, which Gaussian gives"):
        search(START, legal=np.ones((4, 3), bool))
    with pytest.raises(ValueError, match=r"legal must have shape \(2, 3\) or \(3,\), got \(2, 4\)"):
        Search.sampled(Choice(), samples=4)(torch.zeros(2, 1), legal=np.ones((2, 4), bool))
    with pytest.raises(TypeError, match="proposal must be a function of a policy, or None, got 3"):
        Search.sampled(Regulator(), proposal=3)

    class Logits(Regulator):
        def _said(self, x):
            return torch.zeros(len(x), 3), x[:, 0]

    with pytest.raises(TypeError, match=r"policy must have width, at and log_prob.*got Tensor"):
        Search.sampled(Logits(), samples=3)(START)
    inside = Search.sampled(
        Beyond(), samples=3, simulations=2, proposal=lambda policy: m.Gaussian(policy.mean + 50, policy.log_std)
    )
    with pytest.raises(ValueError, match="proposal must propose actions that the policy may take"):
        inside(START)


class Beyond(Regulator):
    """Its policy may not leave (-1, 1)."""

    def _said(self, x):
        policy, value = super()._said(x)
        return m.SquashedGaussian(*policy), value
