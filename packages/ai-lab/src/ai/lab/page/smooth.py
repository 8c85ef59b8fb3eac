"""Exponential moving averages of long curves, all points of a block at once."""

import numpy as np

_BLOCK = 256


def smooth(values: np.ndarray, weight: float) -> np.ndarray:
    """Returns the exponential moving average of `values`, corrected for its start; gaps stay gaps.

    `out[i] = sum_j weight**(i-j) * values[j] / sum_j weight**(i-j)` over the finite `values[j]`, `j <= i`.

    Args:
        values: `(n,)`, may hold NaN and infinities, which have no part in the average.
        weight: Of the past, from 0 (no smoothing) to below 1.

    Raises:
        ValueError: `weight` is not in [0, 1).

    Example:
        >>> smooth(np.array([1.0, 0.0, np.nan, 0.0]), 0.5).round(3).tolist()
        [1.0, 0.333, nan, 0.091]
    """
    if not 0 <= weight < 1:
        raise ValueError(f"smoothing must be at least 0 and below 1, got {weight}")
    if weight == 0 or not len(values):
        return values
    finite = np.isfinite(values)
    sums = _decayed(np.where(finite, values, 0.0), weight)
    masses = _decayed(finite.astype(np.float64), weight)
    return np.where(finite, sums / np.where(masses > 0, masses, 1.0), values)


def _decayed(values: np.ndarray, weight: float) -> np.ndarray:
    """Returns `sum_j weight**(i-j) * values[j]` for each i."""
    n = len(values)
    blocks = np.zeros((-(-n // _BLOCK), _BLOCK))
    blocks.reshape(-1)[:n] = values
    age = np.arange(_BLOCK)
    powers = np.where(age[:, None] >= age, weight ** np.maximum(age[:, None] - age, 0), 0.0)
    inside = blocks @ powers.T
    carried, fade = 0.0, weight ** (age + 1)
    for row in inside:  # what the blocks before leave to this one
        row += carried * fade
        carried = row[-1]
    return np.asarray(inside.reshape(-1)[:n])
