"""Pictures in motion: a GIF, or an MP4 where PyAV is installed."""

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor


def interpolate(points: Tensor, n_between: int, *, spherical: bool = False, closed: bool = True) -> Tensor:
    """Returns a path through points, for example through latent codes.

    Args:
        points: `(n, …)` with n of at least 2.
        n_between: Steps from one point to the next.
        spherical: Go along great circles of the flattened vectors instead of straight: right for Gaussian noise, whose
            straight mean would be shorter than any sample.
        closed: Return to the first point, so that an animation loops.

    Returns:
        `(n * n_between, …)`, or `((n - 1) * n_between + 1, …)` where the path is open.

    Raises:
        ValueError: Fewer than two points, or `n_between` below 1.

    Source:
        Shoemake 1985, Animating Rotation with Quaternion Curves, for the spherical form.

    Example:
        >>> interpolate(torch.tensor([[0.0], [1.0]]), 2, closed=False).flatten().tolist()
        [0.0, 0.5, 1.0]
    """
    if len(points) < 2 or n_between < 1:
        raise ValueError(f"needs at least 2 points and n_between of at least 1, got {len(points)} and {n_between}")
    ends = torch.roll(points, -1, 0) if closed else points[1:]
    t = torch.arange(n_between, device=points.device, dtype=points.dtype) / n_between
    legs = [_leg(a, b, t, spherical) for a, b in zip(points, ends, strict=False)]
    return torch.cat(legs if closed else [*legs, points[-1:]])


def save_animation(path: str | Path, frames: Iterable[NDArray[np.uint8]], *, fps: int = 20) -> None:
    """Writes frames as a looping GIF or as an MP4, as the path's suffix says.

    Args:
        path: Ends in `.gif` or `.mp4`.
        frames: `(height, width, 3)` pictures of one size, for example from `grid`.
        fps: Frames a second; a GIF holds whole hundredths of a second, and viewers show at most 50.

    Raises:
        ValueError: Another suffix, no frames, or a rate outside 1 to 50.
        ModuleNotFoundError: An MP4 without PyAV.
    """
    path = Path(path)
    pages = list(frames)
    if not pages or not 1 <= fps <= 50:
        raise ValueError(f"an animation needs at least 1 frame and 1 to 50 frames a second, got {len(pages)} and {fps}")
    if path.suffix == ".gif":
        first, *rest = (Image.fromarray(page) for page in pages)
        first.save(path, save_all=True, append_images=rest, duration=round(1000 / fps), loop=0)
    elif path.suffix == ".mp4":
        _save_mp4(path, pages, fps)
    else:
        raise ValueError(f"path must end in .gif or .mp4, got {path}")


def _leg(a: Tensor, b: Tensor, t: Tensor, spherical: bool) -> Tensor:
    t = t.reshape(-1, *[1] * a.ndim)
    if spherical:
        angle = torch.acos(torch.cosine_similarity(a.flatten(), b.flatten(), 0).clamp(-1, 1))
        if angle.sin() > 1e-4:  # (anti)parallel vectors have no one great circle, and the straight line will do
            return (torch.sin((1 - t) * angle) * a + torch.sin(t * angle) * b) / torch.sin(angle)
    return torch.lerp(a[None], b[None], t)


def _save_mp4(path: Path, pages: list[NDArray[np.uint8]], fps: int) -> None:
    try:
        import av  # type: ignore[import-not-found, unused-ignore]
    except ModuleNotFoundError as error:
        if error.name != "av":
            raise
        raise ModuleNotFoundError(
            "MP4 needs PyAV: install the extra 'video' of ai-examples from the checkout, with every local path beside "
            "it: pip install packages/* 'examples[video]' (a path that ends in .gif needs nothing)",
            name="av",
        ) from error
    height, width = (side + side % 2 for side in pages[0].shape[:2])  # the usual colour format halves both sides
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": "18"}
        for page in pages:
            padded = np.pad(page, ((0, height - page.shape[0]), (0, width - page.shape[1]), (0, 0)), mode="edge")
            for packet in stream.encode(av.VideoFrame.from_ndarray(padded, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
