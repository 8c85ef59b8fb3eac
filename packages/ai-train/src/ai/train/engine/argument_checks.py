"""The slips of the first hour, each named in one sentence before anything is changed."""

from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.optim import Optimizer

_HOOK = ("setup", "step", "wants_log", "log", "done")


def check_loader(what: str, data: Any) -> None:
    """Raise if `data` is a dataset, which yields rows at most, rather than what yields batches."""
    name = type(data).__name__
    if not isinstance(data, Iterable) and not hasattr(data, "__getitem__"):
        raise TypeError(f"{what} must be an iterable of batches, not {name}")
    if callable(getattr(data, "loader", None)) and not hasattr(data, "__iter__"):
        raise TypeError(f"{what} must yield batches, and a {name} does not: pass what its loader(batch_size) returns")


def check_model_and_optimizer(key: str, model: Any, optimizer: Any) -> None:
    """Raise if they are swapped or of other types."""
    if isinstance(model, Optimizer) and isinstance(optimizer, nn.Module):
        raise TypeError(f"{key!r} is given an optimizer ({type(model).__name__}) for its model: the model comes first")
    if not isinstance(model, nn.Module):
        raise TypeError(f"{key!r} must be a torch.nn.Module, not {type(model).__name__}")
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"the optimizer of {key!r} must be a torch.optim.Optimizer, not {type(optimizer).__name__}")


def check_hook(hook: Any) -> None:
    """Raise if a trainer could not call it."""
    lacking = [name for name in _HOOK if not callable(getattr(hook, name, None))]
    if hook is None or not lacking:
        return
    name = type(hook).__name__
    makes = callable(getattr(hook, "hook", None))
    fix = f": pass what {name}.hook() returns" if makes else ", as ai.train.HookInterface has"
    raise TypeError(f"hook must have {', '.join(_HOOK[:-1])} and {_HOOK[-1]}, and a {name} lacks {lacking[0]}{fix}")
