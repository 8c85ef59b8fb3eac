"""Activations by name, as callables or as modules."""

from collections.abc import Callable
from typing import TypeAlias

import torch.nn.functional as F
from torch import Tensor, nn

Activation: TypeAlias = str | Callable[[Tensor], Tensor] | None

_MODULES: dict[str, Callable[[], nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "hardswish": nn.Hardswish,
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "lrelu": lambda: nn.LeakyReLU(0.2),
    "mish": nn.Mish,
    "prelu": lambda: _PReLU(),
    "relu": nn.ReLU,
    "relu2": lambda: _Call(_relu2),
    "selu": nn.SELU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "swish": nn.SiLU,
    "tanh": nn.Tanh,
}


# Solves E[f(g·z)²] = 1 for z ~ N(0, 1); bounded functions have no solution, tanh takes torch's 5/3.
_GAINS = {
    "elu": 1.27796,
    "gelu": 1.46801,
    "gelu_tanh": 1.46801,
    "hardswish": 1.54,
    "leaky_relu": 1.38675,
    "lrelu": 1.38675,
    "mish": 1.45149,
    "prelu": 1.37199,
    "relu": 1.41421,
    "relu2": 0.9036,
    "silu": 1.55876,
    "softplus": 1.08312,
    "swish": 1.55876,
    "tanh": 5 / 3,
}


class _Call(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)

    def extra_repr(self) -> str:
        return getattr(self.function, "__name__", repr(self.function))


class _PReLU(nn.PReLU):
    def mark_small(self, scale: float) -> bool:
        return False  # its weight is a slope, which does not set the size of a branch


def _relu2(x: Tensor) -> Tensor:
    return F.relu(x).square()


def actv_gain(kind: Activation) -> float:
    """Returns the gain of weights before an activation that keeps the second moment; 1 where none is known.

    Source: He et al., 2015, Delving Deep into Rectifiers, equation 10, which is the case of ReLU.
    """
    return _GAINS.get(kind, 1.0) if isinstance(kind, str) else 1.0


def actv(kind: Activation) -> nn.Module | None:
    """Returns the module of an activation, or None for None.

    Args:
        kind: A name, a module (used as it is) or a callable on tensors. `lrelu` has slope 0.2.

    Raises:
        ValueError: The name is unknown; the message lists the known ones.

    Example:
        >>> import torch
        >>> actv("relu")(torch.tensor([-1.0, 2.0]))
        tensor([0., 2.])
    """
    if kind is None or isinstance(kind, nn.Module):
        return kind
    if isinstance(kind, str):
        if kind not in _MODULES:
            raise ValueError(f"actv ({kind!r}) must be one of {', '.join(sorted(_MODULES))}, a callable or None")
        return _MODULES[kind]()
    if not callable(kind):
        raise ValueError(f"actv ({kind!r}) must be one of {', '.join(sorted(_MODULES))}, a callable or None")
    return _Call(kind)
