"""An actor, two critics with copies that lag behind, and a temperature.

Source: Haarnoja et al. 2018, Soft actor-critic algorithms and applications, appendix D.
"""

import torch
from torch import Tensor, nn

import ai.model as m


class Critics(nn.Module):
    """Two perceptrons of what is seen and done."""

    def __init__(self, n_seen: int, n_done: int, dim: int) -> None:
        super().__init__()
        self.nets = m.modules(
            [m.seq(m.fc(n_seen + n_done, dim, "relu"), m.fc(dim, dim, "relu"), m.fc(dim, 1)) for _ in range(2)]
        )

    def forward(self, obs: Tensor, action: Tensor) -> Tensor:
        """Returns both values, `(2, batch)`."""
        x = torch.cat([obs, action], 1)
        return torch.stack([net(x)[:, 0] for net in self.nets])


class Model(m.Model):
    """The three parts of soft actor-critic, as `ai.train.SAC` trains them.

    Args:
        n_seen: numbers in an observation.
        n_done: numbers in an action.
        dim: width.
    """

    def __init__(self, n_seen: int = 3, n_done: int = 1, *, dim: int = 256) -> None:
        super().__init__()
        self.body = m.seq(m.fc(n_seen, dim, "relu"), m.fc(dim, dim, "relu"), m.fc(dim, 2 * n_done))
        self.critics = m.Lagged(Critics(n_seen, n_done, dim))
        self.log_alpha = nn.Parameter(torch.zeros(()))

    def init_params(self, generator: torch.Generator | None) -> None:
        """Lets the temperature begin at 1."""
        m.fill(self.log_alpha, 0.0)

    def actor(self, obs: Tensor) -> m.SquashedGaussian:
        """Returns the policy `(batch, n_done)`."""
        mean, log_std = self.body(obs).chunk(2, 1)
        return m.SquashedGaussian(mean, log_std.clamp(-20, 2))

    def forward(self, obs: Tensor) -> Tensor:
        """Returns the action `(batch, n_done)` in [-1, 1] to take where nothing is to be explored."""
        return self.actor(obs).mode()
