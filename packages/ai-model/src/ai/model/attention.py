"""Attention on `scaled_dot_product_attention`: self, cross, grouped-query, with masks, rotary positions and a cache.

Axes: `B` batch, `T` queries, `S` keys, `H` heads, `D` width of a head, `dim` width of a token.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ai.model import norm
from ai.model.linear import fc
from ai.model.position import rotate


@dataclass
class _Part:
    """What one layer has seen: the first `used` keys and values of two buffers, and the number of queries."""

    k: Tensor
    v: Tensor
    used: int
    queries: int = 0


class KVCache:
    """Keys and values of the tokens seen so far, one cache for all the layers of a network.

    Give the same cache to each call while a sequence grows: `net(x_new, cache=cache)`. Where a layer attends to a
    context, the context's keys and values are computed in the first call and kept.

    A layer's memory is `2 · B · H · S · D` numbers, and up to twice that while it grows: buffers double, so that a
    token costs no copy of all before it. Where gradients are to flow, a token is joined to the others by a copy.

    Example:
        >>> net = sa(8, 2, causal=True)
        >>> cache, tokens = KVCache(), torch.randn(1, 3, 8)
        >>> grown = torch.cat([net(token, cache=cache) for token in tokens.split(1, 1)], 1)
        >>> torch.allclose(grown, net(tokens), atol=1e-6), cache.length(net)
        (True, 3)
    """

    def __init__(self) -> None:
        self._parts: dict[nn.Module, _Part] = {}

    def length(self, layer: nn.Module) -> int:
        """Returns how many tokens a layer has been called with."""
        part = self._parts.get(layer)
        return 0 if part is None else part.queries

    def extend(self, layer: nn.Module, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Appends `(B, H, T, D)` keys and values, and returns all of them.

        Raises:
            ValueError: They are of another batch, or of another number or width of heads, than those before.
        """
        part, n = self._parts.get(layer), k.shape[2]
        if part is None:
            self._parts[layer] = _Part(k, v, n, n)
            return k, v
        if part.k.shape[:2] != k.shape[:2] or part.k.shape[3] != k.shape[3]:
            raise ValueError(
                f"k {tuple(k.shape)} must have the batch, heads and width of the cache, "
                f"{(*part.k.shape[:2], part.used, part.k.shape[3])}"
            )
        if torch.is_grad_enabled() and (k.requires_grad or v.requires_grad or part.k.requires_grad):
            part.k = torch.cat([part.k[:, :, : part.used], k], 2)
            part.v = torch.cat([part.v[:, :, : part.used], v], 2)
        else:
            part.k = _appended(part.k, part.used, k)
            part.v = _appended(part.v, part.used, v)
        part.used, part.queries = part.used + n, part.queries + n
        return part.k[:, :, : part.used], part.v[:, :, : part.used]

    def kept(
        self, layer: nn.Module, n_queries: int, context: Tensor, project: Callable[[Tensor], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Returns the keys and values of a context, which are computed for a layer's first call.

        Raises:
            ValueError: The context is of another batch or length than that of the first call.
        """
        part = self._parts.get(layer)
        if part is None:
            k, v = project(context)
            part = self._parts[layer] = _Part(k, v, k.shape[2])
        if (part.k.shape[0], part.used) != context.shape[:2]:
            raise ValueError(
                f"context {tuple(context.shape)} must be the one that the cache has kept, of batch {part.k.shape[0]} "
                f"and length {part.used}"
            )
        part.queries += n_queries
        return part.k, part.v


def _appended(buffer: Tensor, used: int, new: Tensor) -> Tensor:
    """Returns a buffer whose first `used` entries along axis 2 are the given one's, followed by the new ones."""
    needed = used + new.shape[2]
    if needed > buffer.shape[2] or buffer.is_inference() != torch.is_inference_mode_enabled():
        room = max(needed, 2 * used, 16)
        grown = buffer.new_empty(*buffer.shape[:2], room, buffer.shape[3])
        grown[:, :, :used] = buffer[:, :, :used]
        buffer = grown
    buffer[:, :, used:needed] = new
    return buffer


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
        if self.q_norm is not None:
            q = self.q_norm(q)
        seen = 0 if cache is None else cache.length(self)
        if self.rotary:
            q = rotate(q, seen)
        if cache is None:
            k, v = self._keys(x if context is None else context)
        elif context is None:
            k, v = cache.extend(self, *self._keys(x, seen))
        else:
            k, v = cache.kept(self, x.shape[1], context, self._keys)
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

    def _keys(self, x: Tensor, start: int = 0) -> tuple[Tensor, Tensor]:
        """Returns keys and values, `(B, H, S, D)` each, of tokens that stand from `start` on."""
        k, v = self.kv(x).unflatten(-1, (2, self.n_kv_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        if self.k_norm is not None:
            k = self.k_norm(k)
        return (rotate(k, start) if self.rotary else k), v

    def _mask(self, mask: Tensor | None, seen: int, q: Tensor, k: Tensor) -> Tensor | None:
        if mask is not None and mask.ndim == 2 and mask.shape[0] not in (1, q.shape[2]):
            raise ValueError(
                f"a mask of two axes {tuple(mask.shape)} must be (T, S), here ({q.shape[2]}, {k.shape[2]}): "
                "give one of (B, S) as mask[:, None]"
            )
        if mask is not None and mask.ndim == 3:
            mask = mask[:, None]  # (B, T, S)
        if not self.causal or (mask is None and not seen):
            return mask  # without a mask, the kernel's own causal mode is the fastest
        past = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(seen)
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
    `mask` is bool (True = may look) or float (added), of shape `(T, S)`, `(B, T, S)` or `(B, H, T, S)`, where axes of
    length 1 stand for all; the usual mask of padding, `(B, S)`, is `mask[:, None]`. `cache` is a `KVCache` for growing
    sequences.

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
    """Returns self-attention: `attn` without a context; the options are those of `attn`.

    Example:
        >>> sa(8, 2, causal=True, rotary=True)(torch.zeros(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """
    return attn(dim, n_heads, head_dim, **options)  # type: ignore[arg-type]
