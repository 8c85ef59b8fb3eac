"""How close numbers of two devices or two forms are to be, by their type; stated here and nowhere else."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

# (relative, absolute): a few hundred roundings of values near 1, as sums in another order make them.
TOLERANCES = {
    torch.float64: (1e-9, 1e-9),
    torch.float32: (1e-4, 1e-5),
    torch.float16: (1e-2, 2e-3),
    torch.bfloat16: (5e-2, 2e-2),
}
_EXACT = (0.0, 0.0)


def assert_close(actual: Any, expected: Any, dtype: torch.dtype | None = None) -> None:
    """The tensors of both structures agree, wherever they lie.

    Args:
        actual: a tensor, or a structure of them.
        expected: likewise; it may be of a finer type.
        dtype: in which they were computed; None: as `actual` is.
    """
    ours = [x for x in tree_leaves(actual) if isinstance(x, Tensor)]
    wanted = [x for x in tree_leaves(expected) if isinstance(x, Tensor)]
    assert len(ours) == len(wanted) > 0
    for a, b in zip(ours, wanted, strict=True):
        relative, absolute = TOLERANCES.get(dtype or a.dtype, _EXACT)
        torch.testing.assert_close(a.detach().cpu(), b.detach().cpu().to(a.dtype), rtol=relative, atol=absolute)


def lies_on(value: Any, device: str) -> bool:
    """Whether there are tensors in the structure, and all lie on the device."""
    tensors = [x for x in tree_leaves(value) if isinstance(x, Tensor)]
    return bool(tensors) and all(x.device.type == device for x in tensors)
