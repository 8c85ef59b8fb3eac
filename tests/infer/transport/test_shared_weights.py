"""Weights on their way from the trainer to the workers."""

import pytest
import torch
from torch import nn

from ai.infer.transport.shared_weights import SharedWeights


def test_a_buffer_that_a_model_made_anew_in_inference_mode_takes_weights():
    model = nn.BatchNorm1d(2)
    weights = SharedWeights(model)
    state = {name: torch.full_like(x, 3) for name, x in model.state_dict().items()}
    weights.write(weights.check(state), 1)
    with torch.inference_mode():
        model.running_mean = model.running_mean * 0.5
    weights.apply(1, model)
    assert torch.equal(model.running_mean, torch.full((2,), 3.0))
    assert torch.equal(model.weight, torch.full((2,), 3.0))


def test_buffers_that_were_made_in_inference_mode_take_weights_outside_of_it():
    model = nn.Linear(3, 2)
    with torch.inference_mode():
        weights = SharedWeights(model)
    for version in (1, 2, 3):
        state = {name: torch.full_like(x, version) for name, x in model.state_dict().items()}
        weights.write(weights.check(state), version)
        weights.apply(version, model)
        assert torch.equal(model.weight, torch.full((2, 3), float(version)))


class Growing(nn.Module):
    """Makes a buffer, and puts a parameter behind another, when it is first called."""

    def __init__(self):
        super().__init__()
        self.register_buffer("cache", None)
        self.scale = nn.Parameter(torch.ones(3))
        self.shift = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        if self.cache is None:
            self.cache = torch.full((3,), 7.0)
            scale = self.scale
            del self.scale
            self.scale = scale
        return x * self.scale + self.shift


def test_weights_go_to_the_entries_of_their_names_whatever_the_model_has_made_since():
    """By their places a scale became the shift without a word, and a buffer made at the first call ended the worker."""
    model = Growing()
    weights = SharedWeights(model)
    x = torch.full((3,), 2.0)
    assert torch.equal(model(x), x)
    weights.write(weights.check({"scale": torch.full((3,), 3.0), "shift": torch.full((3,), 10.0)}), 1)
    weights.apply(1, model)
    assert torch.equal(model(x), torch.full((3,), 16.0))
    assert torch.equal(model.cache, torch.full((3,), 7.0))


def test_weights_that_no_longer_have_a_place_are_told_by_name():
    model = Growing()
    weights = SharedWeights(model)
    model.scale = nn.Parameter(torch.ones(2, 3))  # into which three numbers would be spread
    with pytest.raises(RuntimeError, match="new weights have no place: the model itself has changed 'scale'"):
        weights.apply(1, model)


class Spoken(nn.Module):
    """Has a state that is no tensor."""

    def get_extra_state(self):
        return {}

    def set_extra_state(self, state):
        pass


def test_some_extra_states_without_the_others_are_refused_and_none_are_not():
    """A worker that was restarted had what came last alone, and began anew with the rest."""
    model = nn.Sequential(Spoken(), nn.Linear(1, 1), Spoken())
    weights = SharedWeights(model)
    state = model.state_dict()
    assert len(weights.check(state)) == 2
    del state["0._extra_state"]
    with pytest.raises(ValueError, match=r"every extra state of the model or none, and lacks '0\._extra_state'$"):
        weights.check(state)
    del state["2._extra_state"]
    assert len(weights.check(state)) == 2
