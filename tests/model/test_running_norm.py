"""Running moments against those of all rows together."""

import pytest
import torch

import ai.model as m


def test_moments_are_those_of_all_rows_however_they_were_split(on_device):
    rows = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 4 + 100
    norm = m.running_norm(3, clip=None, eps=0).double()
    for part in rows.split([1, 300, 2, 697]):
        on_device(norm)(part.view(1, -1, 3))
    torch.testing.assert_close(norm.mean, rows.mean(0))
    torch.testing.assert_close(norm.variance, rows.var(0, correction=0))
    assert norm.count == 1000
    torch.testing.assert_close(on_device(norm.eval())(rows), (rows - rows.mean(0)) / rows.std(0, correction=0))


def test_the_first_batch_is_seen_as_it_was_acted_on_and_evaluation_learns_nothing(on_device):
    norm, x = m.running_norm(2), torch.randn(8, 2)
    acted = on_device(norm.eval())(x)
    assert torch.equal(on_device(norm.train())(x), acted)
    state = {key: value.clone() for key, value in norm.state_dict().items()}
    on_device(norm.eval())(x + 5)
    assert all(torch.equal(value, norm.state_dict()[key]) for key, value in state.items())


def test_outliers_are_clipped_and_whole_numbers_taken(on_device):
    norm = m.running_norm(1, clip=2.0)
    on_device(norm)(torch.tensor([[0], [2]], dtype=torch.uint8))
    assert on_device(norm.eval())(torch.tensor([[200]], dtype=torch.uint8)).tolist() == [[2.0]]


def test_init_forgets_what_was_seen():
    model = m.Model(m.seq(m.running_norm(2), m.fc(2, 2))).init(seed=0)
    model(torch.randn(4, 2) + 3)
    assert model.init(seed=0).net[0].mean.tolist() == [0, 0]
    assert model.net[0].count == 0


def test_rows_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"running_norm expects \(…, 2\), got shape \(4, 3\)"):
        m.running_norm(2)(torch.zeros(4, 3))


def test_a_row_that_is_not_finite_leaves_the_moments_as_they_are(on_device):
    rows = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    norm, clean = m.running_norm(2), m.running_norm(2)
    on_device(norm)(torch.tensor([[float("nan"), 1.0]]))
    assert norm.mean.tolist() == [0, 0]
    on_device(norm)(torch.cat([rows, torch.tensor([[float("inf"), 1.0], [2.0, float("nan")]])]))
    clean(rows)
    for key, value in clean.state_dict().items():
        torch.testing.assert_close(norm.state_dict()[key], value)


@pytest.mark.parametrize(
    ("shape", "how", "error", "message"),
    [
        ((2.5,), {}, TypeError, r"shape\[0\] must be a whole number, got 2.5"),
        ((2,), {"clip": -1.0}, ValueError, "clip must be positive or None, got -1.0"),
        ((2,), {"eps": -1.0}, ValueError, "eps must be at least 0, got -1.0"),
    ],
)
def test_what_cannot_be_is_refused(shape, how, error, message):
    with pytest.raises(error, match=message):
        m.running_norm(*shape, **how)


def test_numbers_whose_squares_are_not_finite_leave_the_moments_alone():
    norm = m.running_norm(1)
    norm(torch.tensor([[3e38], [1.0], [-3e38], [3.0], [1e19]]))
    assert (norm.count.item(), norm.mean.item(), norm.variance.item()) == (2, 2.0, 1.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_half_precision_the_moments_stay_wide_and_what_goes_out_is_half(dtype, on_device):
    rows = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0)) * 1000 + 20_000
    net = m.seq(m.running_norm(2), m.fc(2, 2))
    net[0](rows)
    before = net[0].variance.clone()
    net.to(dtype)
    assert torch.equal(net[0].variance, before)  # of 1,000,000: infinite in float16
    on_device(net)(rows.to(dtype))
    assert net(rows.to(dtype)).dtype == dtype
    assert net[0].variance.isfinite().all()
    torch.testing.assert_close(net.eval()[0](rows.to(dtype)).float(), net[0].float()(rows), atol=0.2, rtol=0.01)
    assert net[0].double()(rows.double()).dtype == net[0].mean.dtype == torch.float64
