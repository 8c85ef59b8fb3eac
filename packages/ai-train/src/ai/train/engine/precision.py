"""Autocast, and the gradient scaler of float16."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(precision: str | None, device: torch.device) -> AbstractContextManager[Any]:
    """What a forward pass runs in; does nothing where `precision` is None.

    >>> with autocast('bf16', torch.device('cpu')):
    ...     (torch.ones(1, 1) @ torch.ones(1, 1)).dtype
    torch.bfloat16
    """
    return torch.autocast(device.type, DTYPES.get(precision or ""), enabled=precision is not None)


def in_precision(call: Callable[..., Any], precision: str | None, device: torch.device) -> Callable[..., Any]:
    """The call, inside `autocast`; itself where `precision` is None."""
    if precision is None:
        return call
    wrapped: Callable[..., Any] = torch.autocast(device.type, DTYPES[precision])(call)
    return wrapped
