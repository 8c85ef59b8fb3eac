"""Convolutions of sequences, images and volumes, as torch's own modules.

Axes: x is `(batch, nc, *sizes)` with as many sizes as the rank.
"""

from collections.abc import Sequence

from torch import nn

from ai.model import f
from ai.model import norm as norms
from ai.model.activation import Activation
from ai.model.activation import actv as make_actv
from ai.model.arguments import check_at_least, check_real, check_whole
from ai.model.init import init_module, like_torchs, mark_small
from ai.model.norm import Norm

_CONVS: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: dict[int, type[nn.Module]] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_PADS: dict[tuple[str, int], type[nn.Module]] = {
    (padtype, rank): getattr(nn, f"{name}Pad{rank}d")
    for padtype, name in (
        ("zeros", "Zero"),
        ("reflect", "Reflection"),
        ("replicate", "Replication"),
        ("circular", "Circular"),
    )
    for rank in _CONVS
}

Sizes = int | Sequence[int]


def conv_nd(
    rank: int,
    nc1: int,
    nc2: int,
    k: Sizes = 3,
    stride: Sizes = 1,
    actv: Activation = None,
    norm: Norm = None,
    *,
    dilation: Sizes = 1,
    padtype: str = "zeros",
    groups: int = 1,
    bias: bool | None = None,
    init_gain: float = 1.0,
) -> nn.Module:
    """Returns a convolution of rank 1, 2 or 3, then a norm, then an activation; sizes become `size / stride`.

    It is torch's module, in an `nn.Sequential` if more than it is asked for.

    Args:
        rank: 1 for sequences, 2 for images, 3 for volumes.
        nc1: Channels in.
        nc2: Channels out.
        k: Kernel size, of all axes or of each.
        stride: Step, of all axes or of each.
        actv: Activation by name (`leaky_relu` has slope 0.2), or a callable.
        norm: Normalisation by name, or a callable from a channel count.
        dilation: Distance between the taps of the kernel, of all axes or of each.
        padtype: `zeros`, `reflect`, `replicate` or `circular` borders, as wide as of `conv`; `none` for none.
        groups: Groups of channels that are convolved apart.
        bias: Whether there is one; None means: unless batch or instance norm follows and would cancel it.
        init_gain: Multiplies what it gives at first.

    Source: Yu and Koltun, 2016, Multi-Scale Context Aggregation by Dilated Convolutions (dilation).

    Example:
        >>> import torch
        >>> conv_nd(1, 3, 8, 5, 2, "relu")(torch.zeros(2, 3, 16)).shape
        torch.Size([2, 8, 8])
        >>> conv_nd(2, 3, 8, (1, 7), dilation=(1, 2))(torch.zeros(2, 3, 16, 16)).shape
        torch.Size([2, 8, 16, 16])
    """
    _check(rank, nc1, nc2, groups)
    if padtype not in f.PADTYPES:
        raise ValueError(f"padtype ({padtype!r}) must be one of {', '.join(f.PADTYPES)}")
    check_real(init_gain=init_gain)
    sizes, steps = _each("k", k, rank), _each("stride", stride, rank)
    gaps = _each("dilation", dilation, rank)
    borders = [
        (0, 0) if padtype == "none" else f.border(gap * (size - 1) + 1, step)
        for size, step, gap in zip(sizes, steps, gaps, strict=True)
    ]
    even = all(before == after for before, after in borders)
    bias = norm not in ("batch", "instance") if bias is None else bias
    made = like_torchs(
        _CONVS[rank], nc1, nc2, sizes, steps, [before for before, _ in borders] if even else 0, gaps, groups, bias,
        "zeros" if padtype == "none" or not even else padtype,
        init_actv=actv, init_scale=init_gain if norm is None else 1.0,
    )  # fmt: skip
    # torch lists paddings from the last axis on.
    pad = None if even else _PADS[padtype, rank]([side for border in reversed(borders) for side in border])
    return _sequence(pad, made, nc2, norm, actv, init_gain)


