"""Scalars as categorical distributions: S bins."""

import torch
from torch import Tensor

from ai.model.arguments import check_real, check_whole
from ai.model.wide import widened


class Support:
    """Scalars as probabilities over the integers from -size to size, after h(x) = sign(x)(√(abs(x)+1) - 1) + εx.

    Args:
        size: the largest transformed value; S = 2 · size + 1.
        epsilon: keeps the transform invertible.

    Source: Schrittwieser et al. 2020, MuZero, appendix F; Pohlen et al. 2018, proposition A.2.

    >>> support = Support(10)
    >>> x = torch.tensor([-30.0, 0.0, 2.5])
    >>> bool(torch.allclose(support.to_scalar(support.to_probabilities(x).log()), x, atol=1e-3))
    True
    """

    def __init__(self, size: int, epsilon: float = 0.001) -> None:
        check_whole(size=size)
        check_real(epsilon=epsilon)
        if size < 1:
            raise ValueError(f"size must be at least 1, not {size}")
        self.size, self.epsilon = size, epsilon

    def to_probabilities(self, x: Tensor) -> Tensor:
        """Two neighbouring bins share the weight: `[...]` -> `[..., S]`."""
        h = (x.sign() * ((x.abs() + 1).sqrt() - 1) + self.epsilon * x).clamp(-self.size, self.size)
        low = h.floor()
        share = (h - low)[..., None]
        index = (low + self.size).long()[..., None]
        out = torch.zeros(*x.shape, 2 * self.size + 1, device=x.device, dtype=h.dtype)
        out.scatter_(-1, index, 1 - share)
        return out.scatter_add_(-1, (index + 1).clamp_max(2 * self.size), share)

    def to_scalar(self, logits: Tensor) -> Tensor:
        """The expected value: `[..., S]` -> `[...]`."""
        wide = widened(logits)
        bins = torch.arange(-self.size, self.size + 1, device=logits.device, dtype=wide.dtype)
        h = (wide.softmax(-1) * bins).sum(-1)
        eps = self.epsilon
        root = ((1 + 4 * eps * (h.abs() + 1 + eps)).sqrt() - 1) / (2 * eps)
        return h.sign() * (root.square() - 1)
