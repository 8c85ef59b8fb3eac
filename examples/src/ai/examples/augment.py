"""Random changes to whole batches of images on their device, each image its own, drawn from a given generator."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def random_affine(
    x: Tensor, generator: torch.Generator, *, degrees: float = 10, shift: float = 0.08, scale: float = 0.1
) -> Tensor:
    """Returns images turned, shifted and scaled a little, each by its own draw; their borders are repeated outwards.

    Args:
        x: `(batch, channels, height, width)`, float.
        generator: On the device of `x`.
        degrees: Turns are uniform in ± this.
        shift: Shifts are uniform in ± this share of the side, along each axis.
        scale: Sizes are uniform in 1 ± this.

    Example:
        >>> x = torch.rand(2, 1, 8, 8)
        >>> random_affine(x, torch.Generator(), degrees=0, shift=0, scale=0).allclose(x, atol=1e-6)
        True
    """
    u = torch.rand(4, len(x), generator=generator, device=x.device) * 2 - 1
    angle, size = u[0] * math.radians(degrees), 1 + u[1] * scale
    cos, sin = torch.cos(angle) / size, torch.sin(angle) / size
    # grid coordinates span 2 a side
    rows = torch.stack([torch.stack([cos, -sin, 2 * shift * u[2]], 1), torch.stack([sin, cos, 2 * shift * u[3]], 1)], 1)
    where = F.affine_grid(rows.to(x.dtype), list(x.shape), align_corners=False)
    return F.grid_sample(x, where, padding_mode="border", align_corners=False)


def random_crop_flip(x: Tensor, generator: torch.Generator, *, padding: int = 4) -> Tensor:
    """Returns images cropped to their size after `padding` pixels of zeros around, half of them mirrored.

    Args:
        x: `(batch, channels, height, width)`; zero is the grey of images in [-1, 1].
        generator: On the device of `x`.
        padding: Shifts are uniform in ± this many pixels.
    """
    n, _, height, width = x.shape
    padded = F.pad(x, (padding, padding, padding, padding))
    top, left = torch.randint(0, 2 * padding + 1, (2, n), generator=generator, device=x.device)
    mirrored = torch.rand(n, generator=generator, device=x.device) < 0.5
    rows = top[:, None] + torch.arange(height, device=x.device)
    steps = torch.arange(width, device=x.device).expand(n, -1)
    columns = left[:, None] + torch.where(mirrored[:, None], width - 1 - steps, steps)
    image = torch.arange(n, device=x.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def random_erase(
    x: Tensor,
    generator: torch.Generator,
    *,
    probability: float = 0.25,
    area: tuple[float, float] = (0.02, 1 / 3),
    aspect: tuple[float, float] = (0.3, 3.3),
) -> Tensor:
    """Returns images, some with a box of normal noise in them, cut at the border.

    Args:
        x: `(batch, channels, height, width)`, float.
        generator: On the device of `x`.
        probability: Of an image's having a box.
        area: Least and greatest share of the image that a box takes, before it is cut; uniform.
        aspect: Least and greatest height over width; uniform in the logarithm.

    Source: Zhong et al. 2017, Random Erasing Data Augmentation, algorithm 1, without its repeated draws for a box that
    fits.
    """
    n, _, height, width = x.shape
    u = torch.rand(5, n, generator=generator, device=x.device)
    size = area[0] + u[0] * (area[1] - area[0])
    ratio = torch.exp(math.log(aspect[0]) + u[1] * math.log(aspect[1] / aspect[0]))
    rows = _within(height, u[2], (size * ratio).sqrt())
    columns = _within(width, u[3], (size / ratio).sqrt())
    box = rows[:, :, None] & columns[:, None, :] & (u[4] < probability)[:, None, None]
    noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    return torch.where(box[:, None], noise, x)


def mixup(x: Tensor, y: Tensor, generator: torch.Generator, *, alpha: float = 0.8) -> tuple[Tensor, Tensor]:
    """Returns images and label probabilities, each mixed with those of another in one ratio for the batch.

    Args:
        x: `(batch, channels, height, width)`, float.
        y: `(batch, n_classes)` probabilities.
        generator: On the device of `x`.
        alpha: The ratio follows Beta(alpha, alpha).

    Source: Zhang et al. 2018, mixup: Beyond Empirical Risk Minimization, eq. 1; partners by reversal, as in DeiT.
    """
    ratio = _beta(alpha, generator, x.device)
    return ratio * x + (1 - ratio) * x.flip(0), ratio * y + (1 - ratio) * y.flip(0)


def cutmix(x: Tensor, y: Tensor, generator: torch.Generator, *, alpha: float = 1.0) -> tuple[Tensor, Tensor]:
    """Returns images with one box replaced by that of another, and probabilities mixed by the box's true area.

    Args:
        x: `(batch, channels, height, width)`, float.
        y: `(batch, n_classes)` probabilities.
        generator: On the device of `x`.
        alpha: The kept share follows Beta(alpha, alpha), before the box is cut at the image's border.

    Source: Yun et al. 2019, CutMix: Regularization Strategy to Train Strong Classifiers, section 3.1.
    """
    side = (1 - _beta(alpha, generator, x.device)).sqrt()
    centre = torch.rand(2, 1, generator=generator, device=x.device)
    rows, columns = (_within(length, at, side) for length, at in zip(x.shape[-2:], centre, strict=True))
    inside = rows[0, :, None] & columns[0, None, :]
    replaced = inside.to(y.dtype).mean()
    return torch.where(inside, x.flip(0), x), (1 - replaced) * y + replaced * y.flip(0)


def _within(length: int, centre: Tensor, share: Tensor) -> Tensor:
    """Returns which of `length` pixels lie within a `share` of them around each centre (`(n,)`, 0 to 1): `(n, length)`.

    The bounds are rounded, so that a box has its share of pixels wherever the border does not cut it.
    """
    low, high = ((centre - share / 2) * length).round(), ((centre + share / 2) * length).round()
    position = torch.arange(length, device=centre.device)
    return (position >= low[:, None]) & (position < high[:, None])


def _beta(alpha: float, generator: torch.Generator, device: torch.device) -> Tensor:
    """Returns a draw of Beta(alpha, alpha) without leaving the device: of two gamma variates, the first's share."""
    shape = torch.full((2,), alpha, device=device)
    pair: Tensor = torch._standard_gamma(shape, generator=generator)
    return pair[0] / pair.sum()
