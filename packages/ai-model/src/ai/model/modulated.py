"""Layers that a second input steers: each is called as `(x, z)`.

Axes: x is `(batch, nc, height, width)` for convolutions and `(batch, …, n)` for `modfc`; z is `(batch, z_dim)`.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ai.model import f
from ai.model.activation import Activation, actv_gain
from ai.model.activation import actv as make_actv
from ai.model.container import seq
from ai.model.conv import conv
from ai.model.elementwise import noise as make_noise
from ai.model.elementwise import resample
from ai.model.init import draw_normal, fill
from ai.model.linear import fc

_MODTYPES = ("weight", "adalin")


class _AdaLin(nn.Module):
    """A learned mixture of instance and layer normalisation, scaled and shifted by z."""

    def __init__(self, nc: int, z_dim: int, eps: float = 1e-5):
        super().__init__()
        self.nc, self.eps = nc, eps
        self.rho = nn.Parameter(torch.full((nc,), 0.9))
        self.style = fc(z_dim, 2 * nc, init_gain=1.0)

    def init_params(self, generator: torch.Generator | None) -> None:
        fill(self.rho, 0.9)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        scale, shift = self.style(z)[:, :, None, None].chunk(2, 1)
        by_channel = (x - x.mean((2, 3), keepdim=True)) * _rstd(x, (2, 3), self.eps)
        by_image = (x - x.mean((1, 2, 3), keepdim=True)) * _rstd(x, (1, 2, 3), self.eps)
        rho = self.rho.clamp(0, 1).view(1, -1, 1, 1)
        out: Tensor = (rho * by_channel + (1 - rho) * by_image) * (1 + scale) + shift
        return out


def _rstd(x: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    return (x.var(dims, unbiased=False, keepdim=True) + eps).rsqrt()


class _ModConv(nn.Module):
    def __init__(
        self,
        nc1: int,
        nc2: int,
        z_dim: int,
        modtype: str,
        k: int,
        stride: float,
        actv: Activation,
        demod: bool,
        gain: float | None,
        clamp: float | None,
        noise: bool,
        blur: Sequence[float] | None,
        bias: bool,
        scale_w: bool,
        lr_mult: float,
    ):
        super().__init__()
        self.nc1, self.nc2, self.k, self.stride, self.demod, self.blur = nc1, nc2, k, stride, demod, blur
        self.gain = actv_gain(actv, after=True) if gain is None else gain
        self.clamp, self.scale_w, self.lr_mult = clamp, scale_w, lr_mult
        self.weight = nn.Parameter(torch.empty(nc2, nc1, k, k))
        self.bias = nn.Parameter(torch.empty(nc2)) if bias else None
        by_weight = modtype == "weight"
        self.style = fc(z_dim, nc1, bias_init=1.0, scale_w=scale_w, init_gain=1.0) if by_weight else None
        self.adalin = None if by_weight else _AdaLin(nc2, z_dim)
        self.noise = make_noise() if noise else None
        self.actv = make_actv(actv)
        self.init_params(None)

    def init_params(self, generator: torch.Generator | None) -> None:
        fan_in = self.nc1 * self.k**2
        draw_normal(self.weight, (1.0 if self.scale_w else 1 / math.sqrt(fan_in)) / self.lr_mult, generator)
        if self.bias is not None:
            fill(self.bias, 0.0)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        weight: Tensor = self.weight
        scale = self.lr_mult / (math.sqrt(self.nc1 * self.k**2) if self.scale_w else 1.0)
        if scale != 1:
            weight = weight * scale
        if self.blur is not None:
            x = f.blur(x, self.blur)
        bias = None if self.bias is None else self.bias * self.lr_mult if self.lr_mult != 1 else self.bias
        if self.style is None:
            x = self._convolve(x, weight, bias)
        else:
            x = self._modulated(x, weight, bias, self.style(z))
        if self.adalin is not None:
            x = self.adalin(x, z)
        if self.noise is not None:
            x = self.noise(x)
        if self.actv is not None:
            x = self.actv(x)
        if self.gain != 1:
            x = x * self.gain
        return x if self.clamp is None else x.clamp(-self.clamp, self.clamp)

    def _convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.stride < 1:
            x = f.resample(x, self.stride)
        return F.conv2d(x, weight, bias, max(1, round(self.stride)), self.k // 2)

    def _modulated(self, x: Tensor, weight: Tensor, bias: Tensor | None, style: Tensor) -> Tensor:
        # Scaling the input instead of the weight gives the same sum, with one convolution for the whole batch.
        x = x * style[:, :, None, None]
        if not self.demod:
            return self._convolve(x, weight, bias)
        x = self._convolve(x, weight, None)
        energy = F.linear(style.square(), weight.square().sum((2, 3)))
        scale = (energy + 1e-8).rsqrt()[:, :, None, None].to(x.dtype)
        # One pass over the image for both, in the convolution's own type under autocast.
        return x * scale if bias is None else torch.addcmul(bias.to(x.dtype).view(1, -1, 1, 1), x, scale)

    def extra_repr(self) -> str:
        return f"{self.nc1}, {self.nc2}, k={self.k}, stride={self.stride}, demod={self.demod}"


def modconv(
    nc1: int,
    nc2: int,
    z_dim: int,
    modtype: str = "weight",
    k: int = 3,
    stride: float = 1,
    actv: Activation = None,
    *,
    demod: bool = True,
    gain: float | None = None,
    clamp: float | None = None,
    noise: bool = False,
    blur: Sequence[float] | None = None,
    bias: bool = True,
    scale_w: bool = False,
    lr_mult: float = 1.0,
) -> nn.Module:
    """Returns a convolution steered by a vector, called as `(x, z)`.

    Args:
        nc1: Channels in.
        nc2: Channels out.
        z_dim: Width of z.
        modtype: `weight` scales the weights of each input channel by an affine function of z, and divides each output
            channel by the norm its weights then have; `adalin` normalises the result by a mixture of instance and layer
            statistics and scales and shifts it by affine functions of z.
        k: Odd kernel size.
        stride: A whole number to shrink, or one over a whole number to enlarge first.
        actv: Activation by name, or a callable.
        demod: Whether `weight` divides by the norm; False for a projection to RGB.
        gain: Multiplies the result; None for the activation's gain, since demodulation undoes one in the weights.
        clamp: Bounds the result to [-clamp, clamp].
        noise: Whether to add noise with a learned strength, before the activation.
        blur: Taps of a low-pass filter that the input goes through first.
        bias: Whether there is one.
        scale_w: Equalised learning rate, as of `fc`, of the affine function too.
        lr_mult: Multiplies the learning rate of the convolution.

    Sources: Karras et al., 2020, Analyzing and Improving the Image Quality of StyleGAN, section 2.2 (weight; computed
    with input and output scaling, equations 1 and 3); Kim et al., 2020, U-GAT-IT, section 2.1 (adalin).

    Example:
        >>> modconv(4, 8, 16, stride=0.5, actv="lrelu")(torch.randn(2, 4, 8, 8), torch.randn(2, 16)).shape
        torch.Size([2, 8, 16, 16])
    """
    for name, value in (("nc1", nc1), ("nc2", nc2), ("z_dim", z_dim)):
        if value < 1:
            raise ValueError(f"{name} ({value}) must be at least 1")
    if modtype not in _MODTYPES:
        raise ValueError(f"modtype ({modtype!r}) must be one of {', '.join(_MODTYPES)}")
    if k < 1 or k % 2 == 0:
        raise ValueError(f"k ({k}) must be odd and at least 1")
    f.whole_factor(stride)
    if not lr_mult > 0:
        raise ValueError(f"lr_mult ({lr_mult}) must be above 0")
    if clamp is not None and not clamp > 0:
        raise ValueError(f"clamp ({clamp}) must be above 0 or None")
    taps = None if blur is None else tuple(blur)
    return _ModConv(nc1, nc2, z_dim, modtype, k, stride, actv, demod, gain, clamp, noise, taps, bias, scale_w, lr_mult)


class _ModFc(nn.Module):
    def __init__(self, n1: int, n2: int, z_dim: int, actv: Activation, demod: bool):
        super().__init__()
        self.n1, self.n2, self.demod = n1, n2, demod
        self.weight = nn.Parameter(torch.empty(n2, n1))
        self.bias = nn.Parameter(torch.empty(n2))
        self.style = fc(z_dim, n1, bias_init=1.0, init_gain=1.0)
        self.actv, self.gain = make_actv(actv), actv_gain(actv, after=True)
        self.init_params(None)

    def init_params(self, generator: torch.Generator | None) -> None:
        draw_normal(self.weight, 1 / math.sqrt(self.n1), generator)
        fill(self.bias, 0.0)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        style = self.style(z)
        between = (1,) * (x.ndim - 2)
        x = F.linear(x * style.view(len(style), *between, -1), self.weight)
        if self.demod:
            scale = (F.linear(style.square(), self.weight.square()) + 1e-8).rsqrt()
            x = x * scale.view(len(style), *between, -1)
        x = x + self.bias
        return x if self.actv is None else self.actv(x) * self.gain


def modfc(n1: int, n2: int, z_dim: int, actv: Activation = None, *, demod: bool = True) -> nn.Module:
    """Returns a fully-connected layer whose weights are scaled by a vector, called as `(x, z)`.

    x is `(batch, …, n1)` and z `(batch, z_dim)`; the result is `(batch, …, n2)`. As `modconv` with `modtype='weight'`.
    """
    for name, value in (("n1", n1), ("n2", n2), ("z_dim", z_dim)):
        if value < 1:
            raise ValueError(f"{name} ({value}) must be at least 1")
    return _ModFc(n1, n2, z_dim, actv, demod)


class _ModSeq(nn.Module):
    def __init__(self, layers: Sequence[nn.Module]):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self._steered = [_takes_z(layer) for layer in layers]

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        for layer, steered in zip(self.layers, self._steered, strict=True):
            x = layer(x, z) if steered else layer(x)
        return x


def _takes_z(layer: nn.Module) -> bool:
    return isinstance(layer, _ModConv | _ModFc | _ModSeq | _ModResidual) or bool(getattr(layer, "takes_z", False))


def modseq(*layers: nn.Module) -> nn.Module:
    """Returns layers in sequence, called as `(x, z)`; z goes to those that take it.

    These are `modconv`, `modfc`, `modresblk`, `modseq`, and any module with an attribute `takes_z = True`.
    """
    return _ModSeq(layers)


class _ModResidual(nn.Module):
    """A sum of shortcut and branch, weighed so that their squares add up to one and the variance stays."""

    def __init__(self, main: nn.Module, shortcut: nn.Module | None):
        super().__init__()
        self.main, self.shortcut = main, shortcut

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        skip = x if self.shortcut is None else self.shortcut(x)
        out: Tensor = torch.add(skip * 0.8**0.5, self.main(x, z), alpha=0.2**0.5)
        return out


def modresblk(
    nc1: int, nc2: int, z_dim: int, stride: float = 1, actv: Activation = "lrelu", modtype: str = "weight"
) -> nn.Module:
    """Returns a residual block of two modulated 3×3 convolutions, called as `(x, z)`.

    Args:
        nc1: Channels in.
        nc2: Channels out.
        z_dim: Width of z.
        stride: Shrinks (2) or enlarges (0.5).
        actv: Between the convolutions, by name or a callable.
        modtype: As of `modconv`.

    Example:
        >>> modresblk(4, 8, 16, 2)(torch.randn(2, 4, 8, 8), torch.randn(2, 16)).shape
        torch.Size([2, 8, 4, 4])
    """
    main = modseq(modconv(nc1, nc2, z_dim, modtype, stride=stride, actv=actv), modconv(nc2, nc2, z_dim, modtype))
    skip = seq(resample(stride) if stride != 1 else None, conv(nc1, nc2, 1) if nc1 != nc2 else None)
    return _ModResidual(main, skip if len(skip) else None)
