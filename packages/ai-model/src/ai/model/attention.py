"""Attention on `scaled_dot_product_attention`: self, cross, grouped-query, with masks, rotary positions and a cache.

Axes: `B` batch, `T` queries, `S` keys, `H` heads, `D` width of a head, `dim` width of a token.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ai.model import norm
from ai.model.linear import fc
from ai.model.position import rotate


class KVCache:
    """Keys and values of the tokens seen so far, one cache for each attention layer that uses it.

    Give the same cache to each call of a layer while a sequence grows: `layer(x_new, cache=cache)`. Its memory is
    `2 · B · H · S · D` numbers.
    """

    def __init__(self) -> None:
        self._parts: dict[int, tuple[Tensor, Tensor]] = {}

    def length(self, layer: nn.Module) -> int:
        """Returns how many tokens a layer has seen."""
        part = self._parts.get(id(layer))
        return 0 if part is None else part[0].shape[2]

    def extend(self, layer: nn.Module, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Appends `(B, H, T, D)` keys and values, and returns all of them."""
        part = self._parts.get(id(layer))
        if part is not None:
            k, v = torch.cat([part[0], k], 2), torch.cat([part[1], v], 2)
        self._parts[id(layer)] = (k, v)
        return k, v


class _Attention(nn.Module):
    def __init__(
        self,
        dim: int,
        n_heads: int,
        head_dim: int,
        dim_kv: int,
        n_kv_heads: int,
        causal: bool,
        rotary: bool,
        qk_norm: bool,
        bias: bool,
        dropout: float,
    ):
        super().__init__()
        self.n_heads, self.head_dim, self.n_kv_heads = n_heads, head_dim, n_kv_heads
        self.causal, self.rotary, self.dropout = causal, rotary, dropout
        self.q = fc(dim, n_heads * head_dim, bias=bias, init_gain=1.0)
        self.kv = fc(dim_kv, 2 * n_kv_heads * head_dim, bias=bias, init_gain=1.0)
        self.out = fc(n_heads * head_dim, dim, bias=bias, init_gain=0.3)
        self.q_norm = norm.rms(head_dim) if qk_norm else None
        self.k_norm = norm.rms(head_dim) if qk_norm else None

    def forward(
        self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:
        q = self.q(x).unflatten(-1, (self.n_heads, self.head_dim)).transpose(1, 2)  # (B, H, T, D)
        kv = self.kv(x if context is None else context)
        k, v = kv.unflatten(-1, (2, self.n_kv_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        seen = 0 if cache is None else cache.length(self)
        if self.rotary:
            q, k = rotate(q, seen), rotate(k, seen)
        if cache is not None:
            k, v = cache.extend(self, k, v)
        y = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=self._mask(mask, seen, q, k),
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=self.causal and mask is None and not seen,
            enable_gqa=self.n_kv_heads != self.n_heads,
        )
        out: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return out

    def _mask(self, mask: Tensor | None, seen: int, q: Tensor, k: Tensor) -> Tensor | None:
        if mask is not None and mask.ndim == 2 and mask.shape[0] == q.shape[0] and mask.shape[1] == k.shape[2]:
            mask = mask[:, None, None]  # (B, S): the same keys for every query and head
        elif mask is not None and mask.ndim == 3:
            mask = mask[:, None]  # (B, T, S)
        if not self.causal or (mask is None and not seen):
            return mask  # without a mask, the kernel's own causal mode is the fastest
        n_queries, n_keys = q.shape[2], k.shape[2]
        past = torch.ones(n_queries, n_keys, dtype=torch.bool, device=q.device).tril(n_keys - n_queries)
        if mask is None:
            return past
        return past & mask if mask.dtype == torch.bool else mask.masked_fill(~past, float("-inf"))


def attn(
    dim: int,
    n_heads: int = 8,
    head_dim: int | None = None,
    *,
    dim_kv: int | None = None,
    n_kv_heads: int | None = None,
    causal: bool = False,
    rotary: bool = False,
    qk_norm: bool = False,
    bias: bool = True,
    dropout: float = 0.0,
) -> nn.Module:
    """Returns multi-head attention, called as `(x, context=None, mask=None, cache=None)`.

    `x` is `(B, T, dim)` and the result likewise; keys and values come from `context`, `(B, S, dim_kv)`, or from x.
    `mask` is bool (True = may look) or float (added), of shape `(B, S)`, `(T, S)`, `(B, T, S)` or `(B, H, T, S)`;
    where B = T and the mask is square, it is read as `(B, S)`. `cache` is a `KVCache` for growing sequences.

    Args:
        dim: Width of a token.
        n_heads: Number of heads.
        head_dim: Width of a head; None for `dim // n_heads`.
        dim_kv: Width of the context's tokens; None for `dim`.
        n_kv_heads: Heads of keys and values, each shared by `n_heads / n_kv_heads` query heads; None for as many.
        causal: Whether a token may look at itself and the past only.
        rotary: Whether queries and keys are rotated by their positions.
        qk_norm: Whether queries and keys are divided by their root mean square, with a learned scale.
        bias: Whether the projections have one.
        dropout: Probability of dropping an attention weight.

    Sources: Vaswani et al., 2017, Attention Is All You Need; Ainslie et al., 2023, GQA; Su et al., 2021, RoFormer.

    Example:
        >>> attn(8, 2)(torch.zeros(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """
    for name, value in (("dim", dim), ("n_heads", n_heads), ("head_dim", head_dim), ("dim_kv", dim_kv)):
        if value is not None and value < 1:
            raise ValueError(f"{name} ({value}) must be at least 1")
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
    return _Attention(
        dim, n_heads, head_dim, dim if dim_kv is None else dim_kv, n_kv_heads, causal, rotary, qk_norm, bias, dropout
    )


def sa(dim: int, n_heads: int = 8, head_dim: int | None = None, **options: bool | float | int) -> nn.Module:
    """Returns self-attention: `attn` without a context; the options are those of `attn`."""
    return attn(dim, n_heads, head_dim, **options)  # type: ignore[arg-type]
