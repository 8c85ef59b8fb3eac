"""Values of actions, with a copy that lags behind.

Source: Mnih et al. 2015, Human-level control through deep reinforcement learning; the duelling head: Wang et al. 2016,
Dueling network architectures for deep reinforcement learning, equation 9; quantiles: Dabney et al. 2018, Distributional
reinforcement learning with quantile regression; chances of returns: Bellemare et al. 2017, A distributional perspective
on reinforcement learning.
"""

from math import prod

import torch
from torch import Tensor, nn

import ai.model as m
from ai.examples.ppo.model import nature


class Model(m.Model):
    """A perceptron, or from frames the network of Mnih et al.

    Args:
        shape: of an observation.
        n_actions: A.
        dim: width.
        duelling: whether value and advantages have heads of their own.
        quantiles: None for values, Q for as many quantiles of each.
        atoms: None for values, S for the chances of as many returns.
        support: the least and the greatest of these.
    """

    def __init__(
        self,
        shape: tuple[int, ...] = (4,),
        n_actions: int = 2,
        *,
        dim: int = 256,
        duelling: bool = False,
        quantiles: int | None = None,
        atoms: int | None = None,
        support: tuple[float, float] = (-10.0, 10.0),
    ) -> None:
        if quantiles and atoms:
            raise ValueError(f"quantiles ({quantiles}) and atoms ({atoms}) must not both be given")
        super().__init__()
        n = quantiles or atoms
        body: nn.Module
        if len(shape) == 3:
            body, dim = nature(shape[0]), 512
        else:
            body = m.seq(m.flatten(), m.fc(prod(shape), dim, "relu"), m.fc(dim, dim, "relu"))

        def head(n_out: int) -> nn.Module:
            return m.seq(m.fc(dim, n_out * (n or 1)), m.rearrange("b (a n) -> b a n", a=n_out) if n else None)

        values = m.duel(head(1), head(n_actions)) if duelling else head(n_actions)
        self.atoms, self.support = atoms, support
        self.q = m.Lagged(m.seq(body, values))

    def forward(self, obs: Tensor) -> Tensor:
        """Returns the values `(batch, A)` of what is seen."""
        q: Tensor = self.q(obs)
        if self.atoms is not None:
            return q.softmax(2) @ torch.linspace(*self.support, self.atoms, device=q.device, dtype=q.dtype)
        return q if q.ndim == 2 else q.mean(2)
