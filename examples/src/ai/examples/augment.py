"""Two more random changes of image batches in the form of `ai.data.augment`: each image its own, on the batch's device.

Each function returns a postprocess for `Dataset.then`, which passes it a seeded generator.
"""

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

OnImages: TypeAlias = Callable[[Tensor, Generator], Tensor]


def affine(degrees: float = 10, shift: float = 0.08, scale: float = 0.1, shear: float = 0.0) -> OnImages:
    """Turns, shifts, scales and slants images a little; their borders are repeated outwards.

    Args:
        degrees: Turns are uniform in ± this.
        shift: Shifts are uniform in ± this share of the side, along each axis.
        scale: Sizes are uniform in 1 ± this, which must lie in [0, 1).
        shear: Slants are uniform in ± this: by how much of a row's height it moves sideways.

    Raises:
        ValueError: A negative argument, or `scale` of 1 or more.

    Example:
        >>> x = torch.rand(2, 1, 8, 8)
        >>> affine(0, 0, 0)(x, Generator()).allclose(x, atol=1e-6)
        True
    """
    if min(degrees, shift, scale, shear) < 0 or scale >= 1:
        raise ValueError(
            f"degrees, shift, scale and shear must be at least 0, and scale below 1, "
            f"got {degrees}, {shift}, {scale}, {shear}"
        )

    def apply(x: Tensor, generator: Generator) -> Tensor:
        u = torch.rand(5, len(x), generator=generator, device=x.device) * 2 - 1
        angle, size = u[0] * math.radians(degrees), 1 + u[1] * scale
        cos, sin = torch.cos(angle) / size, torch.sin(angle) / size
        slant = u[4] * shear
        across = torch.stack([cos, slant * cos - sin, 2 * shift * u[2]], 1)  # the grid's coordinates span 2 a side
        down = torch.stack([sin, slant * sin + cos, 2 * shift * u[3]], 1)
        where = F.affine_grid(torch.stack([across, down], 1).to(x.dtype), list(x.shape), align_corners=False)
        return F.grid_sample(x, where, padding_mode="border", align_corners=False)

    return apply


def erase(
    p: float = 0.25, area: tuple[float, float] = (0.02, 1 / 3), aspect: tuple[float, float] = (0.3, 3.3)
) -> OnImages:
    """Fills a box of some images with normal noise, cut at the border.

    Args:
        p: Probability of an image's having a box.
        area: Least and greatest share of the image that a box takes before it is cut; uniform.
        aspect: Least and greatest height over width; uniform in the logarithm.

    Raises:
        ValueError: `p` outside [0, 1].

    Source: Zhong et al. 2017, Random Erasing Data Augmentation, algorithm 1, without its repeated draws for a box that
    fits.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"p must lie in [0, 1], got {p}")

    def apply(x: Tensor, generator: Generator) -> Tensor:
        n, _, height, width = x.shape
        u = torch.rand(5, n, 1, generator=generator, device=x.device)
        size = area[0] + u[0] * (area[1] - area[0])
        ratio = torch.exp(math.log(aspect[0]) + u[1] * math.log(aspect[1] / aspect[0]))
        rows = _within(height, u[2], (size * ratio).sqrt())
        columns = _within(width, u[3], (size / ratio).sqrt())
        box = rows[:, :, None] & columns[:, None, :] & (u[4] < p)[:, :, None]
        noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        return torch.where(box[:, None], noise, x)

    return apply


def _within(length: int, middle: Tensor, share: Tensor) -> Tensor:
    """Returns which of `length` pixels lie within a share of them about each middle (`(n, 1)`, 0 to 1): `(n, length)`.

    The bounds are rounded, so that a box has its share of pixels wherever the border does not cut it.
    """
    low, high = ((middle - share / 2) * length).round(), ((middle + share / 2) * length).round()
    place = torch.arange(length, device=middle.device)
    return (place >= low) & (place < high)
