"""What is not to count, padding and what is impossible, kept out of losses and out of gradients.

A product with 0 keeps nothing out: 0 · NaN and 0 · ∞ are NaN, also where a gradient is made of them.
"""

import torch
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

    Where nothing is wanted it is 0, whatever the logits are.

    >>> policy_cross_entropy(torch.tensor([[0.0, 0.0, -torch.inf]]), torch.tensor([[0.5, 0.5, 0.0]]))
    tensor([0.6931])
    """
    wanted = wanted.to(logits.dtype)
    is_wanted = wanted != 0
    log_prob = where_counts(is_wanted.any(1), logits).log_softmax(1)
    return torch.where(is_wanted, -wanted * log_prob, 0).sum(1)  # what is wanted and impossible costs infinity
