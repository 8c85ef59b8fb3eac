"""Toy distributions in the plane, for trying an idea in seconds."""

import numpy as np

from ai.data.dataset import Dataset
from ai.data.seeds import derive_seed


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
    n_upper = n // 2
    upper = np.linspace(0, np.pi, n_upper)
    lower = np.linspace(0, np.pi, n - n_upper)
    x = np.concatenate(
        [np.stack([np.cos(upper), np.sin(upper)], 1), np.stack([1 - np.cos(lower), 0.5 - np.sin(lower)], 1)]
    )
    y = np.concatenate([np.zeros(n_upper, np.uint8), np.ones(n - n_upper, np.uint8)])
    return _points(x, y, include_labels, mult, noise, seed)


def _points(x: np.ndarray, y: np.ndarray, include_labels: bool, mult: float, noise: float, seed: int) -> Dataset:
    """Returns the noisy, scaled and shuffled points as a dataset."""
    if len(x) < 1:
        raise ValueError(f"n must be at least 1, got {len(x)}")
    if noise < 0:
        raise ValueError(f"noise must be at least 0, got {noise}")
    rng = np.random.default_rng(derive_seed(seed))
    order = rng.permutation(len(x))
    x = (mult * (x + noise * rng.standard_normal(x.shape))).astype(np.float32)[order]
    return Dataset({"x": x, "y": y[order]} if include_labels else {"x": x})
