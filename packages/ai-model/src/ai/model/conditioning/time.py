"""Times and noise levels as vectors."""

import math

import torch
import torch.fx
from torch import Tensor, nn

from ai.model.arguments import check_real, check_whole
from ai.model.init import draw_normal

_KINDS = ("sinusoidal", "fourier")


@torch.fx.wrap  # for torch.fx, which does not know sizes, a check is one step
def _check_times(time: Tensor) -> None:
    if time.dim() != 1:
        raise ValueError(f"time must be (batch,), got {tuple(time.shape)}")


class _Sinusoidal(nn.Module):
    def __init__(self, dim: int, base: float, scale: float):
        super().__init__()
        self.dim, self.base, self.scale = dim, base, scale

    def forward(self, time: Tensor) -> Tensor:
        _check_times(time)
        wide = torch.promote_types(time.dtype, torch.float32)  # a half-precision angle would be off by whole turns
        places = torch.arange(self.dim // 2, dtype=wide, device=time.device)
        frequencies = torch.exp(places * (-math.log(self.base) / (self.dim // 2)))
        angles = time.to(wide).unsqueeze(1) * self.scale * frequencies
        out = torch.cat([angles.sin(), angles.cos()], 1)
        return out.to(time.dtype) if time.is_floating_point() else out

    def extra_repr(self) -> str:
        return f"{self.dim}, base={self.base}, scale={self.scale}"


class _Fourier(nn.Module):
    frequencies: Tensor

    def __init__(self, dim: int, scale: float):
        super().__init__()
        self.scale = scale
        self.register_buffer("frequencies", torch.empty(dim // 2))
        self.init_params(None)

    def init_params(self, generator: torch.Generator | None) -> None:
        draw_normal(self.frequencies, self.scale, generator)

    def forward(self, time: Tensor) -> Tensor:
        _check_times(time)
        wide = torch.promote_types(self.frequencies.dtype, torch.float32)
        angles = time.to(wide).unsqueeze(1) * (2 * math.pi * self.frequencies.to(wide))
        return torch.cat([angles.sin(), angles.cos()], 1).to(self.frequencies.dtype)


def time_emb(dim: int, kind: str = "sinusoidal", *, base: float = 10_000.0, scale: float | None = None) -> nn.Module:
    """Returns the module from `(batch,)` times or noise levels to `(batch, dim)` sines and cosines of them.

    Args:
        dim: Width of the vectors, an even number.
        kind: `sinusoidal`, with wavelengths from 2π to `base` · 2π; or `fourier`, with frequencies that are drawn once
            and kept.
        base: Of `sinusoidal`.
        scale: What times are multiplied by (`sinusoidal`; None is 1, and 1000 suits times in [0, 1]), or the deviation
            of the frequencies (`fourier`; None is 16).

    Sources: Ho, Jain and Abbeel, 2020, appendix B (sinusoidal); Tancik et al., 2020, Fourier Features, section 4.

    Example:
        >>> time_emb(4)(torch.zeros(1))
        tensor([[0., 0., 1., 1.]])
    """
    check_whole(dim=dim)
    check_real(base=base)
    check_real(or_none=True, scale=scale)
    if dim < 2 or dim % 2:
        raise ValueError(f"dim ({dim}) must be an even number, at least 2")
    if kind not in _KINDS:
        raise ValueError(f"kind ({kind!r}) must be one of {', '.join(_KINDS)}")
    if kind == "fourier":
        if base != 10_000.0:
            raise ValueError(f"base ({base}) must be left alone for kind 'fourier', which has none")
        return _Fourier(dim, 16.0 if scale is None else scale)
    return _Sinusoidal(dim, base, 1.0 if scale is None else scale)
