"""Two classifiers of handwritten digits."""

from collections.abc import Sequence
from math import prod

import ai.model as m


class Model(m.Model):
    """A multi-layer perceptron from `(batch, *shape_in)` images to `(batch, n_out)` logits.

    Example:
        >>> import torch
        >>> Model().init(seed=0)(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(self, shape_in: Sequence[int] = (1, 28, 28), n_out: int = 10, dim: int = 128, n_layers: int = 2):
        super().__init__(
            m.seq(
                m.flatten(),
                m.fc(prod(shape_in), dim, actv="relu"),
                m.repeat(n_layers, lambda: m.fc(dim, dim, actv="relu")),
                m.fc(dim, n_out),
            )
        )


class ConvNet(m.Model):
    """A small convolutional network from `(batch, nc_img, height, width)` images to `(batch, n_out)` logits.

    Example:
        >>> import torch
        >>> ConvNet().init(seed=0)(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(self, nc_img: int = 1, n_out: int = 10, nc: int = 16):
        super().__init__(
            m.seq(
                m.conv(nc_img, nc, stride=2, norm="batch", actv="relu"),
                m.conv(nc, 2 * nc, stride=2, norm="batch", actv="relu"),
                m.conv(2 * nc, 4 * nc, norm="batch", actv="relu"),
                m.global_avg(),
                m.fc(4 * nc, n_out),
            )
        )
