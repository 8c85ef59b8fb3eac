"""Residual convolution blocks."""

from torch import Tensor, nn

from ai.model.activation import Activation
from ai.model.activation import actv as make_actv
from ai.model.arguments import check_at_least, check_real, check_whole
from ai.model.container import res, seq
from ai.model.conv import conv
from ai.model.elementwise import global_avg, resample
from ai.model.linear import fc
from ai.model.norm import Norm


class _SqueezeExcite(nn.Module):
    def __init__(self, nc: int, reduction: int):
        super().__init__()
        hidden = max(nc // reduction, min(nc, 8))  # one or two units might all start dead
        self.weigh = seq(global_avg(), fc(nc, hidden, actv="relu"), fc(hidden, nc, actv="sigmoid"))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x * self.weigh(x).unsqueeze(2).unsqueeze(3)
        return out

    def mark_small(self, scale: float) -> bool:
        return False  # a gate: the layer before it sets the size of a branch


def se(nc: int, reduction: int = 16) -> nn.Module:
    """Returns squeeze-and-excitation: each channel scaled by a factor in (0, 1) that all channels decide.

    Args:
        nc: Number of channels.
        reduction: `nc / reduction` units lie between, but 8 at least, or `nc` if that is less.

    Source: Hu, Shen and Sun, 2018, Squeeze-and-Excitation Networks.

    Example:
        >>> import torch
        >>> se(16)(torch.zeros(2, 16, 8, 8)).shape
        torch.Size([2, 16, 8, 8])
    """
    check_at_least(1, nc=nc, reduction=reduction)
    return _SqueezeExcite(nc, reduction)


def resblk(
    nc1: int,
    nc2: int,
    stride: float = 1,
    actv: Activation = "mish",
    norm: Norm = "batch",
    se: bool = True,
) -> nn.Module:
    """Returns a residual block of two 3×3 convolutions: `(batch, nc1, h, w)` to `(batch, nc2, h / stride, w / stride)`.

    Args:
        nc1: Channels in.
        nc2: Channels out.
        stride: Shrinks (2) or enlarges (0.5).
        actv: Activation by name, or a callable.
        norm: Normalisation by name, or a callable from a channel count.
        se: Whether to end the branch with squeeze-and-excitation.

    Example:
        >>> import torch
        >>> resblk(4, 8, stride=2)(torch.randn(2, 4, 8, 8)).shape
        torch.Size([2, 8, 4, 4])
    """
    # The branch starts at half the shortcut, the gate of squeeze-and-excitation being a half at first: with less, the
    # activation after the sum shrinks a stack of blocks.
    check_whole(nc1=nc1, nc2=nc2)
    check_real(stride=stride)
    excite = _SqueezeExcite(nc2, 16) if se else None
    main = seq(
        conv(nc1, nc2, stride=stride, actv=actv, norm=norm),
        conv(nc2, nc2, norm=norm, init_gain=1.0 if se else 0.5),
        excite,
    )
    skip = seq(resample(stride) if stride != 1 else None, conv(nc1, nc2, 1) if nc1 != nc2 else None)
    return seq(res(main, skip if len(skip) else None, init_gain=1), make_actv(actv))


def resblk_group(
    n: int, nc1: int, nc2: int, stride: float = 1, actv: Activation = "mish", norm: Norm = "batch", se: bool = True
) -> nn.Module:
    """Returns `n` residual blocks: the first changes channels and size, the others keep them.

    Example:
        >>> import torch
        >>> resblk_group(3, 4, 8, stride=0.5)(torch.randn(2, 4, 8, 8)).shape
        torch.Size([2, 8, 16, 16])
    """
    check_at_least(1, n=n)
    first = resblk(nc1, nc2, stride, actv, norm, se)
    return seq(first, *(resblk(nc2, nc2, 1, actv, norm, se) for _ in range(n - 1)))
