"""Normal noise whose rows do not know of each other: row i of a seed is the same in a batch of any size."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15


class RowNoise:
    """Draws `(n, *shape)` float64 numbers of N(0, 1) on the CPU, others with each call.

    Each number is a function of the seed, its row, the call and its place in the row, so that it depends neither on the
    number of rows nor on the device.

    Sources: Steele, Lea and Flood, 2014, Fast Splittable Pseudorandom Number Generators (SplitMix64); Box and Muller,
    1958.

    >>> few, many = RowNoise(2, (3,), seed=0), RowNoise(5, (3,), seed=0)
    >>> [torch.equal(few(), many()[:2]) for _ in range(2)]
    [True, True]
    """

    def __init__(self, n: int, shape: Sequence[int], *, seed: int) -> None:
        self.shape, self.size = (n, *shape), math.prod(shape)
        rows = np.arange(1, n + 1, dtype=np.uint64)
        self._keys = _mixed(_mixed(rows) ^ _mixed(np.array([seed % 2**64], dtype=np.uint64)))[:, None]
        self._calls = 0

    def __call__(self) -> Tensor:
        """Returns the next draw."""
        half = (self.size + 1) // 2
        first = np.uint64(2 * half * self._calls % 2**64)
        self._calls += 1
        places = np.arange(1, 2 * half + 1, dtype=np.uint64) + first
        bits = _mixed(self._keys + places * np.uint64(_GOLDEN))
        uniform = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
        radius, angle = np.sqrt(-2 * np.log(uniform[:, :half])), 2 * math.pi * uniform[:, half:]
        drawn = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], 1)[:, : self.size]
        return torch.from_numpy(np.ascontiguousarray(drawn)).view(self.shape)


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Returns numbers whose every bit depends on every bit of the given ones."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
