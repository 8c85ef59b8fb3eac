"""Modules made of modules: sequences, repetitions, residual sums."""

import copy
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from ai.model.activation import actv
from ai.model.init import init_module, mark_small


def seq(*modules: nn.Module | Callable[[Tensor], Tensor] | None) -> nn.Sequential:
    """Returns the modules, or plain functions of a tensor, in sequence; None is left out.

    Example:
        >>> import torch, ai.model as m
        >>> m.seq(m.flatten(), None, m.fc(8, 2))(torch.zeros(3, 2, 4)).shape
        torch.Size([3, 2])
    """
    return nn.Sequential(*(made for made in map(actv, modules) if made is not None))


def repeat(n: int, block: nn.Module | Callable[..., nn.Module]) -> nn.Sequential:
    """Returns `n` blocks in sequence, none sharing parameters with another.

    Args:
        n: How many.
        block: A module, copied and drawn anew for each; or a function that makes one, given the index if it takes an
            argument without a default.

    Example:
        >>> import ai.model as m
        >>> net = m.repeat(2, m.fc(4, 4))
        >>> bool((net[0].weight == net[1].weight).any())
        False
    """
    if n < 0:
        raise ValueError(f"n ({n}) must be at least 0")
    if isinstance(block, nn.Module):
        return nn.Sequential(*(init_module(copy.deepcopy(block)) for _ in range(n)))
    parameters = inspect.signature(block).parameters.values()
    takes_index = any(parameter.default is parameter.empty for parameter in parameters)
    return nn.Sequential(*(block(i) if takes_index else block() for i in range(n)))


class _Residual(nn.Module):
    def __init__(self, main: nn.Module, shortcut: nn.Module | None, gain: float):
        super().__init__()
        self.main = main
        self.shortcut = shortcut
        self.gain = gain

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        skip = x if self.shortcut is None else self.shortcut(x)
        out: Tensor = skip + self.main(x, *args)
        return out if self.gain == 1 else out * self.gain

    def mark_small(self, scale: float) -> bool:
        return False  # it passes its input on, so it cannot be the small end of a branch


def res(main: nn.Module, shortcut: nn.Module | None = None, *, gain: float = 1.0, init_gain: float = 0.2) -> nn.Module:
    """Returns `(shortcut(x) + main(x)) * gain`; without a shortcut, x itself is added.

    Args:
        main: The branch; further arguments of a call go to it.
        shortcut: None for the identity.
        gain: Multiplies the sum, such as √½ to keep the variance.
        init_gain: `Model.init` draws the last layer of the branch this much smaller; 1 leaves it alone.

    Example:
        >>> import torch, ai.model as m
        >>> m.res(m.gain(2.0))(torch.ones(1))
        tensor([3.])
    """
    if init_gain != 1:
        mark_small(main, init_gain)
    return _Residual(main, shortcut, gain)


def modules(items: Iterable[nn.Module]) -> nn.ModuleList:
    """Returns a list of modules whose parameters belong to the model that holds it.

    Example:
        >>> [type(layer).__name__ for layer in modules([null(), null()])]
        ['Identity', 'Identity']
    """
    return nn.ModuleList(items)


def module_dict(items: Mapping[str, nn.Module]) -> nn.ModuleDict:
    """Returns a dict of modules whose parameters belong to the model that holds it.

    Example:
        >>> list(module_dict({"encode": null(), "decode": null()}))
        ['encode', 'decode']
    """
    return nn.ModuleDict(dict(items))


def null() -> nn.Module:
    """Returns the module that hands its input on.

    Example:
        >>> null()(3)
        3
    """
    return nn.Identity()


def lstm(n1: int, n2: int, n_layers: int = 1, *, dropout: float = 0.0, bidirectional: bool = False) -> nn.LSTM:
    """Returns an LSTM on `(batch, time, n1)`: called as `(x, state=None)`, it gives `(batch, time, n2)` and its state.

    The forget gates start open. With `bidirectional` the output is `2 · n2` wide.

    Example:
        >>> import torch, ai.model as m
        >>> out, (hidden, cell) = m.lstm(3, 4)(torch.zeros(2, 5, 3))
        >>> out.shape, hidden.shape
        (torch.Size([2, 5, 4]), torch.Size([1, 2, 4]))
    """
    for name, value in (("n1", n1), ("n2", n2), ("n_layers", n_layers)):
        if value < 1:
            raise ValueError(f"{name} ({value}) must be at least 1")
    return init_module(nn.LSTM(n1, n2, n_layers, batch_first=True, dropout=dropout, bidirectional=bidirectional))
