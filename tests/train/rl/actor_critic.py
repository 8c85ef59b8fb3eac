"""Two critics of continuous actions and a draw for them, which the tests of SAC and of IQL share."""

import torch
from torch import nn

import ai.model as m


class Critics(nn.Module):
    """Of observations with 3 numbers and actions with 2: `(2, batch)`."""

    def __init__(self):
        super().__init__()
        self.nets = m.modules([m.seq(m.fc(5, 8, "relu"), m.fc(8, 1)) for _ in range(2)])

    def forward(self, obs, action):
        x = torch.cat([obs, action], 1)
        return torch.stack([net(x)[:, 0] for net in self.nets])


def apart(make):
    """A drawn model in double precision whose critics' copy is another network."""
    model = make().init(seed=0).double()
    model.critics.lagged.load_state_dict(make().init(seed=1).double().critics.net.state_dict())
    return model


def drawn(n):
    """A draw of `n` steps, of which every other is an episode's end."""
    rng = torch.Generator().manual_seed(0)
    rand = lambda *shape: torch.randn(*shape, generator=rng, dtype=torch.float64)  # noqa: E731
    return {
        "obs": rand(n, 3),
        "action": rand(n, 2).tanh(),
        "n_step_reward": rand(n),
        "next_obs": rand(n, 3),
        "next_discount": torch.tensor([0.95, 0.0] * (n // 2), dtype=torch.float64),
    }
