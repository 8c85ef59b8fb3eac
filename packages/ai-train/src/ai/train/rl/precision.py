"""Sums and comparisons in at least float32."""

import torch
from torch import Tensor


def widened(x: Tensor) -> Tensor:
    """At least float32: half precision would round what is summed and compared.

    >>> [widened(torch.ones((), dtype=dtype)).dtype for dtype in (torch.bfloat16, torch.float64)]
    [torch.float32, torch.float64]
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))
