"""The block of ConvNeXt."""

from torch import Tensor, nn

from ai.model.activation import Activation
from ai.model.arguments import check_real, check_whole
from ai.model.conv import conv
from ai.model.norm import layer
from ai.model.transformer import drop_path, layer_scale, mlp


class _ConvNeXt(nn.Module):
    def __init__(self, nc: int, k: int, hidden: int, actv: Activation, start: float | None, drop: float):
        super().__init__()
        self.conv = conv(nc, nc, k, groups=nc)
        self.norm = layer(nc, eps=1e-6)
        self.mlp = mlp(nc, hidden, actv)
        self.scale = None if start is None else layer_scale(nc, start)
        self.drop = drop_path(drop)

    def forward(self, x: Tensor) -> Tensor:
        y = self.mlp(self.norm(self.conv(x).permute(0, 2, 3, 1)))  # (batch, height, width, nc)
        if self.scale is not None:
            y = self.scale(y)
        out: Tensor = x + self.drop(y.permute(0, 3, 1, 2))
        return out


def convnext_blk(
    nc: int,
    k: int = 7,
    *,
    hidden: int | None = None,
    actv: Activation = "gelu",
    layer_scale: float | None = 1e-6,
    drop: float = 0.0,
) -> nn.Module:
    """Returns ConvNeXt's residual block: each channel convolved by itself, then an MLP of each pixel.

    Args:
        nc: Channels.
        k: Kernel size.
        hidden: Width inside the MLP; None for `4 · nc`.
        actv: Of the MLP.
        layer_scale: What a learned factor of each channel starts from; None for no such factor.
        drop: Probability of stochastic depth.

    Source: Liu et al., 2022, A ConvNet for the 2020s, figure 4.

    Example:
        >>> import torch
        >>> convnext_blk(8)(torch.zeros(2, 8, 6, 6)).shape
        torch.Size([2, 8, 6, 6])
    """
    check_whole(nc=nc, k=k)
    check_real(drop=drop)
    check_real(or_none=True, layer_scale=layer_scale)
    if nc < 1 or k < 1:
        raise ValueError(f"nc ({nc}) and k ({k}) must be at least 1")
    return _ConvNeXt(nc, k, 4 * nc if hidden is None else hidden, actv, layer_scale, drop)
