"""What the changes of images have in common: their types, and what they ask of the pixels."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from torch import Generator, Tensor

from ai.data.batch.seeds import seed_from

OnImages: TypeAlias = Callable[[Tensor, Generator], Tensor]
OnBatch: TypeAlias = Callable[[dict[str, Tensor], Generator], dict[str, Tensor]]


ORDER = "call it after the postprocess that makes them so"


class InRange:
    """Refuses images that are not float in [-1, 1]; the range at the first batch only, since looking takes time.

    Args:
        name: what an error calls the augmentation.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._seen = False

    def __call__(self, x: Tensor) -> None:
        """Raises `ValueError` for images of another type, or at first of another range."""
        if not x.is_floating_point():
            raise ValueError(f"{self._name} needs images as floating point numbers in [-1, 1], got {x.dtype}: {ORDER}")
        if not self._seen and x.numel():
            low, high = (float(bound) for bound in x.aminmax())
            if not -1.01 <= low <= high <= 1.01:
                raise ValueError(
                    f"{self._name} needs images in [-1, 1], got values from {low:.4g} to {high:.4g}: normalise after it"
                )
            self._seen = True


def without_alpha(x: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Returns the channels that show a colour, and those that do not: none, or the alpha of RGBA."""
    if x.shape[1] not in (1, 3, 4):
        raise ValueError(f"{name} needs images of 1, 3 or 4 channels (grey, RGB, RGBA), got {x.shape[1]}")
    return x[:, :3], x[:, 3:]


def numpy_draws(generator: Generator) -> np.random.Generator:
    """Returns a generator of what torch cannot draw; it follows from the state of `generator`, which goes on by a draw.

    The host knows the state of a device's generator, so that nothing waits.
    """
    seed = seed_from(generator.get_state())
    torch.rand(1, generator=generator, device=generator.device)
    return np.random.default_rng(seed)


def within(middle: Tensor, length: int, size: Tensor | int) -> Tensor:
    """Returns which of `length` pixels lie within `size` about the pixel at `middle` in [0, 1): `(batch, length)`."""
    whole = size if isinstance(size, int) else size.floor()
    half = size // 2
    start = (middle * length).floor() - half
    place = torch.arange(length, device=middle.device)
    return (place >= start) & (place < start + whole)
