"""Mirrored, shifted, cut out, resized and coloured: images changed one by one."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ai.data.arguments import check_real, check_whole
from ai.data.augment.images import ORDER, InRange, OnImages, within, without_alpha

_N_TRIES = 10


def flip(p: float = 0.5) -> OnImages:
    """Mirrors left and right with probability `p`."""
    _check_probability(p)

    def apply(x: Tensor, generator: Generator) -> Tensor:
        mirrored = torch.rand(len(x), generator=generator, device=x.device) < p
        return torch.where(mirrored[:, None, None, None], x.flip(-1), x)

    return apply


def crop(padding: int, mode: str = "constant") -> OnImages:
    """Shifts by up to `padding` pixels each way; `mode` (as of `torch.nn.functional.pad`) fills, with black by default.

    Source: He, Zhang, Ren and Sun, 2016, Deep Residual Learning, section 4.2.
    """
    check_whole(padding=padding)
    if padding < 1:
        raise ValueError(f"padding must be at least 1 pixel, got {padding}")
    modes = ("constant", "reflect", "replicate", "circular")
    if not isinstance(mode, str) or mode not in modes:
        raise ValueError(f"mode must be one of {', '.join(modes)}, got {mode!r}")
    check = InRange("crop")

    def apply(x: Tensor, generator: Generator) -> Tensor:
        n, channels, height, width = x.shape
        if mode == "constant":
            check(x)
        border = (padding,) * 4
        padded = F.pad(x, border, value=-1) if mode == "constant" else F.pad(x, border, mode)
        top, left = torch.randint(2 * padding + 1, (2, n, 1), generator=generator, device=x.device)
        rows = top + torch.arange(height, device=x.device)
        columns = left + torch.arange(width, device=x.device)
        image = torch.arange(n, device=x.device)[:, None, None, None]
        channel = torch.arange(channels, device=x.device)[:, None, None]
        return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]

    return apply


def random_resized_crop(
    size: int | tuple[int, int],
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> OnImages:
    """Cuts a random box out of each image and resizes it to `size`; so images may be stored larger than they train.

    Args:
        size: (height, width) in pixels, one number for both.
        scale: bounds of the box's share of the area.
        ratio: bounds of width over height, drawn evenly in their logarithm.

    Each output pixel is the mean of bilinear samples over its part of the box, two pixels of the box at most apart. A
    box that does not fit is drawn anew, up to ten times; then it is the middle of the image, as large as fits.

    Source: Szegedy et al., 2015, Going Deeper with Convolutions, section 6.
    """
    height, width = _pair("size", size) if isinstance(size, tuple | list) else (size, size)
    for side in (height, width):
        check_whole(size=side)
    if height < 1 or width < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}")
    for name, bounds, most in (("scale", scale, 1.0), ("ratio", ratio, float("inf"))):
        low, high = _pair(name, bounds)
        for bound in (low, high):
            check_real(**{name: bound})
        if not 0 < low <= high <= most or math.isinf(high):
            raise ValueError(f"{name} must be two rising finite numbers in (0, {most:g}], got {(low, high)}")

    def apply(x: Tensor, generator: Generator) -> Tensor:
        from torchvision.ops import roi_align  # type: ignore[import-untyped]

        if not x.is_floating_point():
            raise ValueError(f"random_resized_crop needs images as floating point numbers, got {x.dtype}: {ORDER}")
        boxes = _boxes(len(x), x.shape[-2], x.shape[-1], scale, ratio, generator, x.device)
        image = torch.arange(len(x), device=x.device, dtype=boxes.dtype)[:, None]
        # Halves hold neither the number of an image beyond 2048 nor a place to the pixel.
        exact = x if x.dtype == torch.float64 else x.float()
        cut = roi_align(exact, torch.cat([image, boxes], 1).to(exact.dtype), (height, width), aligned=True)
        return cut.to(x.dtype)  # type: ignore[no-any-return]

    return apply


def color(brightness: float = 0.2, contrast: float = 0.2, saturation: float = 0.2) -> OnImages:
    """Changes brightness, contrast and (of colour images) saturation by factors in [1 - amount, 1 + amount].

    One channel is grey, three are RGB, and four RGBA, whose alpha stays.
    """
    check_real(brightness=brightness, contrast=contrast, saturation=saturation)
    for name, amount in (("brightness", brightness), ("contrast", contrast), ("saturation", saturation)):
        if not 0 <= amount <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {amount}")
    check = InRange("color")

    def apply(x: Tensor, generator: Generator) -> Tensor:
        check(x)
        factors = 2 * torch.rand(3, len(x), 1, 1, 1, generator=generator, device=x.device) - 1
        shown, alpha = without_alpha(x, "color")
        y = (shown + 1) / 2 * (1 + brightness * factors[0])
        colourful = shown.shape[1] == 3
        # Luminance of ITU-R BT.601, as Pillow converts to grey.
        grey = 0.299 * y[:, 0:1] + 0.587 * y[:, 1:2] + 0.114 * y[:, 2:3] if colourful else y
        mean = grey.mean((1, 2, 3), keepdim=True)
        if colourful:
            y = grey + (y - grey) * (1 + saturation * factors[2])
        y = mean + (y - mean) * (1 + contrast * factors[1])
        return torch.cat([y.clamp(0, 1) * 2 - 1, alpha], 1)

    return apply


def cutout(size: int) -> OnImages:
    """Greys a square of `size` pixels about a random centre, cut off at the border.

    Source: DeVries and Taylor, 2017, Improved Regularization of Convolutional Neural Networks with Cutout.
    """
    check_whole(size=size)
    if size < 1:
        raise ValueError(f"size must be at least 1 pixel, got {size}")
    check = InRange("cutout")

    def apply(x: Tensor, generator: Generator) -> Tensor:
        check(x)
        n, _, height, width = x.shape
        middle = torch.rand(2, n, 1, generator=generator, device=x.device)
        rows = within(middle[0], height, size)
        columns = within(middle[1], width, size)
        return x.masked_fill(rows[:, None, :, None] & columns[:, None, None, :], 0)

    return apply


def _boxes(
    n: int,
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    generator: Generator,
    device: torch.device,
) -> Tensor:
    """Returns left, top, right and bottom of a random box in each image: `(n, 4)` in pixels."""
    draws = torch.rand(4, n, _N_TRIES, generator=generator, device=device)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * draws[0])
    low, high = math.log(ratio[0]), math.log(ratio[1])
    shape = (low + (high - low) * draws[1]).exp()
    w, h = (area * shape).sqrt(), (area / shape).sqrt()
    fits = (w <= width) & (h <= height)
    first = fits.to(torch.int8).argmax(1, keepdim=True)
    w, h, left, top = (values.gather(1, first)[:, 0] for values in (w, h, draws[2], draws[3]))
    found = fits.any(1)
    middle = min(max(width / height, ratio[0]), ratio[1])
    w = torch.where(found, w, min(width, height * middle))
    h = torch.where(found, h, min(height, width / middle))
    left = torch.where(found, left, 0.5) * (width - w)
    top = torch.where(found, top, 0.5) * (height - h)
    return torch.stack([left, top, left + w, top + h], 1)


def _pair(name: str, given: Any) -> tuple[Any, Any]:
    if not isinstance(given, tuple | list) or len(given) != 2:
        raise TypeError(f"{name} must be two numbers, got {given!r}")
    return given[0], given[1]


def _check_probability(p: float) -> None:
    check_real(p=p)
    if not 0 <= p <= 1:
        raise ValueError(f"p must lie in [0, 1], got {p}")
