"""A decoder-only transformer over characters, which writes with a cache of keys and values.

Axes: `B` batch, `T` time.
"""

from collections.abc import Iterator
from functools import partial
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ai.model as m


class Model(m.Model):
    """Predicts the next code of a sequence: `(B, T)` int64 codes to `(B, T, n_codes)` logits, T up to `context`.

    With learned positions and the shape (50257, 1024, 768, 12, 12) it is GPT-2 small, parameter for parameter; rotary
    positions need no table and do better in short training.

    Args:
        n_codes: Size of the alphabet.
        context: Most codes that it sees at once, at least 2.
        dim: Width of a token.
        depth: Number of blocks.
        num_heads: Attention heads in a block; divides `dim`.
        positions: `rotary` (of queries and keys) or `learned` (added to the tokens).
        dropout: Of embeddings, attention weights and the MLP.

    Sources:
        Radford et al. 2019, Language Models are Unsupervised Multitask Learners (GPT-2: normalisation before each
        branch, the embedding as the last layer); Su et al. 2021, RoFormer (rotary positions).

    Example:
        >>> model = Model(65, context=16, dim=32, depth=2, num_heads=4).init(seed=0)
        >>> model(torch.zeros(3, 10, dtype=torch.int64)).shape
        torch.Size([3, 10, 65])
    """

    def __init__(
        self,
        n_codes: int,
        *,
        context: int = 128,
        dim: int = 128,
        depth: int = 4,
        num_heads: int = 4,
        positions: Literal["rotary", "learned"] = "rotary",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if context < 2:
            raise ValueError(f"context must be at least 2, got {context}")
        if positions not in ("rotary", "learned"):
            raise ValueError(f"positions must be 'rotary' or 'learned', got {positions!r}")
        self.context = context
        self.embed = m.embed(n_codes, dim, std=0.02)
        self.positions = m.pos_emb(context, dim) if positions == "learned" else None
        self.dropout = nn.Dropout(dropout)
        norm = partial(m.norm.layer, eps=1e-5)
        rotary = positions == "rotary"
        self.blocks = m.tx_enc(depth, dim, num_heads, norm=norm, dropout=dropout, causal=True, rotary=rotary)

    def forward(self, codes: Tensor, cache: m.KVCache | None = None) -> Tensor:
        """Returns the logits of what follows each code; with a cache, `codes` follow those that it holds."""
        seen = 0 if cache is None else cache.length()
        if seen + codes.shape[1] > self.context:
            raise ValueError(f"codes must not reach beyond the context ({self.context}), got {seen + codes.shape[1]}")
        x = self.embed(codes)  # (B, T, dim)
        if self.positions is not None:
            x = self.positions(x, seen)
        x = self.blocks(self.dropout(x), cache=cache)
        return F.linear(x, cast(Tensor, self.embed.weight))

    def generate(
        self,
        prompt: Tensor,
        n: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Returns `n` further codes for each row of a prompt, `(B, n)`; see `write`."""
        codes = list(self.write(prompt, n, temperature=temperature, top_k=top_k, generator=generator))
        return torch.cat(codes, 1) if codes else prompt.to(self.device)[:, :0]

    @torch.no_grad()
    def write(
        self,
        prompt: Tensor,
        n: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Iterator[Tensor]:
        """Yields `n` further codes for each row of a prompt, one after the other, each `(B, 1)`.

        Each new code costs one step of the network, not a pass over all before it. Where the context is full, the last
        half of it is read anew, and writing goes on from there.

        Args:
            prompt: `(B, T)` codes, at least one; its last `context` are read.
            n: How many to write.
            temperature: Divides the logits; 0 takes the most probable code.
            top_k: Draws from the k most probable codes only.
            generator: Of the draws, on the model's device.

        Raises:
            ValueError: An empty prompt, a negative temperature, or `top_k` below 1.
        """
        if prompt.ndim != 2 or prompt.shape[1] < 1:
            raise ValueError(f"prompt must be (batch, time) with time of at least 1, got shape {tuple(prompt.shape)}")
        if temperature < 0 or (top_k is not None and top_k < 1):
            raise ValueError(f"temperature must not be negative and top_k at least 1, got {temperature} and {top_k}")
        text = prompt.to(self.device)
        cache = m.KVCache()
        fresh = text[:, -self.context :]
        room = self.context - fresh.shape[1]
        for _ in range(n):
            logits = self(fresh, cache)[:, -1].float()
            fresh = _draw(logits, temperature, top_k, generator)
            yield fresh
            text = torch.cat([text, fresh], 1)
            room -= 1
            if room < 0:
                cache = m.KVCache()
                fresh = text[:, -(self.context // 2) :]
                room = self.context - fresh.shape[1]


def _draw(logits: Tensor, temperature: float, top_k: int | None, generator: torch.Generator | None) -> Tensor:
    """Returns one code for each row of `(B, n_codes)` logits, `(B, 1)`."""
    if temperature == 0:
        return logits.argmax(1, keepdim=True)
    if top_k is not None:
        least = logits.topk(min(top_k, logits.shape[1]), 1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    p = (logits / temperature).softmax(1)
    if p.device.type == "cpu":
        return torch.multinomial(p, 1, generator=generator)
    return _race(p, generator)


def _race(p: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draws as `torch.multinomial` does, less its look at the numbers, which would wait for a device at every code."""
    time = torch.empty_like(p).exponential_(generator=generator)
    # A time of 0, which some devices draw, would let a code of no chance win: 0 / 0 is NaN, the greatest.
    return (p / time.clamp_min_(torch.finfo(p.dtype).tiny)).argmax(1, keepdim=True)
