import weakref

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


@pytest.mark.filterwarnings("ignore:Sparse|The PyTorch API of nested")
@pytest.mark.parametrize("requires_grad", [True, False])
@pytest.mark.parametrize(
    "made",
    [
        torch.Tensor.to_sparse,
        lambda x: torch.sparse_coo_tensor([[1, 1], [0, 0]], [1.0, 2.0], (3, 3)),  # not coalesced
        torch.Tensor.to_sparse_csr,
        lambda x: x[:2, :2].to_sparse_bsc((1, 2)),
        lambda x: torch.nested.nested_tensor([x, x[:1]]),
    ],
)
def test_a_tensor_that_is_not_dense_arrives_as_it_was(made, requires_grad):
    sent = made(torch.eye(3)).requires_grad_(requires_grad)
    came = joined(*split({"x": sent}))["x"]
    assert (came.layout, came.is_nested, came.requires_grad) == (sent.layout, sent.is_nested, requires_grad)
    assert came.is_leaf
    pairs = zip(came.unbind(), sent.unbind(), strict=True) if sent.is_nested else [(came.to_dense(), sent.to_dense())]
    assert all(torch.equal(one, other) for one, other in pairs)
    if came.layout is torch.sparse_coo:
        assert came.is_coalesced() == sent.is_coalesced()
    kept = weakref.ref(came)
    del came, pairs
    assert kept() is None


def test_a_tensor_arrives_by_whatever_strides_it_lies():
    x = torch.arange(20).view(4, 5)
    one = x[:1]
    sent = [one[:, 2], one.T[2:3], x[:, 1], x.T, x[::2, ::3], x[2:2, 1], x[3, 4], x[:, :1].expand(4, 3)]
    sent += [torch.tensor([3 + 4j]).conj().imag, x[:1, 2].bool()]
    for came, value in zip(joined(*split(sent)), sent, strict=True):
        assert torch.equal(came, value)
        assert came.is_contiguous()


def test_what_was_set_on_a_tensor_arrives_with_it():
    sent = torch.arange(3.0, requires_grad=True)
    sent.label = "x"
    came = joined(*split([sent]))[0]
    assert (came.label, came.requires_grad, came.tolist()) == ("x", True, [0.0, 1.0, 2.0])
