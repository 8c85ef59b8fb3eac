"""Layers that a second input steers: each is called as `(x, z)`.

Axes: x is `(batch, nc, height, width)` for convolutions and `(batch, …, n)` for `modfc`; z is `(batch, z_dim)`.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ai.model import f
from ai.model.activation import Activation, actv_gain, is_centred
from ai.model.activation import actv as make_actv
from ai.model.arguments import check_at_least, check_module, check_real
from ai.model.container import seq
from ai.model.conv import conv, he_constant
from ai.model.elementwise import noise as make_noise
from ai.model.elementwise import resample
from ai.model.init import draw_normal, draw_weight, fill
from ai.model.linear import fc

_MODTYPES = ("weight", "adalin")

# Styles start as 1 + N(0, ¼²), with z that is N(0, 1): more would let the mean of activations through weights that sum
# to zero, and turn the sign of some channels.
_STYLE_STD = 0.25


def _gain_after(actv: Activation, fan_in: int) -> float:
    """Returns the gain for an activation whose weights are centred before, but not after, their modulation."""
    plain = actv_gain(actv, after=True)
    if not is_centred(actv, fan_in):
        return plain
    share = 1 / (1 + _STYLE_STD**2)  # of the squared mean that does not pass
    variance = 1 / actv_gain(actv, after=True, centred=True) ** 2
    return 1 / math.sqrt(share * variance + (1 - share) / plain**2)


class _AdaLin(nn.Module):
    """A learned mixture of instance and layer normalisation, scaled and shifted by z."""

    def __init__(self, nc: int, z_dim: int, eps: float = 1e-5):
        super().__init__()
        self.nc, self.eps = nc, eps
        self.rho = nn.Parameter(torch.full((nc,), 0.9))
        self.style = fc(z_dim, 2 * nc, init_gain=_STYLE_STD)

    def init_params(self, generator: torch.Generator | None) -> None:
        fill(self.rho, 0.9)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        scale, shift = self.style(z).unsqueeze(2).unsqueeze(3).chunk(2, 1)
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
        fan_in, by_weight = nc1 * k**2, modtype == "weight"
        self._follows = actv if isinstance(actv, str) else None
        if gain is not None:
            self.gain = gain
        elif by_weight and not demod:  # the weights keep their size, and carry the gain themselves
            self.gain = 1.0
        else:
            self.gain = _gain_after(actv, fan_in) if by_weight and not scale_w else actv_gain(actv, after=True)
        self.clamp, self.scale_w, self.lr_mult = clamp, scale_w, lr_mult
        self.weight_scale = lr_mult * (he_constant(fan_in, actv, gain) if scale_w else 1.0)
        self.weight = nn.Parameter(torch.empty(nc2, nc1, k, k))
        self.bias = nn.Parameter(torch.empty(nc2)) if bias else None
        style_std = 1.0 if scale_w else _STYLE_STD
        self.style = fc(z_dim, nc1, bias_init=1.0, scale_w=scale_w, init_gain=style_std) if by_weight else None
        self.adalin = None if by_weight else _AdaLin(nc2, z_dim)
        self.noise = make_noise() if noise else None
        self.actv = make_actv(actv)
        self.init_params(None)

    def init_params(self, generator: torch.Generator | None) -> None:
        if self.scale_w:
            draw_normal(self.weight, 1 / self.lr_mult, generator)
        else:
            draw_weight(self.weight, self._follows, 1 / self.lr_mult, generator)
        if self.bias is not None:
            fill(self.bias, 0.0)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        weight: Tensor = self.weight if self.weight_scale == 1 else self.weight * self.weight_scale
        bias: Tensor | None = self.bias
        if bias is not None and self.lr_mult != 1:
            bias = bias * self.lr_mult
        if self.style is not None:
            x = f.modconv(x, weight, self.style(z), bias, self.stride, demod=self.demod, kernel=self.blur)
        else:
            x = f.conv(x, weight, bias, self.stride, kernel=self.blur)
        if self.adalin is not None:
            x = self.adalin(x, z)
        if self.noise is not None:
            x = self.noise(x)
        if self.actv is not None:
            x = self.actv(x)
        if self.gain != 1:
            x = x * self.gain
        return x if self.clamp is None else x.clamp(-self.clamp, self.clamp)

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
        k: Kernel size; the border is padded as of `conv`.
        stride: A whole number to shrink, or one over a whole number to enlarge first.
        actv: Activation by name, or a callable.
        demod: Whether `weight` divides by the norm; False for a projection to RGB.
        gain: Multiplies the result; None for the activation's gain where demodulation or normalisation would undo one
            in the weights, else 1.
        clamp: Bounds the result to [-clamp, clamp].
        noise: Whether to add noise with a learned strength, before the activation.
        blur: Taps of a low-pass filter that the input goes through first; where the stride enlarges, the filter takes
            the place of nearest neighbours.
        bias: Whether there is one.
        scale_w: Equalised learning rate, as of `fc`, of the affine function too.
        lr_mult: Multiplies the learning rate of the convolution.

    Sources: Karras et al., 2020, Analyzing and Improving the Image Quality of StyleGAN, section 2.2 (weight, see
    `m.f.modconv`); Kim et al., 2020, U-GAT-IT, section 2.1 (adalin).

    Example:
        >>> modconv(4, 8, 16, stride=0.5, actv="lrelu")(torch.randn(2, 4, 8, 8), torch.randn(2, 16)).shape
        torch.Size([2, 8, 16, 16])
    """
    check_at_least(1, nc1=nc1, nc2=nc2, z_dim=z_dim, k=k)
    check_real(stride=stride, lr_mult=lr_mult)
    check_real(or_none=True, gain=gain, clamp=clamp)
    if modtype not in _MODTYPES:
        raise ValueError(f"modtype ({modtype!r}) must be one of {', '.join(_MODTYPES)}")
    f.whole_factor(stride)
    if not lr_mult > 0:
        raise ValueError(f"lr_mult ({lr_mult}) must be above 0")
    if clamp is not None and not clamp > 0:
        raise ValueError(f"clamp ({clamp}) must be above 0 or None")
    taps = None if blur is None else tuple(blur)
    if taps is not None:
        f.check_filter(taps)
    if modtype == "adalin" and not demod:
        raise ValueError("demod (False) must be left at True for modtype 'adalin', which has nothing to demodulate")
    return _ModConv(nc1, nc2, z_dim, modtype, k, stride, actv, demod, gain, clamp, noise, taps, bias, scale_w, lr_mult)


