"""Attention on `scaled_dot_product_attention`: self, cross, grouped-query, with masks, rotary positions and a cache.

Axes: `B` batch, `T` queries, `S` keys, `H` heads, `D` width of a head, `dim` width of a token.
"""

import math
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from ai.model import norm
from ai.model.arguments import check_at_least, check_real, check_whole, elsewhere
from ai.model.linear import fc
from ai.model.tokens.cache import KVCache
from ai.model.tokens.rotary import Rotary

__all__ = ["KVCache", "attn", "sa"]


class _Attention(nn.Module):
    window: int | None = None
    alibi = False
    scale: float | None = None

    def __init__(
        self,
        dim: int,
        n_heads: int,
        head_dim: int,
        dim_kv: int,
        n_kv_heads: int,
        causal: bool,
        rotary: Rotary | None,
        qk_norm: bool,
        bias: bool,
        dropout: float,
        window: int | None,
        alibi: bool,
        scale: float | None,
    ):
        super().__init__()
        self.n_heads, self.head_dim, self.n_kv_heads = n_heads, head_dim, n_kv_heads
        self.causal, self.rotary, self.dropout = causal, rotary, dropout
        self.window, self.alibi, self.scale = window, alibi, scale
        self.q = fc(dim, n_heads * head_dim, bias=bias, init_gain=1.0)
        self.kv = fc(dim_kv, 2 * n_kv_heads * head_dim, bias=bias, init_gain=1.0)
        self.out = fc(n_heads * head_dim, dim, bias=bias, init_gain=0.3)
        self.q_norm = norm.rms(head_dim) if qk_norm else None
        self.k_norm = norm.rms(head_dim) if qk_norm else None

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if isinstance(self.rotary, bool):  # as pickled structures of earlier versions have it
            self.rotary = Rotary() if self.rotary else None

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
        need_weights: bool = False,
    ) -> Any:
        if isinstance(cache, KVCache):
            return cache.called(self, self._attend, x, context, mask, cache, need_weights)
        return self._attend(x, context, mask, None, need_weights)

    def _attend(
        self, x: Tensor, context: Tensor | None, mask: Tensor | None, cache: KVCache | None, need_weights: bool
    ) -> Tensor | tuple[Tensor, Tensor]:
        _check_tokens(x)
        q = self.q(x).unflatten(-1, (self.n_heads, self.head_dim)).transpose(1, 2)  # (B, H, T, D)
        if self.q_norm is not None:
            q = self.q_norm(q)
        seen = 0 if cache is None else cache.seen()
        if self.rotary is not None:
            q = self.rotary.rotate(q, seen)
        if cache is None:
            k, v = self._keys(x if context is None else context)
        elif context is None:
            k, v = cache.extend(*self._keys(x, seen))
        else:
            k, v = cache.kept(x.shape[1], context, self._keys)
        allowed = self._mask(mask, seen, q, k)
        causal = self.causal and allowed is None
        dropout = self.dropout if self.training else 0.0
        if need_weights:
            return self._with_weights(q, k, v, allowed, causal, dropout)
        y = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=allowed,
            dropout_p=dropout,
            is_causal=causal,
            scale=self.scale,
            enable_gqa=self.n_kv_heads != self.n_heads,
        )
        out: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return out

    def _with_weights(
        self, q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None, causal: bool, dropout: float
    ) -> tuple[Tensor, Tensor]:
        """Computes attention step by step, and returns its weights, `(B, H, T, S)`, beside the result."""
        shared = self.n_heads // self.n_kv_heads
        k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
        scores = q @ k.transpose(2, 3) * (self.head_dim**-0.5 if self.scale is None else self.scale)
        if causal:
            allowed = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
        if allowed is not None:
            masked = allowed.dtype == torch.bool
            scores = scores.masked_fill(~allowed, -torch.inf) if masked else scores + allowed
        if allowed is None:
            weights = scores.softmax(-1)
        else:  # a token that may look at nothing gets zeros, as from the fused kernel
            blind = (scores == -torch.inf).all(-1, keepdim=True)
            weights = scores.masked_fill(blind, 0.0).softmax(-1).masked_fill(blind, 0.0)
        y = F.dropout(weights, dropout) @ v
        return self.out(y.transpose(1, 2).flatten(2)), weights

    def _keys(self, x: Tensor, start: int = 0) -> tuple[Tensor, Tensor]:
        """Returns keys and values, `(B, H, S, D)` each, of tokens that stand from `start` on."""
        k, v = self.kv(x).unflatten(-1, (2, self.n_kv_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        if self.k_norm is not None:
            k = self.k_norm(k)
        return (k if self.rotary is None else self.rotary.rotate(k, start)), v

    def _mask(self, mask: Tensor | None, seen: int, q: Tensor, k: Tensor) -> Tensor | None:
        """Joins the caller's mask with what the block itself forbids or weighs; None where the kernel can do it."""
        if mask is not None:
            mask = _checked_mask(mask, q, k)
        if mask is None and not seen and self.window is None and not self.alibi:
            return None  # the kernel's own causal mode is the fastest
        if not self.causal and self.window is None and not self.alibi:
            return mask
        places = torch.arange(seen, seen + q.shape[2], device=q.device)
        ahead = torch.arange(k.shape[2], device=q.device) - places[:, None]  # (T, S)
        allowed = ahead <= 0 if self.causal else None
        if self.window is not None:
            near = ahead.abs() < self.window
            allowed = near if allowed is None else allowed & near
        if self.alibi:
            weighed = -ahead.abs() * _slopes(self.n_heads, q)  # (H, T, S)
            if mask is not None:
                weighed = weighed.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else weighed + mask
            mask = weighed if weighed.ndim == 4 else weighed[None]
        if allowed is None or mask is None:
            return allowed if mask is None else mask
        return allowed & mask if mask.dtype == torch.bool else mask.masked_fill(~allowed, -torch.inf)


@torch.fx.wrap  # for torch.fx, which does not know sizes, a check is one step
def _check_tokens(x: Tensor) -> None:
    if x.dim() != 3:
        raise ValueError(f"x must be (batch, time, dim), got {tuple(x.shape)}")


def _checked_mask(mask: Tensor, q: Tensor, k: Tensor) -> Tensor:
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise ValueError(
            f"mask must be bool (True = may look) or float (added to the scores), got {mask.dtype}: give mask.bool()"
        )
    if mask.ndim == 2 and mask.shape[0] not in (1, q.shape[2]):
        raise ValueError(
            f"a mask of two axes {tuple(mask.shape)} must be (T, S), here ({q.shape[2]}, {k.shape[2]}): "
            "give one of (B, S) as mask[:, None]"
        )
    if mask.ndim == 3:
        mask = mask[:, None]  # (B, T, S)
    return mask if mask.dtype == torch.bool else mask.to(q.dtype)


def _slopes(n_heads: int, like: Tensor) -> Tensor:
    """Returns ALiBi's slope of each head, `(H, 1, 1)`: 2^(-8/n), 2^(-16/n), …, or others between these."""
    power = 2 ** math.floor(math.log2(n_heads))  # computed on the device: a copied list would wait for it
    whole = torch.arange(1, power + 1, dtype=like.dtype, device=like.device) * (-8 / power)
    between = (2 * torch.arange(n_heads - power, dtype=like.dtype, device=like.device) + 1) * (-4 / power)
    return torch.cat([whole, between]).exp2()[:, None, None]


@elsewhere(d_model="dim", embed_dim="dim", heads="n_heads", num_heads="n_heads")
def attn(
    dim: int,
    n_heads: int = 8,
    head_dim: int | None = None,
    *,
    dim_kv: int | None = None,
    n_kv_heads: int | None = None,
    causal: bool = False,
    rotary: bool | Rotary = False,
    qk_norm: bool = False,
    bias: bool = True,
    dropout: float = 0.0,
    window: int | None = None,
    alibi: bool = False,
    scale: float | None = None,
) -> nn.Module:
    """Returns multi-head attention, called as `(x, context=None, mask=None, cache=None, need_weights=False)`.

    `x` is `(B, T, dim)` and the result likewise; keys and values come from `context`, `(B, S, dim_kv)`, or from x.
    `mask` is bool (True = may look) or float (added), of shape `(T, S)`, `(B, T, S)` or `(B, H, T, S)`, where axes of
    length 1 stand for all; the usual mask of padding, `(B, S)`, is `mask[:, None]`. `cache` is a `KVCache` for growing
    sequences. With `need_weights` the result is a pair, whose second part is the weights, `(B, H, T, S)`.

    Args:
        dim: Width of a token.
        n_heads: Number of heads.
        head_dim: Width of a head; None for `dim // n_heads`.
        dim_kv: Width of the context's tokens; None for `dim`.
        n_kv_heads: Heads of keys and values, each shared by `n_heads / n_kv_heads` query heads; None for as many.
        causal: Whether a token may look at itself and the past only. Positions count from the first token, of a context
            as of x.
        rotary: Whether queries and keys are rotated by their positions; or how, by `m.rotary`.
        qk_norm: Whether queries and keys are divided by their root mean square, with a learned scale.
        bias: Whether the projections have one.
        dropout: Probability of dropping an attention weight.
        window: A token may look at tokens less than this far away only; None for all.
        alibi: Whether scores fall with the distance, each head by a slope of its own.
        scale: Of the scores; None for `head_dim ** -0.5`.

    Sources: Vaswani et al., 2017, Attention Is All You Need; Ainslie et al., 2023, GQA; Su et al., 2021, RoFormer;
    Beltagy et al., 2020, Longformer, section 3.1 (window); Press et al., 2022, Train Short, Test Long (ALiBi).

    Example:
        >>> attn(8, 2)(torch.zeros(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """
    check_at_least(1, dim=dim, n_heads=n_heads)
    check_at_least(1, or_none=True, head_dim=head_dim, dim_kv=dim_kv)
    check_whole(or_none=True, n_kv_heads=n_kv_heads, window=window)
    check_real(dropout=dropout)
    check_real(or_none=True, scale=scale)
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout ({dropout}) must lie in [0, 1)")
    if head_dim is None:
        if dim % n_heads:
            raise ValueError(f"n_heads ({n_heads}) must divide dim ({dim}), or give head_dim")
        head_dim = dim // n_heads
    n_kv_heads = n_heads if n_kv_heads is None else n_kv_heads
    if n_kv_heads < 1 or n_heads % n_kv_heads:
        raise ValueError(f"n_kv_heads ({n_kv_heads}) must divide n_heads ({n_heads})")
    if rotary and head_dim % 2:
        raise ValueError(f"head_dim ({head_dim}) must be even for rotary positions")
    if window is not None and window < 1:
        raise ValueError(f"window ({window}) must be at least 1 or None")
    turned = rotary if isinstance(rotary, Rotary) else Rotary() if rotary else None
    return _Attention(
        dim, n_heads, head_dim, dim if dim_kv is None else dim_kv, n_kv_heads, causal, turned, qk_norm, bias, dropout,
        window, alibi, scale,
    )  # fmt: skip


def sa(dim: int, n_heads: int = 8, head_dim: int | None = None, **options: Any) -> nn.Module:
    """Returns self-attention: `attn` without a context; the options are those of `attn`.

    Example:
        >>> sa(8, 2, causal=True, rotary=True)(torch.zeros(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """
    return attn(dim, n_heads, head_dim, **options)
