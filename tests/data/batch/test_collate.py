"""Stacking samples."""

import numpy as np
import pytest
import torch

from ai.data.batch.collate import collate


def test_nested_samples_gain_a_leading_axis():
    samples = [{"x": np.full(2, i), "t": (torch.tensor(i), i / 2), "name": f"n{i}"} for i in range(3)]
    batch = collate(samples)
    assert batch["x"].tolist() == [[0, 0], [1, 1], [2, 2]]
    assert batch["t"][0].tolist() == [0, 1, 2]
    assert batch["t"][1].dtype == np.float32
    assert batch["t"][1].tolist() == [0, 0.5, 1]
    assert batch["name"] == ["n0", "n1", "n2"]


def test_ragged_samples_are_named():
    with pytest.raises(
        ValueError, match=r"one shape and dtype, got \(3,\) float64 for the first and \(4,\).*sample 1.*'x'"
    ):
        collate([{"x": np.zeros(3)}, {"x": np.zeros(4)}])


def test_mixed_dtypes_keys_and_lengths_are_refused():
    with pytest.raises(ValueError, match=r"torch.int64 for sample 1"):
        collate([torch.zeros(2), torch.zeros(2, dtype=torch.int64)])
    with pytest.raises(ValueError, match=r"the same keys, got \['x'\] and \['y'\]"):
        collate([{"x": 1}, {"y": 1}])
    with pytest.raises(ValueError, match="the same length, got 1 and 2"):
        collate([(1,), (1, 2)])
