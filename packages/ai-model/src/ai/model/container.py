"""Modules made of modules: sequences, repetitions, residual sums."""

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn


def seq(*modules: nn.Module | None) -> nn.Sequential:
    """Returns the modules in sequence; None is left out.

    Example:
        >>> import torch, ai.model as m
        >>> m.seq(m.flatten(), None, m.fc(8, 2))(torch.zeros(3, 2, 4)).shape
        torch.Size([3, 2])
    """
    return nn.Sequential(*(module for module in modules if module is not None))


def repeat(n: int, block: nn.Module | Callable[[], nn.Module]) -> nn.Sequential:
    """Returns `n` blocks in sequence, none sharing parameters with another.

    Args:
        n: How many.
        block: A module, copied; or a function that makes one each time it is called. `.init` draws each block anew.
    """
    if n < 0:
        raise ValueError(f"n ({n}) must be at least 0")
    if isinstance(block, nn.Module):
        return nn.Sequential(*(copy.deepcopy(block) for _ in range(n)))
    return nn.Sequential(*(block() for _ in range(n)))


class _Residual(nn.Module):
    def __init__(self, main: nn.Module, shortcut: nn.Module | None):
        super().__init__()
        self.main = main
        self.shortcut = shortcut

    def forward(self, x: Tensor, *args: Any) -> Tensor:
        skip = x if self.shortcut is None else self.shortcut(x)
        out: Tensor = skip + self.main(x, *args)
        return out


def res(main: nn.Module, shortcut: nn.Module | None = None) -> nn.Module:
    """Returns `shortcut(x) + main(x)`; without a shortcut, `x + main(x)`."""
    return _Residual(main, shortcut)


def modules(items: Iterable[nn.Module]) -> nn.ModuleList:
    """Returns a list of modules whose parameters belong to the model that holds it."""
    return nn.ModuleList(items)


def module_dict(items: Mapping[str, nn.Module]) -> nn.ModuleDict:
    """Returns a dict of modules whose parameters belong to the model that holds it."""
    return nn.ModuleDict(dict(items))


def null() -> nn.Module:
    """Returns the module that hands its input on."""
    return nn.Identity()
