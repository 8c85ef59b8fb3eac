"""Operations that act directly on tensors."""

import torch.nn.functional as F
from torch import Tensor


def flatten(x: Tensor) -> Tensor:
    """Returns `(batch, …)` as `(batch, features)`."""
    return x.flatten(1)


def global_avg(x: Tensor) -> Tensor:
    """Returns the mean over all positions: `(batch, nc, …)` to `(batch, nc)`."""
    return x.flatten(2).mean(2)


def resample(x: Tensor, stride: float) -> Tensor:
    """Returns images at `1 / stride` of their size: nearest neighbour up, mean of the square down.

    Args:
        x: `(batch, nc, height, width)`.
        stride: A whole number to shrink, or one over a whole number to enlarge.
    """
    if stride == 1:
        return x
    if stride < 1:
        return F.interpolate(x, scale_factor=round(1 / stride), mode="nearest")
    return F.avg_pool2d(x, round(stride))
