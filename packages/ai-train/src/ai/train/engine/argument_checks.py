"""The slips of the first hour, each named in one sentence before anything is changed."""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ai.model.arguments import check_instance, check_module, check_real, check_whole

_HOOK = ("setup", "step", "wants_log", "log", "done")  # `gradients` besides, where it has it


def check_loader(what: str, data: Any) -> None:
    """Raise if `data` is a dataset, which yields rows at most, rather than what yields batches."""
    check_instance(**{what: data})
    name = type(data).__name__
    if isinstance(data, (Mapping, str)):  # whose keys or letters would be the batches
        raise TypeError(f"{what} must be an iterable of batches, not a {name}: put a single batch into a list")
    if not isinstance(data, Iterable) and not hasattr(data, "__getitem__"):
        raise TypeError(f"{what} must be an iterable of batches, not {name}")
    if callable(getattr(data, "loader", None)) and not hasattr(data, "__iter__"):
        raise TypeError(f"{what} must yield batches, and a {name} does not: pass what its loader(batch_size) returns")


def check_model_and_optimizer(key: str, model: Any, optimizer: Any) -> None:
    """Raise if they are swapped or of other types."""
    if isinstance(model, Optimizer) and isinstance(optimizer, nn.Module):
        raise TypeError(f"{key!r} is given an optimizer ({type(model).__name__}) for its model: the model comes first")
    check_module(**{f"{key!r}": model})
    check_instance(**{f"the optimizer of {key!r}": optimizer})
    if not isinstance(optimizer, Optimizer):
        is_function = inspect.isfunction(optimizer)
        got = f"the function {optimizer.__name__}: call it with the model" if is_function else type(optimizer).__name__
        raise TypeError(f"the optimizer of {key!r} must be a torch.optim.Optimizer, not {got}")


def check_to_restore(model: Any, opt: Any) -> None:
    """Raise if these are no modules and optimisers, or swapped."""
    models = model if isinstance(model, Mapping) else {"model": model}
    for key, one in (opt if isinstance(opt, Mapping) else {"model": opt}).items():
        if key in models:
            check_model_and_optimizer(key, models[key], one)


def check_owns(key: str, model: nn.Module, optimizer: Optimizer) -> None:
    """Raise if there is nothing to train, or the optimiser is another model's."""
    own = {id(p) for p in model.parameters()}
    if not own:
        raise ValueError(f"model {key!r} ({type(model).__name__}) has no parameters to train")
    if not any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
        raise ValueError(f"the optimizer of {key!r} holds none of the model's parameters: build it from this model")


def check_step(step: int, steplimit: int | None, epochs: int | None, timelimit: float | None) -> None:
    """Raise if a run could not begin or end there."""
    check_whole(step=step)
    check_whole(or_none=True, steplimit=steplimit, epochs=epochs)
    check_real(or_none=True, timelimit=timelimit)
    if step < 0:
        raise ValueError(f"step ({step}) must not be negative")
    if steplimit is not None and steplimit < 0:
        raise ValueError(f"steplimit ({steplimit}) must not be negative; it is absolute, not counted from step")
    if timelimit is not None and timelimit < 0:
        raise ValueError(f"timelimit ({timelimit}) must not be negative")
    if epochs is not None and epochs < 1:
        raise ValueError(f"epochs ({epochs}) must be at least 1; it is absolute, not counted from here")


def check_hook(hook: Any) -> None:
    """Raise if a trainer could not call it, or one of a list of them."""
    seen: set[int] = set()
    for one in _each(hook):
        _check_one(one)
        if id(one) in seen:
            raise ValueError(f"hook holds the same {type(one).__name__} twice: give each once, or make a second one")
        if getattr(one, "is_at_work", False):
            raise ValueError(f"hook ({type(one).__name__}) is at work in a run that has not ended: make a second one")
        seen.add(id(one))


def _each(hook: Any) -> Iterator[Any]:
    if isinstance(hook, (list, tuple)):
        for one in hook:
            yield from _each(one)
    else:
        yield hook


def _check_one(hook: Any) -> None:
    check_instance(hook=hook)
    lacking = [name for name in _HOOK if not callable(getattr(hook, name, None))]
    if hook is None or not lacking:
        return
    name = type(hook).__name__
    makes = callable(getattr(hook, "hook", None))
    makes_one = inspect.ismethod(hook) and hook.__name__ == "hook"
    fix = (
        ": call it, hook()"
        if makes_one
        else f": pass what {name}.hook() returns"
        if makes
        else ", as ai.train.HookInterface has"
    )
    raise TypeError(f"hook must have {', '.join(_HOOK[:-1])} and {_HOOK[-1]}, and a {name} lacks {lacking[0]}{fix}")
