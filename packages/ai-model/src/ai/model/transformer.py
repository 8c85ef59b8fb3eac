"""Transformer blocks.

Axes: tokens are `(batch, time, dim)`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ai.model import norm as norms
from ai.model.activation import Activation, actv_gain, is_centred
from ai.model.activation import actv as make_actv
from ai.model.arguments import check_at_least, check_real, check_whole
from ai.model.attention import attn
from ai.model.container import seq
from ai.model.init import fill, like_torchs, mark_small
from ai.model.linear import fc
from ai.model.norm import Norm
from ai.model.tokens.cache import KVCache
from ai.model.tokens.rotary import Rotary


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
    check_real(p=p)
    if not 0 <= p < 1:
        raise ValueError(f"p ({p}) must lie in [0, 1)")
    return _DropPath(p)


class _Mlp(nn.Module):
    """Two linear layers under the names of a sequence, an activation between, and dropout after each."""

    def __init__(self, first: nn.Module, last: nn.Module, actv: nn.Module | None, dropout: float):
        super().__init__()
        self.add_module("0", first)
        self.add_module("1", last)
        self.actv = actv
        self.dropout = nn.Dropout(dropout) if dropout else None

    def __getitem__(self, i: int) -> nn.Module:
        layer: nn.Module = getattr(self, str(i))  # which torch 2.6's compiler follows, and get_submodule it does not
        return layer

    def forward(self, x: Tensor) -> Tensor:
        x = self[0](x)
        if self.actv is not None:
            x = self.actv(x)
        x = self[1](x if self.dropout is None else self.dropout(x))
        return x if self.dropout is None else self.dropout(x)

    def mark_small(self, scale: float) -> bool:
        return mark_small(self[1], scale)


class _GatedMlp(nn.Module):
    """An MLP whose inner layer is weighed, element by element, by a second one behind an activation."""

    def __init__(self, dim: int, hidden: int, actv: Activation, dropout: float, bias: bool):
        super().__init__()
        self.gate = fc(dim, hidden, bias=bias, init_gain=actv_gain(actv))
        self.up = fc(dim, hidden, bias=bias, init_gain=1.0)
        self.down = fc(hidden, dim, bias=bias, init_gain=0.3)
        self.actv = make_actv(actv)
        self.dropout = nn.Dropout(dropout) if dropout else None

    def forward(self, x: Tensor) -> Tensor:
        weights = self.gate(x)
        if self.actv is not None:
            weights = self.actv(weights)
        x = weights * self.up(x)
        out: Tensor = self.down(x if self.dropout is None else self.dropout(x))
        return out if self.dropout is None else self.dropout(out)

    def mark_small(self, scale: float) -> bool:
        return mark_small(self.down, scale)


def mlp(
    dim: int,
    hidden: int,
    actv: Activation = "gelu",
    *,
    gate: Activation = None,
    dropout: float = 0.0,
    bias: bool = True,
) -> nn.Module:
    """Returns two fully-connected layers with an activation between: `(…, dim)` to `(…, dim)`.

    Args:
        dim: Width of the input and the output.
        hidden: Width between.
        actv: Of the inner layer; not with a gate.
        gate: Activation of a second inner layer, by which the first is multiplied: `silu` makes a SwiGLU, `gelu` a
            GEGLU; None for no such layer.
        dropout: Of the inner layer and of the result.
        bias: Whether the layers have one.

    Source: Shazeer, 2020, GLU Variants Improve Transformer, equation 6.

    Example:
        >>> mlp(8, 32)(torch.zeros(2, 5, 8)).shape, mlp(8, 24, gate="silu", bias=False)(torch.zeros(2, 8)).shape
        (torch.Size([2, 5, 8]), torch.Size([2, 8]))
    """
    check_at_least(1, dim=dim, hidden=hidden)
    check_real(dropout=dropout)
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout ({dropout}) must lie in [0, 1)")
    if gate is not None:
        if actv != "gelu":
            raise ValueError(f"actv ({actv!r}) must be left alone with a gate ({gate!r}), which is what is activated")
        return _GatedMlp(dim, hidden, gate, dropout, bias)
    # The mean of what leaves the activation passes the second layer, so it is the second moment that is to stay.
    gain = actv_gain(actv) / actv_gain(actv, centred=is_centred(actv, dim))
    made = make_actv(actv)
    if made is not None and any(True for _ in made.parameters()):
        return seq(
            fc(dim, hidden, actv=actv, bias=bias, dropout=dropout, init_gain=gain),
            fc(hidden, dim, bias=bias, dropout=dropout, init_gain=0.3),
        )
    first = like_torchs(nn.Linear, dim, hidden, bias=bias, init_scale=gain, init_actv=actv)
    return _Mlp(first, fc(hidden, dim, bias=bias, init_gain=0.3), made, dropout)


class _LayerScale(nn.Module):
    def __init__(self, dim: int, start: float):
        super().__init__()
        self.start = start
        self.gamma = nn.Parameter(torch.full((dim,), start))

    def init_params(self, generator: torch.Generator | None) -> None:
        fill(self.gamma, self.start)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma.to(x.dtype)


def layer_scale(dim: int, start: float = 1e-5) -> nn.Module:
    """Returns the module that multiplies each feature by a learned factor, which starts small.

    Source: Touvron et al., 2021, Going Deeper with Image Transformers, equation 4.

    Example:
        >>> layer_scale(4, 0.5)(torch.ones(2, 4))[0].tolist()
        [0.5, 0.5, 0.5, 0.5]
    """
    check_at_least(1, dim=dim)
    check_real(start=start)
    return _LayerScale(dim, start)


class _Block(nn.Module):
    """What encoder and decoder blocks share: a branch beside its shortcut, normalised before it or after the sum."""

    post_norm = False
    drop: nn.Module

    def add(self, x: Tensor, n: int, branch: Callable[[Tensor], Tensor]) -> Tensor:
        """Returns x with the n-th branch added."""
        norm: nn.Module = getattr(self, f"norm{n}")
        scale: Callable[[Tensor], Tensor] | None = getattr(self, f"scale{n}", None)
        out = branch(x if self.post_norm else norm(x))
        x = x + self.drop(out if scale is None else scale(out))
        return norm(x) if self.post_norm else x


class _EncoderBlock(_Block):
    def __init__(self, attention: nn.Module, mlp: nn.Module, norms_: list[nn.Module], post_norm: bool, drop: float):
        super().__init__()
        self.post_norm = post_norm
        self.norm1, self.attn, self.norm2, self.mlp = norms_[0], attention, norms_[1], mlp
        self.drop = drop_path(drop)

    def forward(self, x: Tensor, mask: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        if isinstance(cache, KVCache):
            return cache.called(self, self._pass, x, mask, cache)  # type: ignore[no-any-return]
        return self._pass(x, mask, None)

    def _pass(self, x: Tensor, mask: Tensor | None, cache: KVCache | None) -> Tensor:
        x = self.add(x, 1, lambda y: self.attn(y, mask=mask, cache=cache))
        return self.add(x, 2, self.mlp)


class _DecoderBlock(_Block):
    def __init__(
        self,
        attention: nn.Module,
        cross: nn.Module,
        mlp: nn.Module,
        norms_: list[nn.Module],
        post_norm: bool,
        drop: float,
    ):
        super().__init__()
        self.post_norm = post_norm
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
        if isinstance(cache, KVCache):
            return cache.called(self, self._pass, x, context, mask, context_mask, cache)  # type: ignore[no-any-return]
        return self._pass(x, context, mask, context_mask, None)

    def _pass(
        self, x: Tensor, context: Tensor, mask: Tensor | None, context_mask: Tensor | None, cache: KVCache | None
    ) -> Tensor:
        x = self.add(x, 1, lambda y: self.attn(y, mask=mask, cache=cache))
        x = self.add(x, 2, lambda y: self.cross(y, context, mask=context_mask, cache=cache))
        return self.add(x, 3, self.mlp)


def tx_enc_blk(
    dim: int,
    n_heads: int = 8,
    *,
    head_dim: int | None = None,
    mlp_dim: int | None = None,
    actv: Activation = "gelu",
    gate: Activation = None,
    norm: Norm = "layer",
    post_norm: bool = False,
    layer_scale: float | None = None,
    dropout: float = 0.0,
    drop: float = 0.0,
    causal: bool = False,
    rotary: bool | Rotary = False,
    qk_norm: bool = False,
    n_kv_heads: int | None = None,
    window: int | None = None,
    alibi: bool = False,
    scale: float | None = None,
    bias: bool = True,
) -> nn.Module:
    """Returns a transformer encoder block, called as `(x, mask=None, cache=None)`.

    Args:
        dim: Width of a token.
        n_heads: Number of heads.
        head_dim: Width of a head; None for `dim // n_heads`.
        mlp_dim: Width inside the MLP; None for `4 · dim`.
        actv: Of the MLP.
        gate: As of `mlp`.
        norm: By name, or a callable from a width.
        post_norm: Whether each sum is normalised, as in the first transformers, instead of each branch's input.
        layer_scale: What a learned factor of each feature of a branch starts from; None for no such factor.
        dropout: Of attention weights and of the MLP.
        drop: Probability of stochastic depth, for each branch.
        causal: Whether a token may look at itself and the past only (a decoder-only language model's block).
        rotary: As of `attn`.
        qk_norm: As of `attn`.
        n_kv_heads: As of `attn`.
        window: As of `attn`.
        alibi: As of `attn`.
        scale: As of `attn`.
        bias: Whether the linear layers, and layer norms by name, have one.

    Sources: Vaswani et al., 2017, Attention Is All You Need, section 3 (`post_norm`); Dosovitskiy et al., 2021, An
    Image Is Worth 16x16 Words, equations 2 and 3.

    Example:
        >>> tx_enc_blk(8, 2)(torch.zeros(2, 5, 8)).shape
        torch.Size([2, 5, 8])
        >>> options = {"gate": "silu", "norm": "rms", "bias": False, "causal": True, "rotary": True}
        >>> tx_enc_blk(8, 4, n_kv_heads=2, mlp_dim=24, **options)(torch.zeros(2, 5, 8)).shape  # as in Llama
        torch.Size([2, 5, 8])
    """
    check_whole(or_none=True, mlp_dim=mlp_dim)
    check_real(drop=drop)
    check_real(or_none=True, layer_scale=layer_scale)
    attention = attn(
        dim, n_heads, head_dim, n_kv_heads=n_kv_heads, causal=causal, rotary=rotary, qk_norm=qk_norm, bias=bias,
        dropout=dropout, window=window, alibi=alibi, scale=scale,
    )  # fmt: skip
    inner = mlp(dim, 4 * dim if mlp_dim is None else mlp_dim, actv, gate=gate, dropout=dropout, bias=bias)
    block = _EncoderBlock(attention, inner, [_norm(norm, dim, bias) for _ in range(2)], post_norm, drop)
    return _scaled(block, dim, layer_scale, 2)


def tx_dec_blk(
    dim: int,
    n_heads: int = 8,
    *,
    head_dim: int | None = None,
    mlp_dim: int | None = None,
    dim_context: int | None = None,
    actv: Activation = "gelu",
    gate: Activation = None,
    norm: Norm = "layer",
    post_norm: bool = False,
    layer_scale: float | None = None,
    dropout: float = 0.0,
    drop: float = 0.0,
    causal: bool = True,
    rotary: bool | Rotary = False,
    qk_norm: bool = False,
    n_kv_heads: int | None = None,
    window: int | None = None,
    alibi: bool = False,
    scale: float | None = None,
    bias: bool = True,
) -> nn.Module:
    """Returns a decoder block, called as `(x, context, mask=None, context_mask=None, cache=None)`.

    Causal self-attention, then attention to the context `(batch, length, dim_context)`, then an MLP. The arguments are
    those of `tx_enc_blk`; positions (`rotary`, `window`, `alibi`) are those of the self-attention alone.

    Example:
        >>> tx_dec_blk(8, 2, dim_context=4)(torch.zeros(2, 5, 8), torch.zeros(2, 3, 4)).shape
        torch.Size([2, 5, 8])
    """
    check_whole(or_none=True, mlp_dim=mlp_dim, dim_context=dim_context)
    check_real(drop=drop)
    check_real(or_none=True, layer_scale=layer_scale)
    own = attn(
        dim, n_heads, head_dim, n_kv_heads=n_kv_heads, causal=causal, rotary=rotary, qk_norm=qk_norm, bias=bias,
        dropout=dropout, window=window, alibi=alibi, scale=scale,
    )  # fmt: skip
    cross = attn(
        dim, n_heads, head_dim, dim_kv=dim_context, n_kv_heads=n_kv_heads, qk_norm=qk_norm, bias=bias, dropout=dropout,
        scale=scale,
    )  # fmt: skip
    inner = mlp(dim, 4 * dim if mlp_dim is None else mlp_dim, actv, gate=gate, dropout=dropout, bias=bias)
    block = _DecoderBlock(own, cross, inner, [_norm(norm, dim, bias) for _ in range(3)], post_norm, drop)
    return _scaled(block, dim, layer_scale, 3)


def _scaled(block: nn.Module, dim: int, start: float | None, n: int) -> nn.Module:
    if start is not None:
        for i in range(1, n + 1):
            setattr(block, f"scale{i}", _LayerScale(dim, start))
    return block


class _Stack(nn.Module):
    def __init__(self, blocks: list[nn.Module], norm: nn.Module):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm

    def forward(self, x: Tensor, *context: Tensor, **options: Tensor | KVCache | None) -> Tensor:
        cache = options.get("cache")
        if isinstance(cache, KVCache):
            return cache.called(self, lambda x: self._through(x, context, options), x)  # type: ignore[no-any-return]
        return self._through(x, context, options)

    def _through(self, x: Tensor, context: tuple[Any, ...], options: dict[str, Any]) -> Tensor:
        for block in self.blocks:
            x = block(x, *context, **options)
        out: Tensor = self.norm(x)
        return out


class _EncoderStack(_Stack):
    """A stack with its arguments by name, which torch.export and torch.fx ask for."""

    def forward(  # type: ignore[override]
        self, x: Tensor, mask: Tensor | None = None, cache: KVCache | None = None
    ) -> Tensor:
        cache = cache if isinstance(cache, KVCache) else None
        return super().forward(x, mask=mask, cache=cache)


class _DecoderStack(_Stack):
    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        context: Tensor,
        mask: Tensor | None = None,
        context_mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        cache = cache if isinstance(cache, KVCache) else None
        return super().forward(x, context, mask=mask, context_mask=context_mask, cache=cache)


def tx_enc(n: int, dim: int, n_heads: int = 8, *, drop: float = 0.0, **options: Any) -> nn.Module:
    """Returns `n` encoder blocks and a last normalisation; `drop` grows linearly from 0 to its value over the depth.

    The options are those of `tx_enc_blk`. After blocks with `post_norm` there is no further normalisation.

    Example:
        >>> tx_enc(2, 8, 2, causal=True, rotary=True)(torch.zeros(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """
    return _EncoderStack(*_stacked(tx_enc_blk, n, dim, n_heads, drop, options))


def tx_dec(n: int, dim: int, n_heads: int = 8, *, drop: float = 0.0, **options: Any) -> nn.Module:
    """Returns `n` decoder blocks and a last normalisation; the options are those of `tx_dec_blk`.

    Example:
        >>> tx_dec(2, 8, 2)(torch.zeros(2, 5, 8), torch.zeros(2, 3, 8)).shape
        torch.Size([2, 5, 8])
    """
    return _DecoderStack(*_stacked(tx_dec_blk, n, dim, n_heads, drop, options))


def _stacked(
    make: Callable[..., nn.Module], n: int, dim: int, n_heads: int, drop: float, options: dict[str, Any]
) -> tuple[list[nn.Module], nn.Module]:
    check_at_least(1, n=n)
    check_real(drop=drop)
    blocks = [make(dim, n_heads, drop=drop * i / max(n - 1, 1), **options) for i in range(n)]
    kind = None if options.get("post_norm") else options.get("norm", "layer")
    return blocks, _norm(kind, dim, options.get("bias", True))


def _norm(kind: Norm, dim: int, bias: bool) -> nn.Module:
    if kind == "layer" and not bias:
        return norms.layer(dim, bias=False)
    return norms.make(kind, dim, last=True) or nn.Identity()
