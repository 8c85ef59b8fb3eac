"""Many images as one picture."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor


def grid(
    images: Tensor, *, columns: int | None = None, value_range: tuple[float, float] = (-1.0, 1.0), scale: int = 1
) -> NDArray[np.uint8]:
    """Returns images side by side, two pixels of white around each, as one `(height, width, 3)` picture.

    Args:
        images: `(n, channels, height, width)` with 1 or 3 channels, any device; values are clamped to `value_range`.
        columns: Images in a row; None makes the page about square.
        value_range: What black and white are.
        scale: Each pixel becomes a square of this many.

    Raises:
        ValueError: Another shape, no images, or `columns` or `scale` below 1.

    Example:
        >>> grid(torch.zeros(6, 1, 8, 8), columns=3).shape
        (22, 32, 3)
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3) or len(images) == 0:
        raise ValueError(f"images must be (n, 1 or 3, height, width) with n > 0, got shape {tuple(images.shape)}")
    columns = int(np.ceil(np.sqrt(len(images)))) if columns is None else columns
    if columns < 1 or scale < 1:
        raise ValueError(f"columns and scale must be at least 1, got {columns} and {scale}")
    low, high = value_range
    pixels = ((images.detach().float().cpu() - low) / (high - low)).clamp(0, 1).mul(255).round().to(torch.uint8)
    pixels = pixels.expand(-1, 3, -1, -1).repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    n, _, height, width = pixels.shape
    rows = -(-n // columns)
    gap = 2
    page = np.full((gap + rows * (height + gap), gap + columns * (width + gap), 3), 255, np.uint8)
    for index, image in enumerate(pixels.permute(0, 2, 3, 1).numpy()):
        top, left = gap + (index // columns) * (height + gap), gap + (index % columns) * (width + gap)
        page[top : top + height, left : left + width] = image
    return page


def save_grid(
    path: str | Path,
    images: Tensor,
    *,
    columns: int | None = None,
    value_range: tuple[float, float] = (-1.0, 1.0),
    scale: int = 1,
) -> None:
    """Writes `grid(images, …)` in the format that the path's suffix names."""
    Image.fromarray(grid(images, columns=columns, value_range=value_range, scale=scale)).save(path)
