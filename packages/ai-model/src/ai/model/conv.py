"""The convolution block: blur, resample, convolve, normalise, noise, activation, gain, clamp, in this order."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ai.model import f
from ai.model import norm as norms
from ai.model.activation import Activation, actv_gain
from ai.model.activation import actv as make_actv
from ai.model.elementwise import noise as make_noise
from ai.model.init import draw_normal, fill, init_module, mark_small
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
        groups: int,
        init_gain: float,
    ):
        super().__init__()
        self.nc1, self.nc2, self.k, self.stride, self.padtype, self.blur = nc1, nc2, k, stride, padtype, blur
        self.gain, self.clamp, self.scale_w, self.lr_mult = gain, clamp, scale_w, lr_mult
        self.groups = groups
        self.weight = nn.Parameter(torch.empty(nc2, nc1 // groups, k, k))
        self.bias = nn.Parameter(torch.empty(nc2)) if bias else None
        self.norm = norms.make(norm, nc2)
        self.noise = make_noise() if noise else None
        self.actv = make_actv(actv)
        self.init_gain, self._actv_gain = 1.0, actv_gain(actv)
        if init_gain != 1:
            self.mark_small(init_gain)
            if self.norm is not None:
                init_module(self.norm)
        self.init_params(None)

    def init_params(self, generator: torch.Generator | None) -> None:
        fan_in = self.weight[0].numel()
        std = self.init_gain if self.scale_w else self.init_gain * self._actv_gain / math.sqrt(fan_in)
        draw_normal(self.weight, std / self.lr_mult, generator)
        if self.bias is not None:
            fill(self.bias, 0.0)

    def mark_small(self, scale: float) -> bool:
        if self.norm is None or not mark_small(self.norm, scale):  # a norm after it would undo small weights
            self.init_gain = scale
        return True

    def forward(self, x: Tensor) -> Tensor:
        weight: Tensor = self.weight
        bias: Tensor | None = self.bias
        if self.scale_w:
            weight = weight * (self.lr_mult / math.sqrt(self.weight[0].numel()))
        elif self.lr_mult != 1:
            weight = weight * self.lr_mult
        if bias is not None and self.lr_mult != 1:
            bias = bias * self.lr_mult
        if self.stride < 1:
            x = f.resample(x, self.stride, self.blur)
        elif self.blur is not None:
            x = f.blur(x, self.blur)
        step, pad = max(1, round(self.stride)), self.k // 2
        if pad and self.padtype != "zeros":
            x = F.pad(x, (pad, pad, pad, pad), mode=_PADDING[self.padtype])
            pad = 0
        x = F.conv2d(x, weight, bias, step, pad, 1, self.groups)
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
    groups: int = 1,
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
        blur: Taps of a low-pass filter that the input goes through first, such as (1, 3, 3, 1); where the stride
            enlarges, the filter takes the place of nearest neighbours.
        bias: Whether there is one; None means: unless batch or instance norm follows and would cancel it.
        padtype: `zeros`, `reflect`, `replicate` or `circular`.
        scale_w: Equalised learning rate, as of `fc`.
        lr_mult: Multiplies the learning rate of this layer.
        groups: Groups of channels that are convolved apart; `nc1` for a depthwise convolution.
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
    if groups < 1 or nc1 % groups or nc2 % groups:
        raise ValueError(f"groups ({groups}) must divide nc1 ({nc1}) and nc2 ({nc2})")
    if not lr_mult > 0:
        raise ValueError(f"lr_mult ({lr_mult}) must be above 0")
    if clamp is not None and not clamp > 0:
        raise ValueError(f"clamp ({clamp}) must be above 0 or None")
    bias = norm not in ("batch", "instance") if bias is None else bias
    return _Conv(
        nc1, nc2, k, stride, actv, norm, gain, clamp, noise, taps, bias, padtype, scale_w, lr_mult, groups, init_gain
    )
