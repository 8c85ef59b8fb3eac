"""The convolution block: blur, resample, convolve, normalise, noise, activation, gain, clamp, in this order."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ai.model import f
from ai.model import norm as norms
from ai.model.activation import Activation
from ai.model.activation import actv as make_actv
from ai.model.elementwise import noise as make_noise
from ai.model.init import draw_normal
from ai.model.norm import Norm

_PADDING = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}


class _Conv(nn.Module):
    def __init__(
        self,
        nc1: int,
        nc2: int,
        k: int,
        stride: float,
        actv: Activation,
        norm: Norm,
        gain: float,
        clamp: float | None,
        noise: bool,
        blur: Sequence[float] | None,
        bias: bool,
        padtype: str,
        scale_w: bool,
        lr_mult: float,
        init_gain: float,
    ):
        super().__init__()
        self.nc1, self.nc2, self.k, self.stride, self.padtype, self.blur = nc1, nc2, k, stride, padtype, blur
        self.gain, self.clamp, self.scale_w, self.lr_mult = gain, clamp, scale_w, lr_mult
        self.weight = nn.Parameter(torch.empty(nc2, nc1, k, k))
        self.bias = nn.Parameter(torch.empty(nc2)) if bias else None
        self.norm = norms.make(norm, nc2)
        self.noise = make_noise() if noise else None
        self.actv = make_actv(actv)
        normed = self.norm is not None and getattr(self.norm, "weight", None) is not None
        if self.norm is not None and normed and init_gain != 1:
            self.norm.weight_init = init_gain  # type: ignore[assignment]
            nn.init.constant_(self.norm.get_parameter("weight"), init_gain)
        self.init_gain = 1.0 if normed else init_gain
        self._gain = self.init_gain * (math.sqrt(2) if actv is not None else 1.0)
        self.init_params(torch.Generator().manual_seed(int(torch.randint(2**62, ()))))

    @torch.no_grad()
    def init_params(self, generator: torch.Generator) -> None:
        fan_in = self.nc1 * self.k**2
        std = self.init_gain / self.lr_mult if self.scale_w else self._gain / math.sqrt(fan_in) / self.lr_mult
        draw_normal(self.weight, std, generator)
        if self.bias is not None:
            self.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        weight: Tensor = self.weight
        bias: Tensor | None = self.bias
        if self.scale_w:
            weight = weight * (self.lr_mult / math.sqrt(self.nc1 * self.k**2))
        elif self.lr_mult != 1:
            weight = weight * self.lr_mult
        if bias is not None and self.lr_mult != 1:
            bias = bias * self.lr_mult
        if self.blur is not None:
            x = f.blur(x, self.blur)
        if self.stride < 1:
            x = f.resample(x, self.stride)
        step, pad = max(1, round(self.stride)), self.k // 2
        if pad and self.padtype != "zeros":
            x = F.pad(x, (pad, pad, pad, pad), mode=_PADDING[self.padtype])
            pad = 0
        x = F.conv2d(x, weight, bias, step, pad)
        if self.norm is not None:
            x = self.norm(x)
        if self.noise is not None:
            x = self.noise(x)
        if self.actv is not None:
            x = self.actv(x)
        if self.gain != 1:
            x = x * self.gain
        return x if self.clamp is None else x.clamp(-self.clamp, self.clamp)

    def extra_repr(self) -> str:
        return f"{self.nc1}, {self.nc2}, k={self.k}, stride={self.stride}"


def conv(
    nc1: int,
    nc2: int,
    k: int = 3,
    stride: float = 1,
    actv: Activation = None,
    norm: Norm = None,
    *,
    gain: float = 1.0,
    clamp: float | None = None,
    noise: bool = False,
    blur: Sequence[float] | None = None,
    bias: bool | None = None,
    padtype: str = "zeros",
    scale_w: bool = False,
    lr_mult: float = 1.0,
    init_gain: float = 1.0,
) -> nn.Module:
    """Returns a convolution block: `(batch, nc1, height, width)` to `(batch, nc2, height / stride, width / stride)`.

    Args:
        nc1: Channels in.
        nc2: Channels out.
        k: Odd kernel size; the border is padded by `k // 2`.
        stride: A whole number to shrink by striding, or one over a whole number to enlarge before the convolution.
        actv: Activation by name, or a callable.
        norm: Normalisation by name, or a callable from a channel count.
        gain: Multiplies the result.
        clamp: Bounds the result to [-clamp, clamp].
        noise: Whether to add noise with a learned strength; see `noise`.
        blur: Taps of a low-pass filter that the input goes through first, such as (1, 3, 3, 1).
        bias: Whether there is one; None means: unless batch norm follows and would cancel it.
        padtype: `zeros`, `reflect`, `replicate` or `circular`.
        scale_w: Equalised learning rate, as of `fc`.
        lr_mult: Multiplies the learning rate of this layer.
        init_gain: Multiplies what the block gives at first; below 1 for the end of a residual branch.

    Example:
        >>> conv(3, 8, stride=0.5, norm="batch", actv="mish")(torch.zeros(2, 3, 8, 8)).shape
        torch.Size([2, 8, 16, 16])
    """
    for name, value in (("nc1", nc1), ("nc2", nc2)):
        if value < 1:
            raise ValueError(f"{name} ({value}) must be at least 1")
    if k < 1 or k % 2 == 0:
        raise ValueError(f"k ({k}) must be odd and at least 1")
    f.whole_factor(stride)
    if padtype not in _PADDING:
        raise ValueError(f"padtype ({padtype!r}) must be one of {', '.join(_PADDING)}")
    taps = None if blur is None else tuple(blur)
    bias = norm != "batch" if bias is None else bias
    return _Conv(nc1, nc2, k, stride, actv, norm, gain, clamp, noise, taps, bias, padtype, scale_w, lr_mult, init_gain)