class _ModFc(nn.Module):
    def __init__(self, n1: int, n2: int, z_dim: int, actv: Activation, demod: bool):
        super().__init__()
        self.n1, self.n2, self.demod = n1, n2, demod
        self.weight = nn.Parameter(torch.empty(n2, n1))
        self.bias = nn.Parameter(torch.empty(n2))
        self.style = fc(z_dim, n1, bias_init=1.0, init_gain=_STYLE_STD)
        self.actv, self._follows = make_actv(actv), actv if isinstance(actv, str) else None
        # Demodulation undoes a gain in the weights.
        self.gain = _gain_after(actv, n1) if demod else 1.0
        self.init_params(None)

    def init_params(self, generator: torch.Generator | None) -> None:
        draw_weight(self.weight, self._follows, 1.0, generator)
        fill(self.bias, 0.0)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        style = self.style(z)
        scale = (F.linear(style.square(), self.weight.square()) + 1e-8).rsqrt() if self.demod else None
        for _ in range(x.ndim - 2):
            style, scale = style.unsqueeze(1), None if scale is None else scale.unsqueeze(1)
        x = F.linear(x * style, self.weight)
        if scale is not None:
            x = x * scale
        x = x + self.bias
        if self.actv is not None:
            x = self.actv(x)
        return x if self.gain == 1 else x * self.gain


def modfc(n1: int, n2: int, z_dim: int, actv: Activation = None, *, demod: bool = True) -> nn.Module:
    """Returns a fully-connected layer whose weights are scaled by a vector, called as `(x, z)`.

    x is `(batch, …, n1)` and z `(batch, z_dim)`; the result is `(batch, …, n2)`. As `modconv` with `modtype='weight'`.

    Example:
        >>> modfc(4, 8, 16, actv="lrelu")(torch.randn(2, 4), torch.randn(2, 16)).shape
        torch.Size([2, 8])
    """
    check_at_least(1, n1=n1, n2=n2, z_dim=z_dim)
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

    Example:
        >>> net = modseq(conv(3, 4), modconv(4, 4, 16, actv="lrelu"), modconv(4, 3, 16, k=1, demod=False))
        >>> net(torch.randn(2, 3, 8, 8), torch.randn(2, 16)).shape
        torch.Size([2, 3, 8, 8])
    """
    check_module(**{f"layers[{index}]": layer for index, layer in enumerate(layers)})
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
