"""Activations by name, as callables or as modules."""

from collections.abc import Callable
from typing import TypeAlias

import torch.nn.functional as F
from torch import Tensor, nn

from ai.model.arguments import check_instance

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


# Before: the g that solves E[f(g·z)²] = 1 for z ~ N(0, 1), for weights. After: 1 / √E[f(z)²], for a result.
# A bounded function has no solution before it; tanh takes torch's 5/3 there, and sigmoid, a gate, is left alone.
_GAINS = {
    "elu": (1.27796, 1.24520),
    "gelu": (1.46801, 1.53353),
    "gelu_tanh": (1.46801, 1.53358),
    "hardswish": (1.56718, 1.73666),
    "leaky_relu": (1.38675, 1.38675),
    "lrelu": (1.38675, 1.38675),
    "mish": (1.45149, 1.48685),
    "prelu": (1.37199, 1.37199),
    "relu": (1.41421, 1.41421),
    "relu2": (0.90360, 0.81650),
    "silu": (1.55876, 1.67653),
    "softplus": (1.08312, 1.04187),
    "swish": (1.55876, 1.67653),
    "tanh": (5 / 3, 1.59254),
}

# The same for a standard deviation of 1 in place of the second moment, where each unit's weights sum to zero. The mean
# of a smooth rectifier grows faster than its input, which makes the fixed point above repel: small errors of size
# become large ones in a deep stack. Weights of zero mean let no mean pass, and size then keeps by itself.
_CENTRED_GAINS = {
    "gelu": (1.67632, 1.70093),
    "gelu_tanh": (1.67622, 1.70092),
    "hardswish": (1.68714, 1.81387),
    "mish": (1.60666, 1.59203),
    "silu": (1.70895, 1.78719),
    "softplus": (1.84384, 1.91913),
    "swish": (1.70895, 1.78719),
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


def actv_gain(kind: Activation, *, after: bool = False, centred: bool = False) -> float:
    """Returns the gain around an activation that keeps the second moment of N(0, 1); 1 where none is known.

    Args:
        kind: A name that `actv` knows; for a callable or None the gain is 1.
        after: Whether the gain multiplies the activation's result, instead of the weights before it.
        centred: Whether it keeps the standard deviation instead, which is what stays where each unit's weights sum to
            zero. Known for the activations of which `fc` and `conv` draw such weights: gelu, silu, mish, hardswish and
            softplus; the others take the second moment's.

    Source: He et al., 2015, Delving Deep into Rectifiers, equation 10, which is the case of ReLU; Brock, De and Smith,
    2021, Characterizing Signal Propagation to Close the Performance Gap in Unnormalized ResNets, section 4 (centred).

    Example:
        >>> actv_gain("relu"), actv_gain("silu", after=True), actv_gain("silu", centred=True)
        (1.41421, 1.67653, 1.70895)
    """
    if not isinstance(kind, str):
        return 1.0
    _check_known(kind)
    if centred and kind in _CENTRED_GAINS:
        return _CENTRED_GAINS[kind][after]
    return _GAINS.get(kind, (1.0, 1.0))[after]


def is_centred(kind: Activation, fan_in: int) -> bool:
    """Tells whether weights before an activation are drawn with a sum of zero.

    They are before smooth rectifiers, unless the inputs are so few that the direction of their mean counts.
    """
    return isinstance(kind, str) and kind in _CENTRED_GAINS and fan_in >= 32


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
    check_instance(actv=kind)
    _check_known(kind)
    return _MODULES[kind]() if isinstance(kind, str) else _Call(kind)


def _check_known(kind: object) -> None:
    if kind not in _MODULES if isinstance(kind, str) else not callable(kind):
        raise ValueError(f"actv ({kind!r}) must be one of {', '.join(sorted(_MODULES))}, a callable or None")
