"""Networks from a board `(batch, planes, height, width)` to policy logits `(batch, A)` and a value `(batch,)`.

Source: Silver et al. 2018, AlphaZero; the heads share one 1 × 1 convolution, as boards here are small.
"""

from math import prod

from torch import Tensor

import ai.model as m


class MLP(m.Model):
    """A multi-layer perceptron, for boards as small as tic-tac-toe's.

    Args:
        shape_in: of one observation.
        n_actions: A.
        dim: width.
        n_layers: hidden layers.
    """

    def __init__(
        self, shape_in: tuple[int, ...] = (2, 3, 3), n_actions: int = 9, *, dim: int = 128, n_layers: int = 3
    ) -> None:
        super().__init__()
        self.body = m.seq(
            m.flatten(),
            m.fc(prod(shape_in), dim, actv="relu"),
            m.repeat(n_layers - 1, m.fc(dim, dim, actv="relu")),
        )
        self.policy = m.fc(dim, n_actions)
        self.value = m.fc(dim, 1, init_gain=m.actv_gain("tanh"))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns logits and values."""
        h = self.body(x)
        return self.policy(h), bounded(self.value(h))


class ResNet(m.Model):
    """A residual tower of 3 × 3 convolutions.

    Args:
        shape_in: (planes, height, width).
        n_actions: A.
        nc: channels.
        n_blocks: residual blocks of two convolutions.
        nc_head: channels that the heads see.
        places: Add a learned number to each channel of each cell, so that convolutions can tell where they are.
    """

    def __init__(
        self,
        shape_in: tuple[int, int, int] = (2, 6, 7),
        n_actions: int = 7,
        *,
        nc: int = 64,
        n_blocks: int = 3,
        nc_head: int = 16,
        places: bool = False,
    ) -> None:
        super().__init__()
        planes, height, width = shape_in
        self.body = m.seq(
            m.conv(planes, nc, actv="relu", norm="batch"),
            m.res(m.param(nc, height, width, std=0.0)) if places else None,
            m.repeat(n_blocks, m.resblk(nc, nc, actv="relu", se=False)),
            m.conv(nc, nc_head, 1, actv="relu", norm="batch"),
            m.flatten(),
        )
        self.policy = m.fc(nc_head * height * width, n_actions)
        self.value = m.seq(m.fc(nc_head * height * width, nc, actv="relu"), m.fc(nc, 1, init_gain=m.actv_gain("tanh")))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns logits and values."""
        h = self.body(x)
        return self.policy(h), bounded(self.value(h))


def bounded(score: Tensor) -> Tensor:
    """Returns `score (batch, 1)` as values in [-1, 1], `(batch,)`, in single precision.

    In half precision all scores beyond 3.5 would be 1, from where a wrong value gets no gradient.
    """
    return score.squeeze(1).float().tanh()


Model = ResNet
