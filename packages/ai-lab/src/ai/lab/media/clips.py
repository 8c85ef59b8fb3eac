"""Sounds and moving pictures as files that any browser plays."""

import io
import wave
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

LARGEST_SIDE = 16383  # of a WebP image
MOST_FRAMES = 2000
"""A longer video is a file of the user's own, which `Trial.keep` takes by its path."""


@dataclass
class Audio:
    """A sound, kept as a WAV file of 16 bits.

    Args:
        samples: `(time,)` or `(channels, time)`, floating point in [-1, 1] (clipped) or int16.
        rate: Samples a second.
    """

    samples: "np.ndarray | Tensor"
    rate: int

    def to_file(self) -> tuple[str, bytes]:
        """Returns the file's suffix and what it holds.

        Raises:
            TypeError: the samples are neither floating point nor int16.
            ValueError: they have another shape, or are not finite, or the rate is not positive.
        """
        samples = _array(self.samples)
        if samples.ndim not in (1, 2) or (samples.ndim == 2 and not 1 <= len(samples) <= 8):
            raise ValueError(
                f"samples must be (time,) or (channels, time) of at most 8 channels, got shape {samples.shape}"
            )
        if not 1 <= self.rate < 2**31 or self.rate != int(self.rate):
            raise ValueError(f"rate must be a whole number from 1 to 2**31 - 1, got {self.rate}")
        if samples.dtype.kind == "f":
            if not np.isfinite(samples).all():
                raise ValueError("samples must be finite, got NaN or infinity")
            samples = np.round(np.clip(samples.astype(np.float64), -1, 1) * 32767).astype(np.int16)
        if samples.dtype != np.int16:
            raise TypeError(f"samples must be floating point in [-1, 1] or int16, got {samples.dtype}")
        channels = samples[None] if samples.ndim == 1 else samples
        buffer = io.BytesIO()
        with wave.open(buffer, "wb") as file:
            file.setnchannels(len(channels))
            file.setsampwidth(2)
            file.setframerate(int(self.rate))
            file.writeframes(np.ascontiguousarray(channels.T, "<i2").tobytes())
        return ".wav", buffer.getvalue()


@dataclass
class Video:
    """Frames, kept as an animated WebP image.

    Args:
        frames: `(time, …)`, each frame as of `Trial.keep`: floating point in [-1, 1] (clipped) or uint8.
        fps: Frames a second.
        layout: The axes of one frame where its shape does not tell, such as `'HWC'`.
    """

    frames: "np.ndarray | Tensor"
    fps: float = 10.0
    layout: str | None = None

    def to_file(self) -> tuple[str, bytes]:
        """Returns the file's suffix and what it holds.

        Raises:
            TypeError: the numbers are neither floating point nor uint8.
            ValueError: the frames have a shape that is none of images, there are none or too many, or `fps` is not
                in (0, 1000].
        """
        from PIL import Image

        from ai.lab.media.image_page import to_page

        frames = _array(self.frames)
        if frames.ndim not in (3, 4) or not 1 <= len(frames) <= MOST_FRAMES:
            raise ValueError(f"frames must be 1 to {MOST_FRAMES} images, got shape {frames.shape}")
        if not 0 < self.fps <= 1000:
            raise ValueError(f"fps must be above 0 and at most 1000, got {self.fps}")
        layout = None if self.layout is None else f"N{self.layout}"
        pages = [to_page(frame[None], gap=0, layout=layout) for frame in frames]
        if max(pages[0].shape[:2]) > LARGEST_SIDE:
            raise ValueError(f"frames must be at most {LARGEST_SIDE} pixels wide and high, got {pages[0].shape[:2]}")
        images = [Image.fromarray(page[..., 0] if page.shape[-1] == 1 else page) for page in pages]
        first, *others = [page.convert("RGBA" if page.mode == "RGBA" else "RGB") for page in images]
        buffer = io.BytesIO()
        first.save(
            buffer,
            "WEBP",
            save_all=True,
            append_images=others,
            duration=max(1, round(1000 / self.fps)),
            loop=0,
            quality=85,
        )
        return ".webp", buffer.getvalue()


def _array(values: Any) -> np.ndarray:
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        values = values.float() if values.is_floating_point() else values
    return np.asarray(values)
