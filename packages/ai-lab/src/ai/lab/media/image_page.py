"""Batches of images as one PNG page.

Legend: n images, c channels (1 grey, 3 colour, 4 with alpha), h height, w width.
"""

import math
from typing import TYPE_CHECKING, TypeGuard

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


def encode_page(images: "Tensor | np.ndarray", *, layout: str | None = None) -> bytes:
    """Returns the page as PNG; see `to_page`."""
    import io

    from PIL import Image

    buffer = io.BytesIO()
    page = to_page(images, layout=layout)
    Image.fromarray(page[..., 0] if page.shape[-1] == 1 else page).save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def to_page(
    images: "Tensor | np.ndarray", *, columns: int | None = None, gap: int = 2, layout: str | None = None
) -> np.ndarray:
    """Returns images side by side, as uint8 `(height, width, c)`.

    Args:
        images: `(n, c, h, w)`, `(c, h, w)` or `(n, h, w)`, else with the channels last; floating point in [-1, 1]
            (clipped) or uint8.
        columns: Images a row; by default about as many as rows.
        gap: Pixels between two images.
        layout: The axes of `images`, such as `'NHWC'`, `'HWC'` or `'HW'`. Without it the channels, 1, 3 or 4, come
            first where the shape allows it, else last where they are fewer than rows and columns.

    Raises:
        ValueError: the shape is none of these, or there is no image.
        TypeError: the numbers are neither floating point nor uint8.
    """
    pixels = _to_uint8(images)
    if layout is not None:
        pixels = _channels_first(pixels, layout)
    elif pixels.ndim == 2:
        pixels = pixels[None, None]
    elif pixels.ndim == 3 and pixels.shape[0] not in (1, 3, 4) and _has_channels_last(pixels):
        pixels = pixels.transpose(2, 0, 1)[None]
    elif pixels.ndim == 3:
        pixels = pixels[None] if pixels.shape[0] in (1, 3, 4) else pixels[:, None]
    elif pixels.ndim == 4 and pixels.shape[1] not in (1, 3, 4) and _has_channels_last(pixels):
        pixels = pixels.transpose(0, 3, 1, 2)
    if pixels.ndim != 4 or pixels.shape[1] not in (1, 3, 4):
        raise ValueError(f"images must be (n, 1|3|4, height, width), got shape {tuple(images.shape)}")
    n, c, h, w = pixels.shape
    if not n or not h or not w:
        raise ValueError(f"images must hold at least one image and pixel, got shape {tuple(images.shape)}")
    n_columns = columns or math.ceil(math.sqrt(n))
    n_rows = math.ceil(n / n_columns)
    page = np.zeros((n_rows * (h + gap) - gap, n_columns * (w + gap) - gap, c), np.uint8)
    for i, image in enumerate(pixels):
        row, column = divmod(i, n_columns)
        page[row * (h + gap) :, column * (w + gap) :][:h, :w] = image.transpose(1, 2, 0)
    return page


def _has_channels_last(pixels: np.ndarray) -> bool:
    """Whether the last axis can only be channels: else feature maps would be shown as something that they are not."""
    *_, h, w, c = pixels.shape
    return c in (1, 3, 4) and c < min(h, w)


def _channels_first(pixels: np.ndarray, layout: str) -> np.ndarray:
    if len(set(layout)) != pixels.ndim or not {"H", "W"} <= set(layout) <= set("NCHW"):
        raise ValueError(f"layout must name each of {pixels.ndim} axes by N, C, H or W once, got {layout!r}")
    missing = [axis for axis in "NC" if axis not in layout]
    whole = pixels.reshape((1,) * len(missing) + pixels.shape)
    return whole.transpose([("".join(missing) + layout).index(axis) for axis in "NCHW"])


def _to_uint8(images: "Tensor | np.ndarray") -> np.ndarray:
    if _is_tensor(images):
        images = images.detach().cpu()
        images = images.float() if images.is_floating_point() else images
    array = np.asarray(images)
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise TypeError(f"images must be floating point in [-1, 1] or uint8, got {array.dtype}")
    # NaN would become an arbitrary colour with a warning; black is what a broken sample should look like.
    scaled = np.clip(np.nan_to_num(array, nan=-1.0, posinf=1.0, neginf=-1.0), -1, 1)
    return np.asarray((scaled + 1) * 127.5 + 0.5, np.uint8)


def _is_tensor(images: "Tensor | np.ndarray") -> "TypeGuard[Tensor]":
    return hasattr(images, "detach")  # tells without importing torch
