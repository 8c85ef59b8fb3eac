"""What a model has to give to whoever acts by it."""

import pytest
import torch

import ai.model as m
from ai.game import ByPolicy, EpsilonGreedy

VALUES = lambda obs: obs  # noqa: E731
ALONE = lambda obs: m.Gaussian(obs, obs)  # noqa: E731  (two tensors, which are no policy and value)
REST = lambda obs, memory: (m.Categorical(obs), obs[..., 0])  # noqa: E731


@pytest.mark.parametrize(
    ("act", "model", "memory", "message"),
    [
        (ByPolicy(), VALUES, False, r"the model must give \(policy, value\), got Tensor$"),
        (ByPolicy(), ALONE, False, r"the model must give \(policy, value\), got Gaussian$"),
        (ByPolicy(), lambda obs: (obs, obs), False, r"\(policy, value\), got tuple of Tensor, Tensor$"),
        (ByPolicy(), REST, True, r"\(policy, value, memory\), got tuple of Categorical, Tensor$"),
        (EpsilonGreedy(steps=1), ALONE, False, r"values of actions, a tensor \(N, A\), got Gaussian$"),
        (EpsilonGreedy(steps=1), lambda obs: obs[None], False, r"a tensor \(N, A\), got \(1, 2, 2\)$"),
    ],
)
def test_a_model_for_another_way_to_act_is_named(act, model, memory, message):
    seen = {"obs": torch.zeros(2, 2)}  # as many rows as a pair has parts
    with pytest.raises(TypeError, match=message):
        act(model, {**seen, "memory": torch.zeros(2, 1)} if memory else seen, None, 0)
