"""Exponential moving averages of long curves."""

import numpy as np


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
    from scipy.signal import lfilter  # type: ignore[import-untyped]

    finite = np.isfinite(values)
    decay = [1.0], [1.0, -weight]
    sums = lfilter(*decay, np.where(finite, values, 0.0))
    masses = lfilter(*decay, finite.astype(np.float64))
    return np.where(finite, sums / np.where(masses > 0, masses, 1.0), values)
