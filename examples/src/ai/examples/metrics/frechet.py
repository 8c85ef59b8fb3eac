"""Fréchet distance between two sets of features, each described by a Gaussian."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Statistics:
    """Mean and covariance of features, in double precision on the CPU.

    Args:
        mean: `(dim,)`.
        covariance: `(dim, dim)`, the unbiased estimate (divided by n - 1).
        n: Number of samples that they were taken from.
    """

    mean: Tensor
    covariance: Tensor
    n: int

    @classmethod
    def of(cls, features: Tensor) -> Self:
        """Takes the statistics of `(n, dim)` features.

        Raises:
            ValueError: Not two axes, fewer than two samples, or a value that is not finite.

        Example:
            >>> Statistics.of(torch.tensor([[0.0], [2.0]])).covariance.item()
            2.0
        """
        if features.ndim != 2 or len(features) < 2:
            raise ValueError(f"features must be (n, dim) with n of at least 2, got shape {tuple(features.shape)}")
        if not features.isfinite().all():
            raise ValueError("features must be finite, got NaN or Inf")
        x = features.detach().to("cpu", torch.float64)
        return cls(x.mean(0), torch.cov(x.T).reshape(x.shape[1], x.shape[1]), len(x))


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """Returns ‖μ_a - μ_b‖² + tr(Σ_a + Σ_b - 2 (Σ_a Σ_b)^½), zero for equal statistics.

    The trace of the root is taken as the sum of the roots of the eigenvalues of the symmetric Σ_a^½ Σ_b Σ_a^½, which
    stays real where few samples make the covariances singular.

    Raises:
        ValueError: The features have different dimensions.

    Source:
        Heusel et al. 2017, GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium, eq. 6.

    Example:
        >>> x = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
        >>> round(frechet_distance(Statistics.of(x), Statistics.of(x + 2)), 6)
        12.0
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"both statistics must have one dimension, got {len(a.mean)} and {len(b.mean)}")
    root = _symmetric_root(a.covariance)
    eigenvalues = torch.linalg.eigvalsh(root @ b.covariance @ root)
    trace_of_root = eigenvalues.clamp(min=0).sqrt().sum()
    distance = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * trace_of_root
    return max(float(distance), 0.0)  # rounding may leave -1e-13


def split_distance(features: Tensor, *, n_splits: int = 5, seed: int = 0) -> float:
    """Returns the mean Fréchet distance between random halves of one set: what a perfect generator would score.

    Args:
        features: `(n, dim)` of real samples, n at least 4.
        n_splits: Number of random halvings to average.
        seed: Of the halvings.
    """
    generator = torch.Generator().manual_seed(seed)
    total = 0.0
    for _ in range(n_splits):
        first, second = features[torch.randperm(len(features), generator=generator, device="cpu")].chunk(2)
        total += frechet_distance(Statistics.of(first), Statistics.of(second))
    return total / n_splits


def _symmetric_root(matrix: Tensor) -> Tensor:
    values: Tensor
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root
