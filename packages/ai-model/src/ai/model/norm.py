"""Normalisation layers: `norm.batch(nc)`, `norm.layer(dim)`, … or by name where a block takes `norm=`.

Group normalisation by name may say its number of groups: `"group:8"`.
"""

from collections.abc import Callable
from typing import TypeAlias

import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from ai.model.arguments import check_at_least, check_real, check_whole
from ai.model.init import mark_small

Norm: TypeAlias = str | Callable[[int], nn.Module] | None


def batch(nc: int, *, eps: float = 1e-5, momentum: float = 0.1, affine: bool = True) -> nn.Module:
    """Returns batch normalisation of `(batch, nc)` or `(batch, nc, height, width)`.

    Example:
        >>> import torch
        >>> batch(3)(torch.randn(8, 3, 4, 4)).shape
        torch.Size([8, 3, 4, 4])
    """
    check_at_least(1, nc=nc)
    check_real(eps=eps, momentum=momentum)
    return _Batch(nc, eps=eps, momentum=momentum, affine=affine)


def instance(nc: int, *, eps: float = 1e-5, affine: bool = False) -> nn.Module:
    """Returns instance normalisation of `(batch, nc, …)`: over all positions of each channel of each sample.

    Example:
        >>> import torch
        >>> round(instance(3)(torch.randn(8, 3, 16, 16))[0, 0].std(unbiased=False).item(), 3)
        1.0
    """
    check_at_least(1, nc=nc)
    check_real(eps=eps)
    return _Instance(nc, eps=eps, affine=affine)


def group(nc: int, n_groups: int | None = None, *, eps: float = 1e-5) -> nn.Module:
    """Returns group normalisation of `(batch, nc, …)`.

    Args:
        nc: Number of channels.
        n_groups: None for the most groups, up to 32, that divide `nc` and have at least 4 channels.
        eps: Added to the variance.

    Raises:
        ValueError: `n_groups` does not divide `nc`.

    Example:
        >>> group(64).num_groups, group(6, 2).num_groups
        (16, 2)
    """
    check_at_least(1, nc=nc)
    check_whole(or_none=True, n_groups=n_groups)
    check_real(eps=eps)
    if n_groups is None:
        n_groups = max(n for n in range(1, min(32, max(1, nc // 4)) + 1) if nc % n == 0)
    if n_groups < 1 or nc % n_groups:
        raise ValueError(f"n_groups ({n_groups}) must divide nc ({nc})")
    return nn.GroupNorm(n_groups, nc, eps=eps)


def layer(dim: int, *, eps: float = 1e-5, affine: bool = True, bias: bool = True) -> nn.Module:
    """Returns layer normalisation over the last axis, `(…, dim)`.

    Example:
        >>> import torch
        >>> layer(4)(torch.tensor([1.0, 1.0, 3.0, 3.0]))
        tensor([-1.0000, -1.0000,  1.0000,  1.0000], grad_fn=...)
    """
    check_at_least(1, dim=dim)
    check_real(eps=eps)
    return nn.LayerNorm(dim, eps=eps, elementwise_affine=affine, bias=bias)


def rms(dim: int, *, eps: float = 1e-6, affine: bool = True) -> nn.Module:
    """Returns root-mean-square normalisation over the last axis, `(…, dim)`.

    Example:
        >>> import torch
        >>> rms(2)(torch.tensor([3.0, 3.0]))
        tensor([1.0000, 1.0000], grad_fn=...)
    """
    check_at_least(1, dim=dim)
    check_real(eps=eps)
    return _RMS(dim, eps=eps, elementwise_affine=affine)


def pixel(nc: int | None = None, *, eps: float = 1e-8) -> nn.Module:
    """Returns the division of each pixel's (or row's) feature vector, axis 1, by its root mean square.

    Example:
        >>> import torch
        >>> pixel()(torch.full((1, 4, 1, 1), 5.0)).flatten()
        tensor([1., 1., 1., 1.])
    """
    check_whole(or_none=True, nc=nc)
    check_real(eps=eps)
    return _Pixel(eps)


class _Moved(nn.Module):
    """A normalisation whose features lie on another axis than the block's: 1 for the last, or the last for 1."""

    def __init__(self, norm: nn.Module):
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x.transpose(1, -1)).transpose(1, -1)
        return out

    def mark_small(self, scale: float) -> bool:
        return mark_small(self.norm, scale)


class _Batch(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation of any rank, since a block does not know how many axes follow."""

    def _check_input_dim(self, input: Tensor) -> None:
        _check_rank(input, 2, f"batch norm needs (batch, {self.num_features}, …)")


@torch.fx.wrap  # for torch.fx, which does not know sizes, a check is one step
def _check_rank(x: Tensor, least: int, need: str) -> None:
    if x.dim() < least:
        raise ValueError(f"{need}, got shape {tuple(x.shape)}")


class _Instance(nn.modules.instancenorm._InstanceNorm):
    """Instance normalisation of any rank, as `_Batch`."""

    def forward(self, x: Tensor) -> Tensor:
        _check_rank(x, 3, f"instance norm needs (batch, {self.num_features}, …)")
        return F.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)


class _RMS(nn.RMSNorm):
    """With its weight in the input's type: autocast leaves this operation out, and mixed types are slow."""

    def forward(self, x: Tensor) -> Tensor:
        weight = None if self.weight is None else self.weight.to(x.dtype)
        return F.rms_norm(x, self.normalized_shape, weight, self.eps)


class _Pixel(nn.Module):
    def __init__(self, eps: float):
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return x * (x.square().mean(1, keepdim=True) + self.eps).rsqrt()


KNOWN: dict[str, Callable[[int], nn.Module]] = {
    "batch": batch,
    "group": group,
    "instance": instance,
    "layer": layer,
    "pixel": pixel,
    "rms": rms,
}


def make(kind: Norm, nc: int, *, last: bool = False) -> nn.Module | None:
    """Returns the normalisation a block was asked for, or None for None.

    Args:
        kind: By name (`group:8` for group normalisation of 8 groups), or a callable, whose result is taken as it is.
        nc: Number of features.
        last: Whether the features lie on the last axis, as of tokens, instead of axis 1, as of images. A norm by name
            works on whichever it is.
    """
    if kind is None:
        return None
    if not isinstance(kind, str):
        return kind(nc)
    name, _, count = kind.partition(":")
    if name not in KNOWN:
        raise ValueError(f"norm ({kind!r}) must be one of {', '.join(sorted(KNOWN))}, a callable or None")
    if kind != name and not (name == "group" and count.isdecimal()):
        raise ValueError(f"norm ({kind!r}) must be a name alone, or group:N for N groups")
    made = group(nc, int(count)) if kind != name else KNOWN[name](nc)
    return made if last == (name in ("layer", "rms")) else _Moved(made)
