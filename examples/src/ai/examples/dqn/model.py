"""Values of actions, with a copy that lags behind.

Source: Mnih et al. 2015, Human-level control through deep reinforcement learning; the duelling head: Wang et al. 2016,
Dueling network architectures for deep reinforcement learning, equation 9; quantiles: Dabney et al. 2018, Distributional
reinforcement learning with quantile regression.
"""

from math import prod

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
    """

    def __init__(
        self,
        shape: tuple[int, ...] = (4,),
        n_actions: int = 2,
        *,
        dim: int = 256,
        duelling: bool = False,
        quantiles: int | None = None,
    ) -> None:
        super().__init__()
        n = quantiles or 1
        body: nn.Module
        if len(shape) == 3:
            body, dim = nature(shape[0]), 512
        else:
            body = m.seq(m.flatten(), m.fc(prod(shape), dim, "relu"), m.fc(dim, dim, "relu"))

        def head(n_out: int) -> nn.Module:
            return m.seq(m.fc(dim, n_out * n), m.rearrange("b (a q) -> b a q", a=n_out) if quantiles else None)

        values = m.duel(head(1), head(n_actions)) if duelling else head(n_actions)
        self.quantiles = quantiles
        self.q = m.Lagged(m.seq(body, values))

    def forward(self, obs: Tensor) -> Tensor:
        """Returns the values `(batch, A)` of what is seen."""
        q: Tensor = self.q(obs)
        return q if self.quantiles is None else q.mean(2)
