"""Episodes and packed ones, brought into one."""

import numpy as np
import pytest

from ai.data import Packed
from ai.data.episodes.packing import packed


def two():
    columns = {"obs": np.arange(5), "action": np.array([1, 0, 1, 1, 0]), "truncated": np.array([0, 0, 1, 1, 1], bool)}
    return Packed(columns, np.array([2, 3]))


def test_what_packed_episodes_do_not_say_is_filled_in_as_for_single_ones():
    got = packed([two()], version=3)
    assert got.columns["discount"].tolist() == [0, 0, 1, 1, 0]
    assert got.columns["version"].tolist() == [3] * 5
    assert (got.n_episodes, got.n_steps, got.is_step.tolist()) == (2, 3, [True, False, True, True, False])


def test_single_and_packed_episodes_travel_together_in_order():
    single = {"obs": np.array([7, 8]), "action": np.array([1]), "truncated": np.array([True]), "episode_return": 4.0}
    part = two()
    part.drawable = np.array([True, False, False, True, False])
    part.finished = {"episode_return": np.array([2.0]), "episode_length": np.array([1.0])}
    got = packed([single, part])
    assert got.columns["obs"].tolist() == [7, 8, 0, 1, 2, 3, 4]
    assert got.lengths.tolist() == [2, 2, 3]
    assert got.drawable.tolist() == [True, False, True, False, False, True, False]
    assert {key: value.tolist() for key, value in got.finished.items()} == {
        "episode_return": [4, 2],
        "episode_length": [1],
    }
    assert got.n_steps == 3


@pytest.mark.parametrize(
    ("columns", "lengths", "message"),
    [
        (
            {"obs": np.zeros(3)},
            [1, 2],
            r"lengths must be T \+ 1 of at least one episode of a step or more, got \[1 2\]",
        ),
        ({"obs": np.zeros(3)}, [2, 2], r"columns must have 4 rows, the sum of lengths, got the shapes {'obs': \(3,\)}"),
    ],
)
def test_what_does_not_fit_is_refused(columns, lengths, message):
    with pytest.raises(ValueError, match=message):
        Packed(columns, np.array(lengths))


def test_parts_of_unlike_keys_are_refused():
    with pytest.raises(ValueError, match=r"episodes must have equal keys"):
        packed([two(), {"action": np.zeros(2)}])
