"""Modules that change shape only."""

from torch import Tensor, nn

from ai.model import f


class _Flatten(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return f.flatten(x)


class _GlobalAvg(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return f.global_avg(x)


def flatten() -> nn.Module:
    """Returns the module from `(batch, …)` to `(batch, features)`."""
    return _Flatten()


def global_avg() -> nn.Module:
    """Returns the module from `(batch, nc, …)` to `(batch, nc)`: the mean over all positions."""
    return _GlobalAvg()
