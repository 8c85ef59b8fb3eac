"""The convolution block: blur, resample, convolve, normalise, noise, activation, gain, clamp, in this order."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ai.model import f
from ai.model import norm as norms
from ai.model.activation import Activation, actv_gain
from ai.model.activation import actv as make_actv
from ai.model.arguments import check_at_least, check_real, check_whole, elsewhere
from ai.model.elementwise import noise as make_noise
from ai.model.init import draw_normal, draw_weight, fill, init_module, like_torchs, mark_small
from ai.model.norm import Norm


class _Conv(nn.Module):
    def __init__(
        self,
        nc1: int,
        nc2: int,
        k: int,
        stride: float,
        actv: Activation,
        norm: Norm,
        gain: float | None,
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
        self.gain, self.clamp, self.scale_w, self.lr_mult = 1.0 if gain is None else gain, clamp, scale_w, lr_mult
        self.groups = groups
        self.weight_scale = lr_mult * (he_constant(nc1 // groups * k**2, actv, gain) if scale_w else 1.0)
        self.weight = nn.Parameter(torch.empty(nc2, nc1 // groups, k, k))
        self.bias = nn.Parameter(torch.empty(nc2)) if bias else None
        self.norm = norms.make(norm, nc2)
        self.noise = make_noise() if noise else None
        self.actv = make_actv(actv)
        self.init_gain, self._follows = 1.0, actv if isinstance(actv, str) else None
        if init_gain != 1:
            if not self.mark_small(init_gain):
                raise ValueError(
                    f"init_gain ({init_gain}) must be 1 with norm {norm!r}, which has no scale and undoes small weights"
                )
            if self.norm is not None:
                init_module(self.norm)
        self.init_params(None)

    def init_params(self, generator: torch.Generator | None) -> None:
        if self.scale_w:
            draw_normal(self.weight, self.init_gain / self.lr_mult, generator)
        else:
            draw_weight(self.weight, self._follows, self.init_gain / self.lr_mult, generator)
        if self.bias is not None:
            fill(self.bias, 0.0)

    def mark_small(self, scale: float) -> bool:
        if self.norm is not None:  # it would undo small weights
            return mark_small(self.norm, scale)
        self.init_gain = scale
        return True

    def forward(self, x: Tensor) -> Tensor:
        weight: Tensor = self.weight if self.weight_scale == 1 else self.weight * self.weight_scale
        bias: Tensor | None = self.bias
        if bias is not None and self.lr_mult != 1:
            bias = bias * self.lr_mult
        x = f.conv(x, weight, bias, self.stride, kernel=self.blur, padtype=self.padtype, groups=self.groups)
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


def he_constant(fan_in: int, actv: Activation, gain: float | None) -> float:
    """Returns what equalised weights are scaled by; an explicit gain takes the place of the activation's."""
    return (actv_gain(actv) if gain is None else 1.0) / math.sqrt(fan_in)


@elsewhere(
    activation="actv",
    filters="nc2",
    in_channels="nc1",
    kernel_size="k",
    out_channels="nc2",
    padding="chosen so that the size stays, or is divided by stride",
    padding_mode="padtype",
    use_bias="bias",
)
def conv(
    nc1: int,
    nc2: int,
    k: int = 3,
    stride: float = 1,
    actv: Activation = None,
    norm: Norm = None,
    *,
    gain: float | None = None,
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

    A convolution alone, with the same border on both sides, is a `torch.nn.Conv2d`; the others have the same names of
    parameters, and `m.to_torch` makes torch modules of them.

    Args:
        nc1: Channels in.
        nc2: Channels out.
        k: Kernel size. An odd one pads the border by `k // 2`; an even one by `k - stride` in all (none if that is
            negative), the odd pixel after: k = 4 with stride 2 pads one pixel, k = 2 with stride 2 none.
        stride: A whole number to shrink by striding, or one over a whole number to enlarge before the convolution.
        actv: Activation by name (`leaky_relu` has slope 0.2), or a callable.
        norm: Normalisation by name, or a callable from a channel count.
        gain: Multiplies the result; None for 1. With `scale_w` it takes the place of the activation's own gain.
        clamp: Bounds the result to [-clamp, clamp].
        noise: Whether to add noise with a learned strength; see `noise`.
        blur: Taps of a low-pass filter that the input goes through first, such as (1, 3, 3, 1); where the stride
            enlarges, the filter takes the place of nearest neighbours. Filter and convolution share one border.
        bias: Whether there is one; None means: unless batch or instance norm follows and would cancel it.
        padtype: `zeros`, `reflect`, `replicate` or `circular`; `none` pads nothing, so that the result is
            `(height - k) // stride + 1` high.
        scale_w: Equalised learning rate, as of `fc`.
        lr_mult: Multiplies the learning rate of this layer.
        groups: Groups of channels that are convolved apart; `nc1` for a depthwise convolution.
        init_gain: Multiplies what the block gives at first; below 1 for the end of a residual branch.

    Example:
        >>> conv(3, 8, stride=0.5, norm="batch", actv="mish")(torch.zeros(2, 3, 8, 8)).shape
        torch.Size([2, 8, 16, 16])
    """
    check_at_least(1, nc1=nc1, nc2=nc2, k=k)
    check_whole(groups=groups)
    check_real(stride=stride, lr_mult=lr_mult, init_gain=init_gain)
    check_real(or_none=True, gain=gain, clamp=clamp)
    f.whole_factor(stride)
    if padtype not in f.PADTYPES:
        raise ValueError(f"padtype ({padtype!r}) must be one of {', '.join(f.PADTYPES)}")
    taps = None if blur is None else tuple(blur)
    if groups < 1 or nc1 % groups or nc2 % groups:
        raise ValueError(f"groups ({groups}) must divide nc1 ({nc1}) and nc2 ({nc2})")
    if not lr_mult > 0:
        raise ValueError(f"lr_mult ({lr_mult}) must be above 0")
    if clamp is not None and not clamp > 0:
        raise ValueError(f"clamp ({clamp}) must be above 0 or None")
    if taps is not None:
        f.check_filter(taps)
    bias = norm not in ("batch", "instance") if bias is None else bias
    before, after = f.border(k, round(stride)) if stride >= 1 else (0, 1)
    if stride >= 1 and padtype == "none":
        before = after = 0
    more = (actv, norm, gain, clamp, taps)
    if before == after and not (noise or scale_w or lr_mult != 1) and all(option is None for option in more):
        return like_torchs(
            nn.Conv2d, nc1, nc2, k, round(stride), before, groups=groups, bias=bias, init_scale=init_gain,
            padding_mode="zeros" if padtype == "none" else padtype,
        )  # fmt: skip
    return _Conv(
        nc1, nc2, k, stride, actv, norm, gain, clamp, noise, taps, bias, padtype, scale_w, lr_mult, groups, init_gain
    )
