import pytest
import torch

from ai.infer.worker.rows.shares import Shares


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.complex64, torch.int8])
def test_bytes_of_each_share_are_those_of_its_rows(dtype):
    x = torch.arange(28).view(7, 4).to(dtype)
    shares = Shares([x, x[:, 0].contiguous()], [1, 3, 2, 1], (0, 0))
    assert shares.data is not None
    for i, rows in enumerate((x[:1], x[1:4], x[4:6], x[6:])):
        assert all(torch.equal(a, b) for a, b in zip(shares[i], (rows, rows[:, 0]), strict=True))
        for k, share in enumerate((rows, rows[:, 0])):
            assert torch.equal(torch.frombuffer(bytearray(shares.data[k][i]), dtype=dtype), share.flatten())


COMPLEX = torch.complex(torch.arange(8.0), torch.ones(8)).view(4, 2)


@pytest.mark.parametrize(
    ("x", "axis"),
    [
        (torch.arange(12.0).view(3, 4), 1),
        (torch.arange(12.0).view(3, 4).t(), 0),
        (COMPLEX.conj(), 0),
        (COMPLEX.conj().imag, 0),
    ],
)
def test_shares_that_do_not_lie_one_after_the_other_are_given_as_tensors_alone(x, axis):
    shares = Shares([x], [1, 1, 1, 1], (axis,))
    assert shares.data is None
    assert all(torch.equal(shares[i][0], x.narrow(axis, i, 1)) for i in range(4))


def test_a_lone_request_gets_all_whatever_its_rows():
    scalar = torch.tensor(3.0)
    assert Shares([scalar], [7])[0][0] is scalar


def test_what_all_requests_get_alike_is_given_whole():
    x = torch.arange(3.0)
    shares = Shares([x], [1, 2, 1, 1], (None,))
    assert shares.data is None
    assert all(shares[i][0] is x for i in range(4))


def test_strides_of_axes_of_size_one_and_gradients_matter_not():
    x = torch.arange(4.0).as_strided((4, 1), (1, 99)).requires_grad_()
    shares = Shares([x], [1, 1, 1, 1], (0,))
    assert shares.data is not None
    assert bytes(shares.data[0][2]) == torch.tensor([2.0]).numpy().tobytes()
