import pytest
import torch

from ai.data.workers.message import joined, split


@pytest.mark.parametrize("is_leaf", [True, False])
def test_a_tensor_arrives_as_one_that_requires_gradients_where_it_was_one(is_leaf):
    leaf = torch.arange(6.0).view(2, 3).requires_grad_()
    sent = {"x": leaf if is_leaf else leaf.T, "y": torch.ones(2), "n": torch.arange(3)}
    came = joined(*split(sent))
    assert {key: value.requires_grad for key, value in came.items()} == {"x": True, "y": False, "n": False}
    assert all(torch.equal(came[key], value) and came[key].is_leaf for key, value in sent.items())
