"""A long curve as few points, with every peak kept: the smallest and largest value of each of equal stretches."""

import numpy as np


def decimate(x: np.ndarray, y: np.ndarray, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns at most about `points` of the points `(x, y)`, in their order; all of them where they are few.

    A stretch with a value that is no number keeps one such point too, so that a gap stays a gap.

    Args:
        x: `(n,)`.
        y: `(n,)`, may hold NaN and infinities.
        points: At least 4.

    Example:
        >>> x = np.arange(1000.0)
        >>> y = np.where(x == 500, 9.0, 0.0)
        >>> decimate(x, y, 10)[1].max()
        np.float64(9.0)
    """
    n = len(x)
    if points < 4:
        raise ValueError(f"points must be at least 4, got {points}")
    if n <= points:
        return x, y
    size = -(-n // (points // 2))
    n_whole = n // size * size
    finite = np.isfinite(y)
    low = np.where(finite, y, np.inf)[:n_whole].reshape(-1, size)
    high = np.where(finite, y, -np.inf)[:n_whole].reshape(-1, size)
    base = np.arange(len(low)) * size
    broken = ~finite[:n_whole].reshape(-1, size)
    gaps = (base + broken.argmax(1))[broken.any(1)]
    kept = [base + low.argmin(1), base + high.argmax(1), gaps, [0, n - 1]]
    if n_whole < n:
        kept.append(n_whole + np.flatnonzero(~finite[n_whole:])[:1])
        kept.append(n_whole + np.array([np.argmin(np.where(finite, y, np.inf)[n_whole:])]))
        kept.append(n_whole + np.array([np.argmax(np.where(finite, y, -np.inf)[n_whole:])]))
    index = np.unique(np.concatenate(kept).astype(np.int64))
    return x[index], y[index]
