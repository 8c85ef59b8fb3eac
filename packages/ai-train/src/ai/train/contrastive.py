"""`Contrastive`: what two views of one thing have in common, against all others of the batch."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ai.model.arguments import check_real
from ai.train.engine.log import is_logging, log
from ai.train.env import images, unpack


class Contrastive:
    """The normalised temperature-scaled cross-entropy (NT-Xent, InfoNCE) of two views of each row; logs the accuracy.

    `model(view)` gives one vector a row, `[B, D]`; each is to be told from the 2 (B - 1) vectors of other rows. These
    are of one batch on one rank: micro-batches and ranks do not see each other's rows.

    Args:
        view: x -> a random view of it, called twice; None where the batch holds both views, as a dict with the keys `x`
            and `y` or a pair.
        temperature: what the cosine similarities are divided by.
        x: the first view's key in a batch that is a dict.
        y: the second view's.

    Source: Chen, Kornblith, Norouzi and Hinton 2020, A simple framework for contrastive learning of visual
    representations (SimCLR), equation 1.

    >>> apart = torch.eye(3)
    >>> round(float(Contrastive(temperature=1.0)(nn.Identity(), (apart, apart), 0)), 4)  # ln(e + 4) - 1
    0.9048
    """

    def __init__(
        self,
        view: Callable[[Tensor], Tensor] | None = None,
        *,
        temperature: float = 0.5,
        x: str = "x",
        y: str = "y",
    ) -> None:
        check_real(temperature=temperature)
        if not temperature > 0:
            raise ValueError(f"temperature ({temperature}) must be positive")
        self.view, self.temperature, self.x, self.y = view, temperature, x, y

    def __call__(self, model: nn.Module, batch: Any, step: int) -> Tensor:
        """The mean loss over both views of the batch."""
        if self.view is None:
            first, second = unpack(batch, self.x, self.y)
        else:
            first, second = (self.view(images(batch, self.x)) for _ in range(2))
        vectors = model(torch.cat([first, second]))
        if vectors.ndim != 2:
            raise ValueError(f"the model's output {tuple(vectors.shape)} must be one vector a row, (batch, dim)")
        vectors = F.normalize(vectors.float(), dim=1)
        n = len(first)
        similar = vectors @ vectors.T / self.temperature
        similar.fill_diagonal_(-torch.inf)
        partner = torch.arange(2 * n, device=vectors.device).roll(n)
        if is_logging():
            log("accuracy", (similar.argmax(1) == partner).float().mean())
        return F.cross_entropy(similar, partner)
