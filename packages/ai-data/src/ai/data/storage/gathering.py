"""Rows of a tensor, gathered straight into the memory that they go on from: page-locked, or shared with a worker."""

from collections.abc import Callable

import torch
from torch import Tensor

Empty = Callable[[tuple[int, ...], torch.dtype], Tensor]
"""Gives memory for a tensor of a shape and dtype, on the CPU."""

# `index_select` shares out whole rows among torch's threads while a row has fewer elements than this; a longer one it
# copies alone. So longer rows are given to it in parts.
_LONGEST = 2**15 - 1
_MOST_PARTS = 64


def gather_into(source: Tensor, rows: Tensor, empty: Empty) -> Tensor:
    """Returns `source.index_select(0, rows)` in given memory, without other memory in between.

    Memory that was just taken from the system costs more than the copy into it; what is given is used again.

    What is not stored number beside number (sparse), or has gradients, is gathered where it likes.

    Args:
        source: `[N, ...]` on the CPU.
        rows: `[n]` int64.
        empty: gives the memory.
    """
    if source.layout is not torch.strided or source.requires_grad:
        return source.index_select(0, rows)
    gathered = empty((len(rows), *source.shape[1:]), source.dtype)
    size = source.shape[1:].numel()
    parts = _parts(size) if source.is_contiguous() else 1
    if parts == 1:
        return torch.index_select(source, 0, rows, out=gathered)
    places = (rows[:, None] * parts + torch.arange(parts, device="cpu")).flatten()
    part = size // parts
    torch.index_select(source.view(-1, part), 0, places, out=gathered.view(len(places), part))
    return gathered


def _parts(size: int) -> int:
    """Into how few equal parts to cut a row of `size` elements so that none is too long; 1 where that needs many."""
    fewest = max(1, -(-size // _LONGEST))
    return next((parts for parts in range(fewest, _MOST_PARTS + 1) if size % parts == 0), 1)
