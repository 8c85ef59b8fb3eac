"""Shuffled orders looked up place by place: whole, reproducible, and as even as drawn ones."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ai.data.batch.seeds import derive_seed
from ai.data.batch.shuffle import Stretch, shuffled

DRAWN_WHOLE = 1 << 16
N = 3 * DRAWN_WHOLE - 17


@pytest.fixture(autouse=True)
def small_limit(monkeypatch):
    """Orders beyond 65,536 are looked up, so that looking up is tried at sizes that can be counted."""
    monkeypatch.setattr("ai.data.batch.shuffle.DRAWN_WHOLE", 1 << 16)


def whole(n, *place):
    return shuffled(torch.arange(n), n, *place).numpy()


@pytest.mark.parametrize("n", [DRAWN_WHOLE + 1, 1 << 17, (1 << 17) + 1, 250_000])
def test_every_sample_comes_once(n):
    assert np.array_equal(np.sort(whole(n, 5, 0)), np.arange(n))


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(n=st.integers(DRAWN_WHOLE + 1, 1 << 62), seed=st.integers(0, 2**64 - 1))
def test_any_places_of_any_size_are_apart_and_in_range(n, seed):
    places = torch.unique(torch.linspace(0, 1, 200, dtype=torch.float64).mul(n - 1).long().clamp(0, n - 1))
    found = shuffled(places, n, seed, 1)
    assert int(found.min()) >= 0
    assert int(found.max()) < n
    assert len(found.unique()) == len(places)
    assert torch.equal(found[::7], shuffled(places[::7], n, seed, 1))


def test_small_orders_are_drawn_whole():
    generator = torch.Generator().manual_seed(derive_seed(4, 2))
    assert np.array_equal(whole(1000, 4, 2), torch.randperm(1000, generator=generator))


def chi_square(counts):
    expected = counts.sum() / counts.size
    return ((counts - expected) ** 2 / expected).sum()


@pytest.mark.parametrize("seed", [0, 1, 2**40])
def test_where_a_sample_goes_tells_nothing_of_where_it_was(seed):
    order = whole(N, seed, 0)
    place = np.arange(N)
    cells = np.zeros((16, 16))
    np.add.at(cells, (place * 16 // N, order * 16 // N), 1)
    assert chi_square(cells) < 330  # the 0.999 quantile with 225 degrees of freedom (margins fixed) is 294
    low = np.zeros((16, 16))
    np.add.at(low, (place % 16, order % 16), 1)
    assert chi_square(low) < 330
    assert abs(np.corrcoef(place, order)[0, 1]) < 4 / N**0.5


def test_neighbours_are_not_kept_together():
    order = whole(N, 3, 1)
    steps = np.diff(order)
    assert (np.abs(steps) == 1).sum() < 20  # 4 are expected, as of any shuffle
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 4 / N**0.5
    assert len(np.unique(steps)) > 0.8 * N * (1 - np.exp(-1))  # as many different steps as of a drawn order


def test_epochs_and_seeds_are_unlike_each_other():
    orders = [whole(N, seed, epoch) for seed in range(3) for epoch in range(3)]
    for i, a in enumerate(orders):
        for b in orders[:i]:
            assert (a == b).sum() < 12  # 1 is expected
            assert abs(np.corrcoef(a, b)[0, 1]) < 5 / N**0.5


def test_fixed_points_over_many_keys_are_as_of_random_permutations():
    places = torch.arange(0, N, 997)
    fixed = sum(int((shuffled(places, N, key) == places).sum()) for key in range(2000))
    expected = 2000 * len(places) / N
    assert abs(fixed - expected) < 5 * expected**0.5


@pytest.mark.parametrize("n", [50, N])
def test_a_stretch_is_a_part_of_the_shuffled_order(n):
    stretch = Stretch(n, 10, 40, 5, 1)
    part = shuffled(torch.arange(10, 40), n, 5, 1)
    for index in (slice(None), slice(3, 20, 4), slice(None, None, -1)):
        assert np.array_equal(stretch[index], part.numpy()[index])
    for index in (0, -1, [1, 29], [-30, 4], torch.tensor([[2, 3], [4, -5]]), [], torch.arange(30) % 7 == 2):
        assert torch.equal(stretch[index], part[index])
    assert len(stretch) == 30
    for index in (30, [0, -31]):
        with pytest.raises(IndexError, match=r"index \((30|-31)\) is out of range for 30 places"):
            stretch[index]
