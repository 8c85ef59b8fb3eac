"""Vector quantisation: each vector replaced by the nearest of a learned list."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ai.model.arguments import check_at_least, check_real
from ai.model.init import draw_uniform


class Quantised(NamedTuple):
    """What `vq` gives."""

    x: Tensor
    """`(batch, dim, …)`, the nearest codes; its gradient goes to the input as if nothing had happened."""
    indices: Tensor
    """`(batch, …)` int64, which codes they are."""
    loss: Tensor
    """What pulls codes and inputs together; to be added to the model's loss."""


class _Vq(nn.Module):
    def __init__(self, n_codes: int, dim: int, beta: float):
        super().__init__()
        self.beta = beta
        self.codes = nn.Parameter(torch.empty(n_codes, dim))
        self.init_params(None)

    def init_params(self, generator: torch.Generator | None) -> None:
        draw_uniform(self.codes, 1 / self.codes.shape[0], generator)

    def forward(self, x: Tensor) -> Quantised:
        dim = self.codes.shape[1]
        if x.ndim < 2 or x.shape[1] != dim:
            raise ValueError(f"x must be (batch, {dim}, …), got {tuple(x.shape)}")
        index = self._nearest(x.detach().movedim(1, -1))
        nearest = self.lookup(index)
        loss = F.mse_loss(nearest, x.detach()) + self.beta * F.mse_loss(x, nearest.detach())
        return Quantised(x + (nearest - x).detach(), index, loss)

    def _nearest(self, vectors: Tensor) -> Tensor:
        """Returns which code is nearest to each of `(batch, …, dim)`, found in float32 even under autocast."""
        wide = torch.promote_types(torch.promote_types(vectors.dtype, self.codes.dtype), torch.float32)
        with torch.autocast(vectors.device.type, enabled=False):
            vectors, codes = vectors.to(wide), self.codes.detach().to(wide)
            centre = codes.mean(0)  # or all that codes far from zero differ by would be lost in their squares
            vectors, codes = vectors - centre, codes - centre
            # |v - c|² without |v|², which is the same for all codes.
            return (codes.square().sum(1) - 2 * vectors @ codes.T).argmin(-1)

    def lookup(self, index: Tensor) -> Tensor:
        """Returns the codes of `(batch, …)` indices, `(batch, dim, …)`."""
        return F.embedding(index, self.codes).movedim(-1, 1)


def vq(n_codes: int, dim: int, *, beta: float = 0.25) -> nn.Module:
    """Returns the module that replaces vectors along axis 1 by the nearest codes: `(batch, dim, …)` to a `Quantised`.

    Its `lookup(index)` gives the codes of indices, such as another model has drawn.

    Args:
        n_codes: How many codes there are.
        dim: Width of a code.
        beta: How strongly inputs are held to their codes, in comparison with codes to inputs.

    Source: van den Oord, Vinyals and Kavukcuoglu, 2017, Neural Discrete Representation Learning, equation 3, with means
    over all numbers.

    Example:
        >>> net = vq(16, 4)
        >>> out = net(torch.randn(2, 4, 8, 8))
        >>> out.x.shape, out.indices.shape, bool((net.lookup(out.indices) - out.x).abs().max() < 1e-6)
        (torch.Size([2, 4, 8, 8]), torch.Size([2, 8, 8]), True)
    """
    check_at_least(1, n_codes=n_codes, dim=dim)
    check_real(beta=beta)
    if not beta >= 0:
        raise ValueError(f"beta ({beta}) must be at least 0")
    return _Vq(n_codes, dim, beta)
