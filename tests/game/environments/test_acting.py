"""What a model has to give to whoever acts by it."""

import numpy as np
import pytest
import torch

import ai.model as m
from ai.game import ByPolicy, BySearch, CartPole, EpsilonGreedy, GameEnvironments, Rollouts, Search

VALUES = lambda obs: obs  # noqa: E731
ALONE = lambda obs: m.Gaussian(obs, obs)  # noqa: E731  (two tensors, which are no policy and value)
REST = lambda obs, memory: (m.Categorical(obs), obs[..., 0])  # noqa: E731
PAIR = lambda obs: (m.Categorical(obs), obs[..., 0])  # noqa: E731
MAY = lambda obs, memory=None: (m.Categorical(obs), obs[..., 0], memory)  # noqa: E731


@pytest.mark.parametrize(
    ("act", "model", "memory", "message"),
    [
        (ByPolicy(), VALUES, False, r"the model must give \(policy, value\), got Tensor$"),
        (ByPolicy(), ALONE, False, r"the model must give \(policy, value\), got Gaussian$"),
        (ByPolicy(), lambda obs: (obs, obs), False, r"\(policy, value\), got tuple of Tensor, Tensor$"),
        (ByPolicy(), REST, True, r"\(policy, value, memory\), got tuple of Categorical, Tensor$"),
        (ByPolicy(), REST, False, r"takes \(obs, memory\), it was given obs alone: memory, .* must be a shape$"),
        (ByPolicy(), PAIR, True, r"takes \(obs\), it was given obs and memory: memory, .* must be None$"),
        (ByPolicy(), MAY, False, r"without memory the model must give \(policy, value\), got 3 parts$"),
        (EpsilonGreedy(steps=1), ALONE, False, r"values of actions, a tensor \(N, A\), got Gaussian$"),
        (EpsilonGreedy(steps=1), lambda obs: obs[None], False, r"a tensor \(N, A\), got \(1, 2, 2\)$"),
    ],
)
def test_a_model_for_another_way_to_act_is_named(act, model, memory, message):
    seen = {"obs": torch.zeros(2, 2)}  # as many rows as a pair has parts
    with pytest.raises(TypeError, match=message):
        act(model, {**seen, "memory": torch.zeros(2, 1)} if memory else seen, None, 0)


def test_an_error_within_a_model_is_passed_on_as_it_is():
    def fails(obs):
        return len(3)

    with pytest.raises(TypeError, match="object of type 'int' has no len"):
        ByPolicy()(fails, {"obs": torch.zeros(2, 2)}, None, 0)


class Pushed(m.Model):
    """Pays a step by how near its force is to what is seen."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.zeros(1))

    def initial(self, obs):
        return obs, m.SquashedGaussian(torch.zeros_like(obs), self.scale), torch.zeros(len(obs))

    def recurrent(self, embedding, action):
        nothing = torch.zeros(len(embedding))
        return embedding, -(action - embedding).square()[:, 0], nothing, *self.initial(embedding)[1:]


def by_search(temperature, samples=12):
    return BySearch(lambda model: Search.sampled(model, samples=samples, simulations=24), temperature=temperature)


def test_a_search_acts_by_its_preference_and_tells_what_is_to_be_learnt():
    obs = torch.tensor([[0.5], [-0.6], [0.0]])
    said = by_search(0.0)(Pushed(), {"obs": obs}, torch.Generator().manual_seed(0), 0)
    torch.testing.assert_close(said["action"], obs, atol=0.2, rtol=0)
    nearest = (said["sampled"] - obs[:, None]).abs()[..., 0].argmin(1)
    torch.testing.assert_close(said["action"], said["sampled"][torch.arange(3), nearest])
    assert {key: value.dtype for key, value in said.items()} == dict.fromkeys(
        ("action", "policy", "value", "sampled"), torch.float32
    )
    torch.testing.assert_close(said["policy"].sum(1), torch.ones(3))


def test_a_warm_search_draws_by_its_preference_and_by_the_generator():
    obs = torch.zeros(400, 1)
    first, again, other = (
        by_search(1.0, 4)(Pushed(), {"obs": obs}, torch.Generator().manual_seed(seed), 0) for seed in (0, 0, 1)
    )
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert (first["sampled"] != other["sampled"]).all()
    taken = (first["sampled"] == first["action"][:, None]).all(-1).float()
    # as often as the policy says: the share that fell to the most preferred, within three deviations
    most = first["policy"].max(1)
    fell = taken[torch.arange(400), most.indices].mean()
    assert abs(float(fell - most.values.mean())) < 0.075


def test_rollouts_by_a_search_hold_what_muzero_learns_from():
    env = GameEnvironments(CartPole(), 4)
    source = Rollouts(env, Numbered(), BySearch(lambda model: Search.learned(model, 2, simulations=4)), 8)
    source.start(0, 0)
    made = next(source)
    assert made.columns["policy"].shape[1:] == (2,)
    assert "sampled" not in made.columns
    source = Rollouts(Line(4), Pushed(), by_search(1.0, 5), 8)
    source.start(0, 0)
    made = next(source)
    assert made.columns["sampled"].shape[1:] == (5, 1)
    assert made.columns["value"].shape == made.columns["reward"].shape


def test_a_search_with_a_memory_is_refused():
    with pytest.raises(ValueError, match="memory must be None"):
        by_search(1.0)(Pushed(), {"obs": torch.zeros(1, 1), "memory": torch.zeros(1, 1)}, None, 0)
    with pytest.raises(TypeError, match="search must be a function of a model that makes a Search, got 3"):
        BySearch(3)


class Numbered(m.Model):
    def initial(self, obs):
        return obs, torch.zeros(len(obs), 2), torch.zeros(len(obs))

    def recurrent(self, embedding, action):
        return embedding, torch.ones(len(embedding)), torch.ones(len(embedding)), *self.initial(embedding)[1:]


class Line:
    def __init__(self, num):
        self.num = num

    def reset(self, seed):
        return np.zeros((self.num, 1), np.float32)

    def step(self, action):
        over = np.zeros(self.num, bool)
        return np.asarray(action, np.float32), np.ones(self.num, np.float32), over, over


def test_values_are_compared_among_legal_actions_alone_and_where_none_is_among_all():
    values = torch.tensor([[3.0, 1.0, 2.0], [3.0, -torch.inf, 2.0], [1.0, 2.0, 3.0]])
    legal = torch.tensor([[False, True, True], [False, True, False], [False, False, False]])
    seen = {"obs": values, "legal": legal}
    best = EpsilonGreedy(steps=1, first=0.0, last=0.0)(VALUES, seen, None, 0)["action"]
    assert best.tolist() == [2, 1, 2]
    generator, explore = torch.Generator().manual_seed(0), EpsilonGreedy(steps=1, last=1.0)
    drawn = torch.stack([explore(VALUES, seen, generator, 0)["action"] for _ in range(300)])
    counts = torch.stack([(drawn == action).sum(0) for action in range(3)], 1)
    assert counts[:2].tolist() == [[0, *counts[0, 1:].tolist()], [0, 300, 0]]
    assert counts[0, 1:].min() > 120  # of 150 in the mean
    assert counts[2].min() > 70  # of 100
