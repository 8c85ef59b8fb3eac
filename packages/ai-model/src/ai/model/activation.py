"""Activations by name, as callables or as modules."""

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor, nn

Activation: TypeAlias = str | Callable[[Tensor], Tensor] | None

_MODULES: dict[str, Callable[[], nn.Module]] = {
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "hardswish": nn.Hardswish,
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "lrelu": lambda: nn.LeakyReLU(0.2),
    "mish": nn.Mish,
    "prelu": nn.PReLU,
    "relu": nn.ReLU,
    "selu": nn.SELU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "swish": nn.SiLU,
    "tanh": nn.Tanh,
}


class _Call(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)

    def extra_repr(self) -> str:
        return getattr(self.function, "__name__", repr(self.function))


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
