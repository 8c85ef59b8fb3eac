"""Rotary positions: queries and keys turned by angles that grow with the position.

Axes: `B` batch, `H` heads, `T` tokens, `D` width of a head.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ai.model.arguments import check_real, check_whole

_SCALINGS = (None, "linear", "ntk", "yarn", "llama3")


@dataclass(frozen=True)
class Rotary:
    """What `rotary` returns: how positions become angles."""

    base: float = 10_000.0
    scaling: str | None = None
    factor: float = 1.0
    context: int | None = None

    def rotate(self, x: Tensor, start: int = 0) -> Tensor:
        """Returns `(B, H, T, D)` queries or keys, the pairs of features (i, i + D/2) turned by their positions."""
        check_whole(start=start)
        half = x.shape[-1] // 2
        dtype = torch.promote_types(x.dtype, torch.float32)  # a half-precision angle would be off by whole turns
        frequencies, gain = self.frequencies(2 * half, x.device, dtype)
        angles = torch.arange(start, start + x.shape[-2], device=x.device)[:, None] * frequencies
        cos, sin = (angles.cos() * gain).to(x.dtype), (angles.sin() * gain).to(x.dtype)
        x1, x2 = x[..., :half], x[..., half:]
        return torch.cat([x1 * cos - x2 * sin, x2 * cos + x1 * sin], -1)

    def frequencies(self, dim: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, float]:
        """Returns the angles a position adds to each pair of features, `(dim / 2,)`, and a factor of the result."""
        base, pairs = self.base, torch.arange(dim // 2, device=device, dtype=dtype)
        if self.scaling == "ntk" and dim > 2:  # a single pair has the shortest wavelength, which stays
            base *= self.factor ** (dim / (dim - 2))
        plain = base ** (-pairs / (dim // 2))
        if self.scaling == "linear":
            return plain / self.factor, 1.0
        if self.scaling == "yarn":
            low, high = (self._pair_of(turns, dim) for turns in (32.0, 1.0))
            low, high = max(math.floor(low), 0), min(math.ceil(high), dim - 1)
            slow = ((pairs - low) / max(high - low, 0.001)).clamp(0, 1)
            return plain * (1 - slow) + plain / self.factor * slow, 0.1 * math.log(self.factor) + 1
        if self.scaling == "llama3":
            assert self.context is not None
            turns = self.context * plain / (2 * math.pi)
            fast = ((turns - 1) / (4 - 1)).clamp(0, 1)
            return plain * fast + plain / self.factor * (1 - fast), 1.0
        return plain, 1.0

    def _pair_of(self, turns: float, dim: int) -> float:
        """Returns which pair of features, as a fraction, turns so often within the context of the training."""
        assert self.context is not None
        return dim * math.log(self.context / (turns * 2 * math.pi)) / (2 * math.log(self.base))


def rotary(
    base: float = 10_000.0, *, scaling: str | None = None, factor: float = 1.0, context: int | None = None
) -> Rotary:
    """Returns rotary positions, for `rotary=` of `attn` and its blocks; `rotary=True` is this without arguments.

    Args:
        base: The longest wavelength is `base` · 2π positions.
        scaling: How a network is taken beyond the context that it was trained on: `linear` (positions divided by the
            factor), `ntk` (a larger base, which leaves short wavelengths alone), `yarn` (long wavelengths divided,
            short ones left alone, and scores sharpened), `llama3` (as `yarn`, with the bounds of Llama 3.1 and no
            sharpening), or None.
        factor: How many times the context grows.
        context: That of the training; for `yarn` and `llama3`.

    Sources: Su et al., 2021, RoFormer, equation 34, with halves instead of neighbours as pairs; Chen et al., 2023,
    Extending Context Window (linear); Peng et al., 2023, YaRN, definitions 1 and 2 (ntk, yarn), with its β of 32 and 1.

    Example:
        >>> x = torch.ones(1, 1, 3, 4)
        >>> turned = rotary(500_000.0).rotate(x)
        >>> torch.allclose(turned.norm(dim=-1), x.norm(dim=-1)), bool((turned[:, :, 0] == x[:, :, 0]).all())
        (True, True)
    """
    check_real(base=base, factor=factor)
    check_whole(or_none=True, context=context)
    if not base > 1:
        raise ValueError(f"base ({base}) must be above 1")
    if scaling not in _SCALINGS:
        raise ValueError(f"scaling ({scaling!r}) must be one of {', '.join(map(str, _SCALINGS))}")
    if not factor >= 1 or (scaling is None and factor != 1):
        raise ValueError(f"factor ({factor}) must be at least 1, and 1 without a scaling")
    if (context is not None) != (scaling in ("yarn", "llama3")):
        raise ValueError(f"context ({context}) must be given for yarn and llama3, and for these alone")
    if context is not None and context < 1:
        raise ValueError(f"context ({context}) must be at least 1")
    return Rotary(base, scaling, factor, context)
