"""Tokens and where they stand: embeddings, registers, positions that are added, rotations of queries and keys."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from ai.model.arguments import check_at_least, check_real, check_whole
from ai.model.init import draw_normal, fill
from ai.model.tokens.rotary import Rotary


def sinusoid(n: int, dim: int, base: float = 10_000.0) -> Tensor:
    """Returns `(n, dim)` sines and cosines of positions 0 … n - 1, wavelengths from 2π to `base` · 2π.

    Source: Vaswani et al., 2017, Attention Is All You Need, section 3.5; sines first, then cosines.

    Example:
        >>> sinusoid(3, 4)[0]
        tensor([0., 0., 1., 1.])
    """
    check_whole(n=n, dim=dim)
    check_real(base=base)
    if dim < 2 or dim % 2:
        raise ValueError(f"dim ({dim}) must be even and at least 2")
    if not base > 0:
        raise ValueError(f"base ({base}) must be above 0")
    frequencies = torch.exp(torch.arange(dim // 2) * (-math.log(base) / (dim // 2)))
    angles = torch.arange(n)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], 1)


def sinusoid_2d(height: int, width: int, dim: int, base: float = 10_000.0) -> Tensor:
    """Returns `(height · width, dim)`: half of the features for the row, half for the column.

    Example:
        >>> sinusoid_2d(2, 3, 8).shape
        torch.Size([6, 8])
    """
    check_whole(height=height, width=width, dim=dim)
    if dim % 4:
        raise ValueError(f"dim ({dim}) must be a multiple of 4")
    rows, columns = sinusoid(height, dim // 2, base), sinusoid(width, dim // 2, base)
    return torch.cat([rows.repeat_interleave(width, 0), columns.repeat(height, 1)], 1)


def rotate(x: Tensor, start: int = 0, base: float = 10_000.0) -> Tensor:
    """Returns `(B, H, T, D)` queries or keys, each pair of features (i, i + D/2) turned by its position's angle.

    Source: Su et al., 2021, RoFormer, equation 34, with the halves instead of neighbours as pairs.

    Example:
        >>> x = torch.ones(1, 1, 3, 2)
        >>> torch.allclose(rotate(x).norm(dim=-1), x.norm(dim=-1)), bool((rotate(x)[:, :, 0] == x[:, :, 0]).all())
        (True, True)
    """
    return Rotary(base).rotate(x, start)


class _Position(nn.Module):
    def __init__(self, n: int, dim: int, make_table: Callable[[], Tensor] | None, std: float):
        super().__init__()
        self.n, self.dim, self.std, self.make_table = n, dim, std, make_table
        self.table: Tensor
        if make_table is None:
            self.table = nn.Parameter(torch.empty(n, dim))
        else:
            self.register_buffer("table", torch.empty(n, dim), persistent=False)
        self.init_params(None)

    def init_params(self, generator: torch.Generator | None) -> None:
        if self.make_table is None:
            draw_normal(self.table, self.std, generator)
        elif not self.table.is_meta:
            with torch.device("cpu"):
                fill(self.table, self.make_table())

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        stop = start + x.shape[1]
        _check_stop(stop, self.n)
        return x + self.table[start:stop].to(x.dtype)


@torch.fx.wrap  # for torch.fx, which does not know sizes, a check is one step
def _check_stop(stop: int, n: int) -> None:
    if stop > n:
        raise ValueError(f"x must end at position {n} at most, not at {stop}")


@torch.fx.wrap
def _check_patches(x: Tensor, patch: int) -> None:
    if x.dim() != 4:
        raise ValueError(f"x must be (batch, nc, height, width), got {tuple(x.shape)}")
    if x.shape[2] % patch or x.shape[3] % patch:
        raise ValueError(f"patch ({patch}) must divide the image's size ({x.shape[2]} x {x.shape[3]})")


def pos_emb(n: int | tuple[int, int], dim: int, kind: str = "learned", *, std: float = 0.02) -> nn.Module:
    """Returns the module that adds positions to `(batch, time, dim)` tokens, called as `(x, start=0)`.

    Args:
        n: Number of positions, or (height, width) of a grid whose tokens lie row by row.
        dim: Width of a token.
        kind: `learned`, `sinusoidal`, or `2d` (sinusoidal by row and column; n must be a pair).
        std: What a learned embedding is drawn with.

    Example:
        >>> pos_emb((4, 4), 8, "2d")(torch.zeros(2, 16, 8)).shape
        torch.Size([2, 16, 8])
    """
    kinds = ("learned", "sinusoidal", "2d")
    if kind not in kinds:
        raise ValueError(f"kind ({kind!r}) must be one of {', '.join(kinds)}")
    check_real(std=std)
    check_whole(dim=dim, **({"n": n} if not isinstance(n, tuple) else {"height": n[0], "width": n[1]}))
    count = n[0] * n[1] if isinstance(n, tuple) else n
    if count < 1 or dim < 1:
        raise ValueError(f"n ({n}) and dim ({dim}) must be at least 1")
    if kind != "learned" and dim % (4 if kind == "2d" else 2):
        raise ValueError(f"dim ({dim}) must be a multiple of {4 if kind == '2d' else 2} for kind {kind!r}")
    if kind == "learned":
        return _Position(count, dim, None, std)
    if kind == "sinusoidal":
        return _Position(count, dim, partial(sinusoid, count, dim), std)
    if isinstance(n, int):
        raise ValueError(f"n ({n}) must be (height, width) for kind '2d'")
    return _Position(count, dim, partial(sinusoid_2d, *n, dim), std)


@torch.fx.wrap  # for torch.fx, which does not know types, a check is one step
def _checked_indices(x: Tensor) -> Tensor:
    if x.is_floating_point() or x.is_complex():
        raise ValueError(f"x must be whole numbers, got {x.dtype}: give x.long()")
    return x.long()


class _Embed(nn.Embedding):
    def __init__(self, n: int, dim: int, std: float):
        super().__init__(n, dim, _weight=torch.empty(n, dim))
        self.std = std
        self.init_params(None)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if "num_embeddings" not in vars(self):  # as pickled structures of earlier versions have it
            fresh = nn.Embedding(self.weight.shape[0], self.weight.shape[1], device="meta")
            vars(self).update({key: value for key, value in vars(fresh).items() if key not in vars(self)})

    def init_params(self, generator: torch.Generator | None) -> None:
        draw_normal(self.weight, self.std, generator)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(_checked_indices(input))


def embed(n: int, dim: int, *, std: float = 1.0) -> nn.Module:
    """Returns a learned vector for each of n integers: `(…)` to `(…, dim)`; uint8 indices work too.

    Example:
        >>> embed(10, 4)(torch.tensor([[1, 2, 3]])).shape
        torch.Size([1, 3, 4])
    """
    check_whole(n=n, dim=dim)
    check_real(std=std)
    if n < 1 or dim < 1:
        raise ValueError(f"n ({n}) and dim ({dim}) must be at least 1")
    return _Embed(n, dim, std)


@torch.fx.wrap
def _check_tokens(x: Tensor, dim: int) -> None:
    if x.dim() != 3 or x.shape[2] != dim:
        raise ValueError(f"x must be (batch, time, {dim}), got {tuple(x.shape)}")


class _Registers(nn.Module):
    def __init__(self, n: int, dim: int, std: float):
        super().__init__()
        self.std = std
        self.value = nn.Parameter(torch.empty(n, dim))
        self.init_params(None)

    def init_params(self, generator: torch.Generator | None) -> None:
        draw_normal(self.value, self.std, generator)

    def forward(self, x: Tensor) -> Tensor:
        _check_tokens(x, self.value.shape[1])
        return torch.cat([self.value.to(x.dtype).expand(x.shape[0], -1, -1), x], 1)

    def extra_repr(self) -> str:
        return f"{self.value.shape[0]}, {self.value.shape[1]}"


def registers(n: int, dim: int, *, std: float = 0.02) -> nn.Module:
    """Returns the module that puts n learned tokens before others: `(batch, time, dim)` to `(batch, n + time, dim)`.

    One is a class token; several are registers, in which a transformer keeps what belongs to no place.

    Source: Darcet et al., 2024, Vision Transformers Need Registers, section 3.

    Example:
        >>> registers(4, 8)(torch.zeros(2, 5, 8)).shape
        torch.Size([2, 9, 8])
    """
    check_whole(n=n, dim=dim)
    check_real(std=std)
    if n < 1 or dim < 1:
        raise ValueError(f"n ({n}) and dim ({dim}) must be at least 1")
    return _Registers(n, dim, std)


class _PatchEmbed(nn.Module):
    def __init__(self, nc: int, dim: int, patch: int, bias: bool):
        super().__init__()
        self.nc, self.patch = nc, patch
        self.weight = nn.Parameter(torch.empty(dim, nc, patch, patch))
        self.bias = nn.Parameter(torch.empty(dim)) if bias else None
        self.init_params(None)

    def init_params(self, generator: torch.Generator | None) -> None:
        draw_normal(self.weight, (self.nc * self.patch**2) ** -0.5, generator)
        if self.bias is not None:
            fill(self.bias, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        _check_patches(x, self.patch)
        return nn.functional.conv2d(x, self.weight, self.bias, self.patch).flatten(2).transpose(1, 2)


def patch_emb(nc: int, dim: int, patch: int, *, bias: bool = True) -> nn.Module:
    """Returns the module from `(batch, nc, height, width)` images to `(batch, patches, dim)` tokens, row by row.

    Source: Dosovitskiy et al., 2021, An Image Is Worth 16x16 Words, equation 1.

    Example:
        >>> patch_emb(3, 8, 4)(torch.zeros(2, 3, 16, 16)).shape
        torch.Size([2, 16, 8])
    """
    check_at_least(1, nc=nc, dim=dim, patch=patch)
    return _PatchEmbed(nc, dim, patch, bias)
