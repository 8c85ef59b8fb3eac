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
    average = MovingAverage(weight)
    return average.extend(values) if weight else values


class MovingAverage:
    """The average of values that come in parts, to the bit that of all of them at once.

    Args:
        weight: Of the past, from 0 to below 1.

    Raises:
        ValueError: `weight` is not in [0, 1).
    """

    def __init__(self, weight: float) -> None:
        if not 0 <= weight < 1:
            raise ValueError(f"smoothing must be at least 0 and below 1, got {weight}")
        self._weight = weight
        self._level: float | None = None
        self._sum, self._mass = np.zeros(1), np.zeros(1)

    def extend(self, values: np.ndarray) -> np.ndarray:
        """Returns the average at each of the values that come next."""
        if not len(values):
            return values
        from scipy.signal import lfilter  # type: ignore[import-untyped]

        finite = np.isfinite(values)
        if self._level is None and finite.any():
            first = float(values[finite.argmax()])
            # Around the first value: of what never changes the average is that very value, and no saw of roundings.
            self._level = first if abs(first) < 1e290 else 0.0
        level = self._level or 0.0
        decay = [1.0], [1.0, -self._weight]
        sums, self._sum = lfilter(*decay, np.where(finite, values - level, 0.0), zi=self._sum)
        masses, self._mass = lfilter(*decay, finite.astype(np.float64), zi=self._mass)
        return np.where(finite, level + sums / np.where(masses > 0, masses, 1.0), values)
