"""Gradient clipping that belongs to an optimiser: in any loop, and in every copy of it."""

from typing import Any, TypeVar

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ai.model.arguments import check_instance, check_real

Made = TypeVar("Made", bound=Optimizer)


class ClippedDefaults(dict[str, Any]):
    """The defaults of an optimiser whose gradients are clipped: the one part of it, beside its state, that is copied.

    Attributes:
        norm: the largest 2-norm of all gradients together, or None.
        value: the largest value of each, or None.
    """

    norm: float | None = None
    value: float | None = None


def clip(optimizer: Made, norm: float | None = None, *, value: float | None = None) -> Made:
    """The optimiser itself, which from now on clips gradients before each of its steps, as all its copies do.

    Args:
        optimizer: any of torch's, or what has its interface.
        norm: the largest 2-norm of all gradients together.
        value: the largest value of each; it is applied first.

    Raises:
        ValueError: a limit is not positive, there is none, or the optimiser steps by closure (LBFGS).

    >>> weight = torch.nn.Parameter(torch.zeros(2))
    >>> optimizer = clip(torch.optim.SGD([weight], lr=1.0), 1.0)
    >>> weight.grad = torch.tensor([3.0, 4.0])
    >>> optimizer.step()
    >>> [round(x, 3) for x in weight.tolist()]
    [-0.6, -0.8]
    """
    check_instance(optimizer=optimizer)
    check_limits(norm, value)
    if norm is None and value is None:
        raise ValueError("clip needs norm or value: there is nothing to clip to")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError("clip cannot reach an LBFGS's gradients: it computes them within its step")
    limits = ClippedDefaults(optimizer.defaults)
    limits.norm, limits.value = norm, value
    optimizer.defaults = limits
    return optimizer


def check_limits(norm: float | None, value: float | None) -> None:
    """Raise if one of them is no limit."""
    check_real(or_none=True, clip_norm=norm, clip_value=value)
    for name, limit in (("clip_norm", norm), ("clip_value", value)):
        if limit is not None and not limit > 0:
            raise ValueError(f"{name} ({limit}) must be positive")


def _clip_where_wanted(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    limits = optimizer.defaults
    if not isinstance(limits, ClippedDefaults):
        return
    params = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if limits.value is not None:
        torch.nn.utils.clip_grad_value_(params, limits.value)
    if limits.norm is not None:
        torch.nn.utils.clip_grad_norm_(params, limits.norm)


# For all optimisers, since what is registered on one is not copied with it.
register_optimizer_step_pre_hook(_clip_where_wanted)
