"""Whether two answers of a model to one request differ in rounding alone, as two batch sizes make it."""

from collections.abc import Sequence

import torch
from torch import Tensor

_GAP = 1e4  # in the sizes of an output's numbers, from which on the large ones say nothing of the small ones' rounding


def are_close(shares: Sequence[Tensor], separate: Sequence[Tensor], coarsest: torch.dtype | None) -> bool:
    """Returns whether numbers agree but for how they were rounded.

    Args:
        shares: what one call for all gave to each request, on the CPU.
        separate: what a call of its own gave to each, of the same shapes and dtype.
        coarsest: the dtype in which the model rounds, if it is coarser than theirs.
    """
    a, b = (torch.cat([x.reshape(-1) for x in xs]) for xs in (shares, separate))
    if not a.numel() or torch.equal(a, b):
        return True
    if not (a.is_floating_point() or a.is_complex()):
        return False
    dtype = a.dtype if coarsest is None or a.dtype is torch.float64 else coarsest
    if a.is_complex():
        a, b, dtype = torch.view_as_real(a).reshape(-1), torch.view_as_real(b).reshape(-1), a.real.dtype
    a, b = a.double(), b.double()
    finite = a.isfinite() & b.isfinite()
    same = (a == b) | (a.isnan() & b.isnan())
    if not bool((finite | same).all()):
        return False
    a, b = a[finite], b[finite]
    if torch.equal(a, b):
        return True
    eps = torch.finfo(dtype).eps if dtype.is_floating_point else torch.finfo(torch.float32).eps
    scale = _of_scale(a, b)
    most, spread = float(scale.abs().max()), float(scale.max() - scale.min())
    relative, factor = {1: (0.3, 4), 2: (0.04, 4), 4: (1e-4, 64), 8: (1e-9, 64)}[dtype.itemsize]
    # Of what the outputs tell apart, of what they are, and of what cancelled out in them.
    limit = relative * spread + factor * eps * most + min(32 * eps, 1e-3 * spread)
    return bool(((a - b).abs() <= limit).all())


def _of_scale(a: Tensor, b: Tensor) -> Tensor:
    """Returns those of `b`, of which some are not as in `a`, whose sizes tell how far rounding may have moved them.

    What stands there as it was written, such as a mask's -1e9 for forbidden moves, tells nothing: an extreme that comes
    more than once and never differs, and whatever is far larger than all that differs.
    """
    kept = torch.ones_like(b, dtype=torch.bool)
    for extreme in (b.min(), b.max()):
        here = b == extreme
        if int(here.sum()) > 1 and torch.equal(a[here], b[here]):
            kept &= ~here
    scale = b[kept]
    sizes = scale.abs().sort().values
    sizes = sizes[sizes >= b[a != b].abs().max()]
    jumps = (sizes[1:] > _GAP * sizes[:-1]).nonzero()
    return scale[scale.abs() <= sizes[int(jumps[0])]] if len(jumps) else scale
