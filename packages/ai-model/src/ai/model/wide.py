"""Sums that half precision would round away stay wide where the module around them is made narrower."""

import torch
from torch import Tensor


def widened(x: Tensor) -> Tensor:
    """At least float32 where it is floating.

    >>> [widened(torch.ones((), dtype=dtype)).dtype for dtype in (torch.bfloat16, torch.float64, torch.int8)]
    [torch.float32, torch.float64, torch.int8]
    """
    return x.to(torch.promote_types(x.dtype, torch.float32)) if x.is_floating_point() else x


def kept_wide(now: Tensor, before: Tensor) -> Tensor:
    """What a conversion made of a tensor; where that is narrower than float32, what it was, on the new device."""
    return now if widened(now).dtype == now.dtype else widened(before).to(now.device)
