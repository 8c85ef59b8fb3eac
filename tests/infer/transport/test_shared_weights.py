"""Weights on their way from the trainer to the workers."""

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
