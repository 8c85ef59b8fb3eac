"""What is not to count, padding and what is impossible, kept out of losses and out of gradients.

A product with 0 keeps nothing out: 0 · NaN and 0 · ∞ are NaN, also where a gradient is made of them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def where_counts(mask: Tensor, x: Tensor) -> Tensor:
    """`x` `[B, …]` where a `mask` over its first axes is true, 0 elsewhere, whatever stands there.

    >>> where_counts(torch.tensor([True, False]), torch.tensor([[1.0, 2.0], [torch.nan, 3.0]]))
    tensor([[1., 2.],
            [0., 0.]])
    """
    return x.masked_fill(~mask.bool().view(*mask.shape, *(1,) * (x.ndim - mask.ndim)), 0)


def policy_cross_entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    """How unlike a wanted policy `[B, A]` one is, `[B]`; logits of -∞, as of illegal moves, may be wanted with 0.

    >>> policy_cross_entropy(torch.tensor([[0.0, -torch.inf]]), torch.tensor([[1.0, 0.0]]))
    tensor([0.])
    """
    floor = torch.finfo(logits.dtype).min / 2  # half of it, so that log-probabilities stay finite as well
    return F.cross_entropy(logits.clamp_min(floor), wanted.to(logits.dtype), reduction="none")
