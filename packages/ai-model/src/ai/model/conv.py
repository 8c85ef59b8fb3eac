"""The convolution block: blur, resample, convolve, normalise, noise, activation, gain, clamp, in this order."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ai.model import f
from ai.model import norm as norms
from ai.model.activation import Activation
from ai.model.activation import actv as make_actv
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
        bias: bool,
        padtype: str,
        scale_w: bool,
        lr_mult: float,
    ):
        super().__init__()
        self.nc1, self.nc2, self.k, self.stride, self.padtype = nc1, nc2, k, stride, padtype
        self.gain, self.clamp, self.scale_w, self.lr_mult = gain, clamp, scale_w, lr_mult
        self.weight = nn.Parameter(torch.empty(nc2, nc1, k, k))
        self.bias = nn.Parameter(torch.empty(nc2)) if bias else None
        self.norm = norms.make(norm, nc2)
        self.actv = make_actv(actv)
        self._gain = math.sqrt(2) if actv is not None else 1.0
        self.init_params(torch.Generator().manual_seed(int(torch.randint(2**62, ()))))

    @torch.no_grad()
    def init_params(self, generator: torch.Generator) -> None:
        fan_in = self.nc1 * self.k**2
        std = 1 / self.lr_mult if self.scale_w else self._gain / math.sqrt(fan_in) / self.lr_mult
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
        if self.stride < 1:
            x = f.resample(x, self.stride)
        step, pad = max(1, round(self.stride)), self.k // 2
        if pad and self.padtype != "zeros":
            x = F.pad(x, (pad, pad, pad, pad), mode=_PADDING[self.padtype])
            pad = 0
        x = F.conv2d(x, weight, bias, step, pad)
        if self.norm is not None:
            x = self.norm(x)
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
    bias: bool | None = None,
    padtype: str = "zeros",
    scale_w: bool = False,
    lr_mult: float = 1.0,
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
        bias: Whether there is one; None means: unless batch norm follows and would cancel it.
        padtype: `zeros`, `reflect`, `replicate` or `circular`.
        scale_w: Equalised learning rate, as of `fc`.
        lr_mult: Multiplies the learning rate of this layer.
    """
    for name, value in (("nc1", nc1), ("nc2", nc2)):
        if value < 1:
            raise ValueError(f"{name} ({value}) must be at least 1")
    if k < 1 or k % 2 == 0:
        raise ValueError(f"k ({k}) must be odd and at least 1")
    whole = stride if stride >= 1 else 1 / stride if stride > 0 else 0.5
    if abs(whole - round(whole)) > 1e-9:
        raise ValueError(f"stride ({stride}) must be a whole number, or one over a whole number to enlarge")
    if padtype not in _PADDING:
        raise ValueError(f"padtype ({padtype!r}) must be one of {', '.join(_PADDING)}")
    bias = norm != "batch" if bias is None else bias
    return _Conv(nc1, nc2, k, stride, actv, norm, gain, clamp, bias, padtype, scale_w, lr_mult)
