"""A policy and a value: from numbers, from numbers over time, from frames.

Letters: B batch, L steps of a sequence, A actions or axes of one.

Source: Schulman et al. 2017, Proximal policy optimization algorithms, section 6.1 (two perceptrons of tanh); Huang et
al. 2022, The 37 implementation details of proximal policy optimization, detail 2 (orthogonal weights of gain √2, the
policy's last layer a hundredth); Mnih et al. 2015, Human-level control through deep reinforcement learning, extended
data table 1 (the frames' network).
"""

from math import prod

import torch
from torch import Tensor, nn

import ai.model as m

Policy = m.Categorical | m.Gaussian


class Head(nn.Module):
    """Features to a policy: a choice of A, or a movement along A axes with a spread that is learnt beside it."""

    def __init__(self, dim: int, n_actions: int, *, continuous: bool = False, log_std: float = 0.0) -> None:
        super().__init__()
        self.out = m.orthogonal(m.fc(dim, n_actions), 0.01)
        self.start = log_std
        self.log_std = nn.Parameter(torch.full((n_actions,), log_std)) if continuous else None

    def init_params(self, generator: torch.Generator | None) -> None:
        """Lets the spread begin where it was asked to."""
        if self.log_std is not None:
            m.fill(self.log_std, self.start)

    def forward(self, x: Tensor) -> Policy:
        """Returns the policy `(…, A)`."""
        out = self.out(x)
        return m.Categorical(out) if self.log_std is None else m.Gaussian(out, self.log_std)


def tower(n1: int, dim: int, *last: nn.Module) -> nn.Sequential:
    """Returns two layers of tanh, and what follows them."""
    return m.orthogonal(m.seq(m.fc(n1, dim, "tanh"), m.fc(dim, dim, "tanh"), *last))


class Perceptrons(m.Model):
    """Two towers that share nothing, for observations that are a few numbers.

    Args:
        shape: of an observation.
        n_actions: A.
        continuous: whether actions are movements.
        dim: width.
        normalize: whether observations are scaled by what was seen so far.
        log_std: where the spread of movements begins.
    """

    def __init__(
        self,
        shape: tuple[int, ...] = (4,),
        n_actions: int = 2,
        *,
        continuous: bool = False,
        dim: int = 64,
        normalize: bool = False,
        log_std: float = 0.0,
    ) -> None:
        super().__init__()
        n = prod(shape)
        self.n_axes = len(shape)
        self.norm = m.running_norm(n) if normalize else m.null()
        self.policy = tower(n, dim, Head(dim, n_actions, continuous=continuous, log_std=log_std))
        self.value = tower(n, dim, m.orthogonal(m.fc(dim, 1), 1.0))

    def forward(self, obs: Tensor) -> tuple[Policy, Tensor]:
        """Returns the policy and the value of `(B, *shape)`: `(B, A)` and `(B,)`."""
        x = self.norm(obs.flatten(-self.n_axes).float())
        return self.policy(x), self.value(x).squeeze(-1)


class Recurrent(m.Model):
    """An LSTM between an encoder and two heads, for what one observation does not tell.

    Args:
        shape: of an observation.
        n_actions: A.
        continuous: whether actions are movements.
        dim: width.
    """

    def __init__(
        self, shape: tuple[int, ...] = (2,), n_actions: int = 2, *, continuous: bool = False, dim: int = 64
    ) -> None:
        super().__init__()
        self.n_axes, self.memory = len(shape), (2, dim)  # what is carried: hidden and cell
        self.encode = m.orthogonal(m.fc(prod(shape), dim, "tanh"))
        self.lstm = m.orthogonal(m.lstm(dim, dim), 1.0)
        self.policy = Head(dim, n_actions, continuous=continuous)
        self.value = m.orthogonal(m.fc(dim, 1), 1.0)

    def forward(self, obs: Tensor, memory: Tensor) -> tuple[Policy, Tensor, Tensor]:
        """Returns policy `(B, L, A)`, value `(B, L)` and memory `(B, 2, dim)` after `obs` `(B, L, *shape)`."""
        hidden, cell = (part.contiguous() for part in memory.transpose(0, 1).unsqueeze(1))
        x, (hidden, cell) = self.lstm(self.encode(obs.flatten(-self.n_axes).float()), (hidden, cell))
        return self.policy(x), self.value(x).squeeze(-1), torch.stack([hidden[0], cell[0]], 1)


def nature(frames: int = 4, dim: int = 512) -> nn.Sequential:
    """Returns the network of Mnih et al.: `(B, frames, 84, 84)` bytes to `(B, dim)`."""
    return m.orthogonal(
        m.seq(
            lambda x: x.float() / 255,
            m.conv(frames, 32, 8, 4, "relu", padtype="none"),
            m.conv(32, 64, 4, 2, "relu", padtype="none"),
            m.conv(64, 64, 3, 1, "relu", padtype="none"),
            m.flatten(),
            m.fc(64 * 7 * 7, dim, "relu"),
        )
    )


class Atari(m.Model):
    """The frames' network with two heads.

    Args:
        n_actions: A.
        frames: stacked in an observation.
    """

    def __init__(self, n_actions: int = 6, *, frames: int = 4) -> None:
        super().__init__()
        self.body = nature(frames)
        self.policy, self.value = Head(512, n_actions), m.orthogonal(m.fc(512, 1), 1.0)

    def forward(self, obs: Tensor) -> tuple[Policy, Tensor]:
        """Returns the policy and the value of `(B, frames, 84, 84)`."""
        x = self.body(obs)
        return self.policy(x), self.value(x).squeeze(-1)
