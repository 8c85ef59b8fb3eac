"""One image file to uint8 pixels of a given size."""

import io
import os
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

N_CHANNELS = {"L": 1, "RGB": 3, "RGBA": 4}
# ImageReadMode of torchvision.
_TORCHVISION_MODES = {"L": 1, "RGB": 3, "RGBA": 4}
Fit = Literal["crop", "stretch", "pad"]
Filter = Literal["bilinear", "bicubic"]


@dataclass(frozen=True)
class Decoder:
    """Decodes, fits and resizes images. torchvision decodes what it can, Pillow the rest.

    Args:
        size: (height, width) in pixels.
        mode: channels, as Pillow names them.
        fit: `crop` covers the size and cuts off the sides equally, `stretch` changes the aspect ratio, `pad` shows the
            whole image on black.
        filter: of resizing, with antialiasing.
    """

    size: tuple[int, int]
    mode: Literal["L", "RGB", "RGBA"] = "RGB"
    fit: Fit = "crop"
    filter: Filter = "bilinear"

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", tuple(self.size))  # a list would not hash
        if len(self.size) != 2 or min(self.size) < 1:
            raise ValueError(f"imsize must be a positive number of pixels or (height, width), got {self.size}")
        for name, value, known in (
            ("mode", self.mode, tuple(N_CHANNELS)),
            ("fit", self.fit, ("crop", "stretch", "pad")),
            ("filter", self.filter, ("bilinear", "bicubic")),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {known}, got {value!r}")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the result."""
        return (N_CHANNELS[self.mode], *self.size)

    def __call__(self, path: str | os.PathLike[str]) -> Tensor:
        """Returns the image at `path`: uint8 of `shape`.

        Raises:
            OSError: the file cannot be read, or is no whole image of a known format.
        """
        content = np.fromfile(path, np.uint8)
        pixels = _decode_torchvision(content, self.mode)
        return self._resized(_decode_pillow(content, self.mode) if pixels is None else pixels)

    def _resized(self, pixels: Tensor) -> Tensor:
        height, width = pixels.shape[1:]
        if (height, width) == self.size:
            return pixels
        scales = self.size[0] / height, self.size[1] / width
        if self.fit == "stretch":
            return self._interpolate(pixels, self.size)
        if self.fit == "crop":  # cut in the source first: fewer pixels to resize
            scale = max(scales)
            box = min(height, round(self.size[0] / scale)), min(width, round(self.size[1] / scale))
            top, left = (height - box[0]) // 2, (width - box[1]) // 2
            return self._interpolate(pixels[:, top : top + box[0], left : left + box[1]], self.size)
        scale = min(scales)
        inner = self._interpolate(pixels, (max(1, round(height * scale)), max(1, round(width * scale))))
        top, left = (self.size[0] - inner.shape[1]) // 2, (self.size[1] - inner.shape[2]) // 2
        whole = torch.zeros(self.shape, dtype=torch.uint8)
        whole[:, top : top + inner.shape[1], left : left + inner.shape[2]] = inner
        return whole

    def _interpolate(self, pixels: Tensor, size: tuple[int, int]) -> Tensor:
        if tuple(pixels.shape[1:]) == size:
            return pixels
        # torch has a fast kernel for bytes that lie channels last.
        batch = pixels[None].contiguous(memory_format=torch.channels_last)
        return F.interpolate(batch, size, mode=self.filter, antialias=True)[0].contiguous()


def _decode_torchvision(content: np.ndarray, mode: str) -> Tensor | None:
    """Returns the pixels, or None for what Pillow has to judge."""
    head = content[:4].tobytes()
    if head[:2] == b"\xff\xd8":
        # A JPEG cut short decodes to grey without an error here; Pillow reports it.
        if b"\xff\xd9" not in content[-4096:].tobytes():
            return None
    elif head != b"\x89PNG":
        return None
    try:
        import torchvision.io  # type: ignore[import-untyped]  # noqa: F401  (registers the operator)

        # The operator itself: the function around it warns since 0.29 that it will go; then Pillow takes over.
        decode = torch.ops.image.decode_image
        pixels: Tensor = decode(torch.from_numpy(content), _TORCHVISION_MODES[mode], True)
    except (ImportError, AttributeError, RuntimeError):
        return None
    return pixels if pixels.dtype == torch.uint8 and pixels.shape[0] == N_CHANNELS[mode] else None


def _decode_pillow(content: np.ndarray, mode: str) -> Tensor:
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(content.tobytes())) as image:
        whole = ImageOps.exif_transpose(image)
        if whole.mode.startswith("I;16") or whole.mode == "I":  # 16 bits: the high byte
            whole = Image.fromarray((np.asarray(whole) >> 8).clip(0, 255).astype(np.uint8))
        pixels = np.array(whole.convert(mode))
    return torch.from_numpy(pixels if pixels.ndim == 3 else pixels[..., None]).permute(2, 0, 1).contiguous()
