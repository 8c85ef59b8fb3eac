"""Kernel distance between two sets of features: unbiased whatever the number of samples."""

import torch
from torch import Tensor


def kernel_distance(
    a: Tensor, b: Tensor, *, subset_size: int = 1000, n_subsets: int = 100, seed: int = 0
) -> tuple[float, float]:
    """Returns mean and standard deviation over subsets of the squared maximum mean discrepancy.

    The kernel is (x·y / dim + 1)³. The mean may fall slightly below zero where both sets follow one distribution.

    Args:
        a: `(n, dim)` features.
        b: `(m, dim)` features.
        subset_size: Samples drawn from each set at a time; lowered to the smaller set where that has fewer.
        n_subsets: Number of draws.
        seed: Of the draws.

    Raises:
        ValueError: Shapes that do not fit, or fewer than two samples.

    Source:
        Bińkowski et al. 2018, Demystifying MMD GANs, section 4.

    Example:
        >>> x = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
        >>> abs(kernel_distance(x[:200], x[200:])[0]) < 0.1 < kernel_distance(x[:200], x[200:] + 1)[0]
        True
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"a and b must be (n, dim) of one dim, got shapes {tuple(a.shape)} and {tuple(b.shape)}")
    size = min(subset_size, len(a), len(b))
    if size < 2 or n_subsets < 1:
        raise ValueError(f"needs subsets of at least 2 samples, and at least 1, got {n_subsets} of {size}")
    generator = torch.Generator().manual_seed(seed)
    a, b = (features.detach().to("cpu", torch.float64) for features in (a, b))
    values = torch.stack([_discrepancy(_draw(a, size, generator), _draw(b, size, generator)) for _ in range(n_subsets)])
    return values.mean().item(), values.std(correction=0).item()


def _draw(features: Tensor, size: int, generator: torch.Generator) -> Tensor:
    return features[torch.randperm(len(features), generator=generator, device="cpu")[:size]]


def _discrepancy(x: Tensor, y: Tensor) -> Tensor:
    """Returns the unbiased estimate for two sets of equal size."""
    n, dim = x.shape
    xx, yy, xy = ((u @ v.T / dim + 1) ** 3 for u, v in ((x, x), (y, y), (x, y)))
    within = xx.sum() - xx.trace() + yy.sum() - yy.trace()
    return within / (n * (n - 1)) - 2 * xy.mean()
