"""The yardstick of an autoencoder: the best linear code of the same size."""

import torch
from torch import Tensor


def pca_error(train: Tensor, held_out: Tensor, n_numbers: int) -> float:
    """Returns the mean squared error of held-out images coded by their first principal components.

    Args:
        train: `(n, …)` images that the components are taken from.
        held_out: `(m, …)` images to code.
        n_numbers: Size of the code, at least 1.

    Raises:
        ValueError: `n_numbers` below 1, or images of different shapes.

    Example:
        >>> x = torch.randn(50, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        >>> round(pca_error(x, x, 16), 6)
        0.0
    """
    if n_numbers < 1 or train.shape[1:] != held_out.shape[1:]:
        raise ValueError(
            f"needs n_numbers of at least 1 and images of one shape, got {n_numbers}, {tuple(train.shape[1:])} and "
            f"{tuple(held_out.shape[1:])}"
        )
    x, y = (images.flatten(1).double() for images in (train, held_out))
    mean = x.mean(0)
    _, components = torch.linalg.eigh((x - mean).T @ (x - mean))  # ascending
    kept = components[:, -n_numbers:]
    residual = (y - mean) - (y - mean) @ kept @ kept.T
    return float(residual.square().mean())
