"""Toy distributions in the plane, for trying an idea in seconds."""

import math

import numpy as np

from ai.data.arguments import check_at_least, check_flag, check_real, check_whole
from ai.data.batch.seeds import derive_seed
from ai.data.dataset import Dataset


def moons_dataset(
    n: int = 8000, include_labels: bool = True, mult: float = 1.0, noise: float = 0.05, seed: int = 0
) -> Dataset:
    """Returns two interleaved half circles: `x` `(n, 2)` float32 and `y` uint8, 0 for the upper one.

    Args:
        n: number of points, half of them (rounded up) on the lower moon.
        include_labels: with `y`.
        mult: factor on the coordinates, applied after the noise.
        noise: standard deviation of the normal noise.
        seed: of the noise and of the order.

    Example:
        >>> ds = moons_dataset(100, noise=0)
        >>> len(ds), sorted(ds.data)
        (100, ['x', 'y'])
    """
    check_at_least(1, n=n)
    n_upper = n // 2
    upper = np.linspace(0, np.pi, n_upper)
    lower = np.linspace(0, np.pi, n - n_upper)
    x = np.concatenate(
        [np.stack([np.cos(upper), np.sin(upper)], 1), np.stack([1 - np.cos(lower), 0.5 - np.sin(lower)], 1)]
    )
    y = np.concatenate([np.zeros(n_upper, np.uint8), np.ones(n - n_upper, np.uint8)])
    return _points(x, y, include_labels, mult, noise, seed)


def circles_dataset(
    n: int = 8000, include_labels: bool = True, mult: float = 1.0, noise: float = 0.05, seed: int = 0
) -> Dataset:
    """Returns two circles about the origin, of radius 1 (`y` = 0) and 0.5 (`y` = 1).

    Arguments as of `moons_dataset`.
    """
    check_at_least(1, n=n)
    n_outer = n // 2
    y = np.concatenate([np.zeros(n_outer, np.uint8), np.ones(n - n_outer, np.uint8)])
    # The end of a circle is its start: leave it out.
    angle = np.concatenate([np.linspace(0, 2 * np.pi, k, endpoint=False) for k in (n_outer, n - n_outer)])
    radius = np.where(y == 0, 1.0, 0.5)
    return _points(np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1), y, include_labels, mult, noise, seed)


def swiss_roll_dataset(
    n: int = 8000, include_labels: bool = True, mult: float = 1.0, noise: float = 0.05, seed: int = 0
) -> Dataset:
    """Returns a spiral of radius up to 1 that turns one and a half times; `y` is its quarter.

    Quarters count from the inside, 0 to 3. Arguments as of `moons_dataset`.
    """
    check_at_least(1, n=n)
    along = np.linspace(0, 1, n)
    angle = 1.5 * np.pi * (1 + 2 * along)
    radius = angle / (4.5 * np.pi)
    y = np.minimum(along * 4, 3).astype(np.uint8)
    return _points(np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1), y, include_labels, mult, noise, seed)


def gaussians_dataset(
    n: int = 8000, include_labels: bool = True, mult: float = 1.0, noise: float = 0.05, seed: int = 0, n_modes: int = 8
) -> Dataset:
    """Returns `n_modes` normal blobs on the unit circle, of deviation `noise`; `y` is the blob.

    Other arguments as of `moons_dataset`.
    """
    check_whole(n_modes=n_modes)
    check_at_least(1, n=n)
    if not 1 <= n_modes <= 256:
        raise ValueError(f"n_modes must lie in [1, 256], got {n_modes}")
    y = (np.arange(n) % n_modes).astype(np.uint8)
    angle = 2 * np.pi * y / n_modes
    return _points(np.stack([np.cos(angle), np.sin(angle)], 1), y, include_labels, mult, noise, seed)


def checkerboard_dataset(
    n: int = 8000, include_labels: bool = True, mult: float = 1.0, noise: float = 0.0, seed: int = 0
) -> Dataset:
    """Returns points spread evenly over the 8 dark squares of a 4 by 4 board on [-1, 1]²; `y` is the square.

    Arguments as of `moons_dataset`.
    """
    check_whole(seed=seed)
    check_at_least(1, n=n)
    y = (np.arange(n) % 8).astype(np.uint8)
    row = y // 2
    column = 2 * (y % 2) + row % 2
    inside = np.random.default_rng(derive_seed(seed, 1)).random((n, 2))
    x = (np.stack([column, row], 1) + inside) / 2 - 1
    return _points(x, y, include_labels, mult, noise, seed)


def _points(x: np.ndarray, y: np.ndarray, include_labels: bool, mult: float, noise: float, seed: int) -> Dataset:
    """Returns the noisy, scaled and shuffled points as a dataset."""
    check_whole(seed=seed)
    check_real(mult=mult, noise=noise)
    check_flag(include_labels=include_labels)
    if not 0 <= noise < math.inf:
        raise ValueError(f"noise must be at least 0 and finite, got {noise}")
    if not math.isfinite(mult):
        raise ValueError(f"mult must be finite, got {mult}")
    rng = np.random.default_rng(derive_seed(seed))
    order = rng.permutation(len(x))
    x = (mult * (x + noise * rng.standard_normal(x.shape))).astype(np.float32)[order]
    return Dataset({"x": x, "y": y[order]} if include_labels else {"x": x})
