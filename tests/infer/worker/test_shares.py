import pytest
import torch

from ai.infer.worker.shares import Shares


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.complex64, torch.int8])
def test_bytes_of_each_share_are_those_of_its_rows(dtype):
    x = torch.arange(24).view(6, 4).to(dtype)
    shares = Shares([x, x[:, 0].contiguous()], [1, 3, 2], (0, 0))
    assert shares.data is not None
    for i, rows in enumerate((x[:1], x[1:4], x[4:])):
        assert all(torch.equal(a, b) for a, b in zip(shares[i], (rows, rows[:, 0]), strict=True))
        for k, share in enumerate((rows, rows[:, 0])):
            assert torch.equal(torch.frombuffer(bytearray(shares.data[k][i]), dtype=dtype), share.flatten())


@pytest.mark.parametrize(
    ("x", "axis"),
    [
        (torch.arange(12.0).view(4, 3), 1),
        (torch.arange(12.0).view(4, 3).t(), 0),
        (torch.complex(torch.arange(6.0), torch.ones(6)).view(3, 2).conj(), 0),
        (torch.complex(torch.arange(6.0), torch.ones(6)).view(3, 2).conj().imag, 0),
    ],
)
def test_shares_that_do_not_lie_one_after_the_other_are_given_as_tensors_alone(x, axis):
    shares = Shares([x], [2, 1], (axis,))
    assert shares.data is None
    assert torch.equal(shares[0][0], x.narrow(axis, 0, 2))
    assert torch.equal(shares[1][0], x.narrow(axis, 2, 1))


def test_a_lone_request_gets_all_whatever_its_rows():
    scalar, empty = torch.tensor(3.0), torch.zeros(0, 5)
    shares = Shares([scalar, empty], [7])
    assert shares.data is not None
    assert [bytes(share) for (share,) in shares.data] == [scalar.numpy().tobytes(), b""]
    assert shares[0][0] is scalar


def test_a_column_of_one_row_is_bytes_whatever_its_stride():
    column = torch.arange(8.0).view(1, 8)[:, 3]
    shares = Shares([column], [1])
    assert shares.data is not None
    assert bytes(shares.data[0][0]) == torch.tensor([3.0]).numpy().tobytes()


def test_what_all_requests_get_alike_is_given_whole():
    x = torch.arange(3.0)
    shares = Shares([x], [1, 2], (None,))
    assert shares.data is None
    assert shares[0][0] is x
    assert shares[1][0] is x


def test_output_that_wants_gradients_is_bytes_as_well():
    x = torch.ones(2, 1, requires_grad=True)
    assert Shares([x], [1, 1], (0,)).data is not None