def conv_transposed(
    nc1: int,
    nc2: int,
    k: int = 4,
    stride: int = 2,
    actv: Activation = None,
    norm: Norm = None,
    *,
    rank: int = 2,
    groups: int = 1,
    bias: bool | None = None,
    init_gain: float = 1.0,
) -> nn.Module:
    """Returns a transposed convolution, then a norm, then an activation; sizes become `size * stride`.

    Args:
        nc1: Channels in.
        nc2: Channels out.
        k: Kernel size, at least the stride; a multiple of it leaves no checkerboard.
        stride: How many times larger the result is.
        actv: As of `conv_nd`.
        norm: As of `conv_nd`.
        rank: 1 for sequences, 2 for images, 3 for volumes.
        groups: Groups of channels that are convolved apart.
        bias: As of `conv_nd`.
        init_gain: Multiplies what it gives at first.

    Source: Odena, Dumoulin and Olah, 2016, Deconvolution and Checkerboard Artifacts.

    Example:
        >>> import torch
        >>> conv_transposed(8, 3)(torch.zeros(2, 8, 4, 4)).shape
        torch.Size([2, 3, 8, 8])
    """
    _check(rank, nc1, nc2, groups)
    check_whole(k=k, stride=stride)
    check_real(init_gain=init_gain)
    if stride < 1 or k < stride:
        raise ValueError(f"k ({k}) must be at least stride ({stride}), which must be at least 1")
    bias = norm not in ("batch", "instance") if bias is None else bias
    made = like_torchs(
        _TRANSPOSED[rank], nc1, nc2, k, stride, (k - stride + 1) // 2, (k - stride) % 2, groups, bias,
        init_actv=actv, init_scale=init_gain if norm is None else 1.0,
    )  # fmt: skip
    return _sequence(None, made, nc2, norm, actv, init_gain)


def conv_separable(
    nc1: int, nc2: int, k: Sizes = 3, stride: Sizes = 1, actv: Activation = None, norm: Norm = None, *, rank: int = 2
) -> nn.Module:
    """Returns a convolution of each channel by itself, then one of each pixel; norm and activation follow both.

    Source: Howard et al., 2017, MobileNets, section 3.1.

    Example:
        >>> import torch
        >>> conv_separable(4, 8, stride=2, actv="relu", norm="batch")(torch.zeros(2, 4, 8, 8)).shape
        torch.Size([2, 8, 4, 4])
    """
    return nn.Sequential(
        conv_nd(rank, nc1, nc1, k, stride, actv, norm, groups=nc1), conv_nd(rank, nc1, nc2, 1, 1, actv, norm)
    )


def pool(k: int = 2, stride: int | None = None, kind: str = "max", *, rank: int = 2) -> nn.Module:
    """Returns the largest (`max`) or the mean (`avg`) of each `k` pixels along all axes, every `stride` pixels.

    Args:
        k: Size of a window; an odd one is centred on its pixel, with what lies beyond the border left out.
        stride: None for k.
        kind: `max` or `avg`.
        rank: 1 for sequences, 2 for images, 3 for volumes.

    Example:
        >>> import torch
        >>> pool()(torch.zeros(2, 3, 8, 8)).shape, pool(3, 2, "avg")(torch.zeros(2, 3, 8, 8)).shape
        (torch.Size([2, 3, 4, 4]), torch.Size([2, 3, 4, 4]))
    """
    check_whole(rank=rank, k=k)
    check_whole(or_none=True, stride=stride)
    if rank not in _CONVS:
        raise ValueError(f"rank ({rank}) must be 1, 2 or 3")
    if kind not in ("max", "avg"):
        raise ValueError(f"kind ({kind!r}) must be max or avg")
    stride = k if stride is None else stride
    if k < 1 or stride < 1:
        raise ValueError(f"k ({k}) and stride ({stride}) must be at least 1")
    padding = k // 2 if k % 2 and stride < k else 0
    made: nn.Module
    if kind == "max":
        made = getattr(nn, f"MaxPool{rank}d")(k, stride, padding)
    else:
        made = getattr(nn, f"AvgPool{rank}d")(k, stride, padding, count_include_pad=False)
    return made


def _sequence(
    pad: nn.Module | None, made: nn.Module, nc: int, norm: Norm, actv: Activation, init_gain: float
) -> nn.Module:
    normed = norms.make(norm, nc)
    if normed is not None and init_gain != 1:
        if not mark_small(normed, init_gain):
            raise ValueError(f"init_gain ({init_gain}) must be 1 with norm {norm!r}, which has no scale of its own")
        init_module(normed)
    parts = [part for part in (pad, made, normed, make_actv(actv)) if part is not None]
    return parts[0] if len(parts) == 1 else nn.Sequential(*parts)


def _check(rank: int, nc1: int, nc2: int, groups: int) -> None:
    check_at_least(1, nc1=nc1, nc2=nc2)
    check_whole(rank=rank, groups=groups)
    if rank not in _CONVS:
        raise ValueError(f"rank ({rank}) must be 1, 2 or 3")
    if groups < 1 or nc1 % groups or nc2 % groups:
        raise ValueError(f"groups ({groups}) must divide nc1 ({nc1}) and nc2 ({nc2})")


def _each(name: str, value: Sizes, rank: int) -> tuple[int, ...]:
    """Returns a size for each axis."""
    sizes = tuple(value) if isinstance(value, Sequence) else (value,) * rank
    for size in sizes:
        check_whole(**{name: size})
    if len(sizes) != rank or any(size < 1 for size in sizes):
        raise ValueError(f"{name} ({value}) must be a whole number above 0, or {rank} of them")
    return sizes
