"""Stacks of blocks whose image size changes by powers of two while the channels grow or shrink between two bounds."""

from collections.abc import Callable

from torch import nn

from ai.model.arguments import check_whole

PyramidBlock = Callable[[int, int, int], nn.Module]


class _Pyramid(nn.Sequential):
    nc_in: int
    nc_out: int


def pyramid(size_in: int, size_out: int, nc_min: int, nc_max: int, block: PyramidBlock) -> nn.Module:
    """Returns blocks from images of `size_in` to images of `size_out`, each halving or doubling the size.

    The largest size has `nc_min` channels, and each halving doubles them up to `nc_max`. The result has `.nc_in` and
    `.nc_out`.

    Args:
        size_in: Height and width of the input.
        size_out: Height and width of the output, a power of two away.
        nc_min: Channels at the largest size.
        nc_max: Bound on the channels.
        block: `(size, nc1, nc2)`: the size of its input and its channels in and out.

    Example:
        >>> import torch
        >>> import ai.model as m
        >>> net = pyramid(32, 4, 16, 64, lambda size, nc1, nc2: m.conv(nc1, nc2, stride=2))
        >>> net.nc_in, net.nc_out, net(torch.zeros(1, 16, 32, 32)).shape
        (16, 64, torch.Size([1, 64, 4, 4]))
    """
    check_whole(size_in=size_in, size_out=size_out, nc_min=nc_min, nc_max=nc_max)
    large, small = max(size_in, size_out), min(size_in, size_out)
    steps = int(large // small).bit_length() - 1 if small > 0 else -1
    if steps < 1 or small << steps != large:
        raise ValueError(f"size_in ({size_in}) and size_out ({size_out}) must be a power of two apart")
    if not 1 <= nc_min <= nc_max:
        raise ValueError(f"nc_min ({nc_min}) must be at least 1 and at most nc_max ({nc_max})")
    sizes = [large >> i for i in range(steps + 1)]
    channels = [min(nc_min << i, nc_max) for i in range(steps + 1)]
    if size_in < size_out:
        sizes.reverse()
        channels.reverse()
    made = _Pyramid(*(block(sizes[i], channels[i], channels[i + 1]) for i in range(steps)))
    made.nc_in, made.nc_out = channels[0], channels[-1]
    return made
