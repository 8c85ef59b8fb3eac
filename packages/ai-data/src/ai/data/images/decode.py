"""One image file to uint8 pixels of a given size."""

import io
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    import PIL.Image

N_CHANNELS = {"L": 1, "RGB": 3, "RGBA": 4}
Fit = Literal["crop", "stretch", "pad"]
Filter = Literal["bilinear", "bicubic"]
_MOST_PIXELS = (1 << 16) - 1  # a side; the largest JPEG has as many


@dataclass(frozen=True)
class Decoder:
    """Decodes, fits and resizes images: JPEG by torchvision, for speed, and everything else by Pillow.

    (torchvision's decoder of PNG ends the process on damaged files and leaves memory unwritten in others.)

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
        if max(self.size) > _MOST_PIXELS:
            raise ValueError(f"imsize must be at most {_MOST_PIXELS} pixels a side, got {self.size}")
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

    def __call__(self, file: str | os.PathLike[str] | bytes) -> Tensor:
        """Returns the image in a file, or in the content of one, upright as its metadata tell: uint8 of `shape`.

        Raises:
            OSError: the file cannot be read, is no whole image of a known format, or declares more pixels than twice
                `PIL.Image.MAX_IMAGE_PIXELS`.
        """
        content = file if isinstance(file, bytes) else read_regular(file)
        try:
            return self._resized(_decode(content, self.mode)).contiguous()
        except OSError:
            raise
        except Exception as error:  # Pillow's plugins raise what they like on broken files
            raise OSError(f"{type(error).__name__}: {error}") from error

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
        whole = torch.zeros(self.shape, dtype=torch.uint8, device="cpu")
        whole[:, top : top + inner.shape[1], left : left + inner.shape[2]] = inner
        return whole

    def _interpolate(self, pixels: Tensor, size: tuple[int, int]) -> Tensor:
        if tuple(pixels.shape[1:]) == size:
            return pixels
        # torch has a fast kernel for bytes that lie channels last.
        batch = pixels[None].contiguous(memory_format=torch.channels_last)
        return F.interpolate(batch, size, mode=self.filter, antialias=True)[0].contiguous()


def read_regular(path: str | os.PathLike[str]) -> bytes:
    """Returns the content of a regular file.

    Raises:
        OSError: it cannot be read, or is none: opening a pipe would wait for ever.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("it is no regular file")
    return Path(path).read_bytes()


def _decode(content: bytes, mode: str) -> Tensor:
    """Returns the upright pixels: `[channels, height, width]` uint8."""
    from PIL import Image, UnidentifiedImageError

    try:
        opened = Image.open(io.BytesIO(content))  # reads the head, and refuses a size beyond its limit
    except UnidentifiedImageError as error:  # which names the buffer, and nobody's file
        raise OSError("it is in no format of images that is known") from error
    with opened as image:
        pixels = _decode_jpeg(content, mode, image) if image.format in ("JPEG", "MPO") else None
        if pixels is None:
            pixels = _decode_pillow(image, mode)
        turn = _TURNS.get(_orientation(image))
    return pixels if turn is None else turn(pixels)


def _decode_jpeg(content: bytes, mode: str, image: "PIL.Image.Image") -> Tensor | None:
    """Returns the pixels of a grey or colour JPEG, or None for what Pillow has to judge."""
    # One cut short decodes to grey without an error here; Pillow reports it.
    if mode == "RGBA" or image.mode not in ("L", "RGB") or b"\xff\xd9" not in content[-4096:]:
        return None
    try:
        import torchvision.io  # type: ignore[import-untyped]  # noqa: F401  (registers the operator)

        # The operator itself: the function around it warns since 0.29 that it will go; then Pillow takes over.
        pixels: Tensor = torch.ops.image.decode_jpeg(
            torch.from_numpy(np.frombuffer(content, np.uint8).copy()), N_CHANNELS[mode], False
        )
    except (ImportError, AttributeError, RuntimeError):
        return None
    return pixels if pixels.shape == (N_CHANNELS[mode], image.height, image.width) else None


def _decode_pillow(image: "PIL.Image.Image", mode: str) -> Tensor:
    from PIL import Image

    image.load()
    whole: Image.Image = image
    if image.mode == "F":
        raise OSError("its pixels are fractions, whose range only their maker knows: store them as 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 bits: the high byte
        values = np.asarray(image)
        if image.mode == "I" and (values.min() < 0 or values.max() > 0xFFFF):
            raise OSError("its pixels exceed 16 bits, and only their maker knows their range: store them as 16 bits")
        whole = Image.fromarray((values >> 8).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:  # Pillow warns of any other way
        whole = whole.convert("RGBA")
    pixels = np.array(whole.convert(mode))
    return torch.from_numpy(pixels if pixels.ndim == 3 else pixels[..., None]).permute(2, 0, 1).contiguous()


def _orientation(image: "PIL.Image.Image") -> int:
    """Returns how the image is to be turned, from EXIF, XMP or ImageMagick's profiles; 1 where nothing tells."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # metadata are no reason to lose the pixels
        return 1


_ORIENTATION = 0x0112
_TURNS: dict[int, Callable[[Tensor], Tensor]] = {
    2: lambda x: x.flip(-1),
    3: lambda x: x.flip(-1, -2),
    4: lambda x: x.flip(-2),
    5: lambda x: x.transpose(-1, -2),
    6: lambda x: x.transpose(-1, -2).flip(-1),
    7: lambda x: x.transpose(-1, -2).flip(-1, -2),
    8: lambda x: x.transpose(-1, -2).flip(-2),
}
