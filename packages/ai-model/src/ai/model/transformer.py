"""Transformer blocks, normalised before each branch.

Axes: tokens are `(batch, time, dim)`.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ai.model import norm as norms
from ai.model.activation import Activation, actv_gain, is_centred
from ai.model.attention import KVCache, attn
from ai.model.container import seq
from ai.model.linear import fc
from ai.model.norm import Norm


class _DropPath(nn.Module):
    """Drops a residual branch of whole samples, and scales the others up."""

    def __init__(self, p: float):
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        keep = torch.rand(x.shape[0], *(1,) * (x.ndim - 1), device=x.device) >= self.p
        return x * keep / (1 - self.p)


def drop_path(p: float) -> nn.Module:
    """Returns stochastic depth: in training, each sample's branch is zero with probability p, else divided by 1 - p.

    Source: Huang et al., 2016, Deep Networks with Stochastic Depth.

    Example:
        >>> drop_path(0.5).eval()(torch.ones(2)), drop_path(0.5)(torch.ones(1)).item() in (0.0, 2.0)
        (tensor([1., 1.]), True)
    """
    if not 0 <= p < 1:
        raise ValueError(f"p ({p}) must lie in [0, 1)")
    return _DropPath(p)


def mlp(dim: int, hidden: int, actv: Activation = "gelu", *, dropout: float = 0.0) -> nn.Module:
    """Returns two fully-connected layers with an activation between: `(…, dim)` to `(…, dim)`.

    Example:
        >>> mlp(8, 32)(torch.zeros(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """
    # The mean of what leaves the activation passes the second layer, so it is the second moment that is to stay.
    gain = actv_gain(actv) / actv_gain(actv, centred=is_centred(actv, dim))
    return seq(
        fc(dim, hidden, actv=actv, dropout=dropout, init_gain=gain), fc(hidden, dim, dropout=dropout, init_gain=0.3)
    )


class _EncoderBlock(nn.Module):
    def __init__(self, norm1: nn.Module, attention: nn.Module, norm2: nn.Module, mlp: nn.Module, drop: float):
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp = norm1, attention, norm2, mlp
        self.drop = drop_path(drop)

    def forward(self, x: Tensor, mask: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        x = x + self.drop(self.attn(self.norm1(x), mask=mask, cache=cache))
        out: Tensor = x + self.drop(self.mlp(self.norm2(x)))
        return out


class _DecoderBlock(nn.Module):
    def __init__(self, attention: nn.Module, cross: nn.Module, mlp: nn.Module, norms_: list[nn.Module], drop: float):
        super().__init__()
        self.attn, self.cross, self.mlp = attention, cross, mlp
        self.norm1, self.norm2, self.norm3 = norms_
        self.drop = drop_path(drop)

    def forward(
        self,
        x: Tensor,
        context: Tensor,
        mask: Tensor | None = None,
        context_mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        x = x + self.drop(self.attn(self.norm1(x), mask=mask, cache=cache))
        x = x + self.drop(self.cross(self.norm2(x), context, context_mask, cache))
        out: Tensor = x + self.drop(self.mlp(self.norm3(x)))
        return out


def tx_enc_blk(
    dim: int,
    n_heads: int = 8,
    mlp_dim: int | None = None,
    head_dim: int | None = None,
    *,
    actv: Activation = "gelu",
    norm: Norm = "layer",
    dropout: float = 0.0,
    drop: float = 0.0,
    causal: bool = False,
    rotary: bool = False,
    qk_norm: bool = False,
    n_kv_heads: int | None = None,
    bias: bool = True,
) -> nn.Module:
    """Returns a transformer encoder block, called as `(x, mask=None, cache=None)`.

    Args:
        dim: Width of a token.
        n_heads: Number of heads.
        mlp_dim: Width inside the MLP; None for `4 · dim`.
        head_dim: Width of a head; None for `dim // n_heads`.
        actv: Of the MLP.
        norm: By name, or a callable from a width.
        dropout: Of attention weights and of the MLP.
        drop: Probability of stochastic depth, for each branch.
        causal: Whether a token may look at itself and the past only (a decoder-only language model's block).
        rotary: As of `attn`.
        qk_norm: As of `attn`.
        n_kv_heads: As of `attn`.
        bias: Whether the attention's projections have one.

    Source: Dosovitskiy et al., 2021, An Image Is Worth 16x16 Words, equations 2 and 3.

    Example:
        >>> tx_enc_blk(8, 2)(torch.zeros(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """
    attention = attn(
        dim, n_heads, head_dim, n_kv_heads=n_kv_heads, causal=causal, rotary=rotary, qk_norm=qk_norm, bias=bias,
        dropout=dropout,
    )  # fmt: skip
    return _EncoderBlock(
        _norm(norm, dim), attention, _norm(norm, dim), mlp(dim, mlp_dim or 4 * dim, actv, dropout=dropout), drop
    )


def tx_dec_blk(
    dim: int,
    n_heads: int = 8,
    mlp_dim: int | None = None,
    head_dim: int | None = None,
    *,
    dim_context: int | None = None,
    actv: Activation = "gelu",
    norm: Norm = "layer",
    dropout: float = 0.0,
    drop: float = 0.0,
    causal: bool = True,
    rotary: bool = False,
    qk_norm: bool = False,
) -> nn.Module:
    """Returns a decoder block, called as `(x, context, mask=None, context_mask=None, cache=None)`.

    Causal self-attention, then attention to the context `(batch, length, dim_context)`, then an MLP. The arguments are
    those of `tx_enc_blk`.

    Example:
        >>> tx_dec_blk(8, 2, dim_context=4)(torch.zeros(2, 5, 8), torch.zeros(2, 3, 4)).shape
        torch.Size([2, 5, 8])
    """
    own = attn(dim, n_heads, head_dim, causal=causal, rotary=rotary, qk_norm=qk_norm, dropout=dropout)
    cross = attn(dim, n_heads, head_dim, dim_kv=dim_context, qk_norm=qk_norm, dropout=dropout)
    inner = mlp(dim, mlp_dim or 4 * dim, actv, dropout=dropout)
    return _DecoderBlock(own, cross, inner, [_norm(norm, dim) for _ in range(3)], drop)


class _Stack(nn.Module):
    def __init__(self, blocks: list[nn.Module], norm: nn.Module):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm

    def forward(self, x: Tensor, *context: Tensor, **options: Tensor | KVCache | None) -> Tensor:
        for block in self.blocks:
            x = block(x, *context, **options)
        out: Tensor = self.norm(x)
        return out


def tx_enc(
    n: int, dim: int, n_heads: int = 8, mlp_dim: int | None = None, *, drop: float = 0.0, **options: Any
) -> nn.Module:
    """Returns `n` encoder blocks and a last normalisation; `drop` grows linearly from 0 to its value over the depth.

    The options are those of `tx_enc_blk`.

    Example:
        >>> tx_enc(2, 8, 2, causal=True, rotary=True)(torch.zeros(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """
    if n < 1:
        raise ValueError(f"n ({n}) must be at least 1")
    depth = [drop * i / max(n - 1, 1) for i in range(n)]
    blocks = [tx_enc_blk(dim, n_heads, mlp_dim, drop=p, **options) for p in depth]
    return _Stack(blocks, _norm(options.get("norm", "layer"), dim))


def tx_dec(
    n: int, dim: int, n_heads: int = 8, mlp_dim: int | None = None, *, drop: float = 0.0, **options: Any
) -> nn.Module:
    """Returns `n` decoder blocks and a last normalisation; the options are those of `tx_dec_blk`.

    Example:
        >>> tx_dec(2, 8, 2)(torch.zeros(2, 5, 8), torch.zeros(2, 3, 8)).shape
        torch.Size([2, 5, 8])
    """
    if n < 1:
        raise ValueError(f"n ({n}) must be at least 1")
    depth = [drop * i / max(n - 1, 1) for i in range(n)]
    blocks = [tx_dec_blk(dim, n_heads, mlp_dim, drop=p, **options) for p in depth]
    return _Stack(blocks, _norm(options.get("norm", "layer"), dim))


def _norm(kind: Norm, dim: int) -> nn.Module:
    return norms.make(kind, dim, last=True) or nn.Identity()
