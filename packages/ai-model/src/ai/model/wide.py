"""Sums that half precision would round away stay wide where the module around them is made narrower."""

import torch
from torch import Tensor


def widened(x: Tensor) -> Tensor:
    """At least float32.

    >>> [widened(torch.ones((), dtype=dtype)).dtype for dtype in (torch.bfloat16, torch.float64)]
    [torch.float32, torch.float64]
    """
    if type(x) is Tensor and x.dtype is torch.float32:  # nearly always: nothing to look up, nothing to call
        return x
    return x.to(torch.promote_types(x.dtype, torch.float32))


def kept_wide(now: Tensor, before: Tensor) -> Tensor:
    """What a conversion made of a tensor; where that is narrower than float32, what it was, on the new device."""
    return now if not now.is_floating_point() or widened(now).dtype == now.dtype else widened(before).to(now.device)
