"""What each request of a batch gets of the model's output: rows of its tensors, mostly as they lie in memory."""

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from torch import Tensor, nn

_MANY = 4


class Shares:
    """Cuts an output for the requests that made it up.

    Args:
        tensors: of the output, on the CPU.
        rows: of each request.
        axes: of each tensor the one along which it is cut; None: every request gets the whole. A lone request gets
            all there is.
    """

    def __init__(self, tensors: Sequence[Tensor], rows: Sequence[int], axes: Sequence[int | None] = ()) -> None:
        self.rows = rows
        self._tensors = tensors
        self._axes = axes if len(rows) > 1 else [None] * len(tensors)
        self._starts = [0, *accumulate(rows)]
        self.data: list[list[memoryview]] | None = None
        """Of each tensor the bytes of every share; None: they do not lie one after the other in it, or are so few that
        to copy them as tensors costs less."""
        if len(rows) >= _MANY and all(axis == 0 for axis in axes) and all(_lies_in_rows(x) for x in tensors):
            self.data = [self._cut(x) for x in tensors]

    def __getitem__(self, index: int) -> list[Tensor]:
        start, n = self._starts[index], self.rows[index]
        pairs = zip(self._tensors, self._axes, strict=True)
        return [x if axis is None else x.narrow(axis, start, n) for x, axis in pairs]

    def _cut(self, x: Tensor) -> list[memoryview]:
        # The strides said anew: those of axes of size one may be any.
        data: memoryview = x.detach().as_strided((x.numel(),), (1,)).view(torch.uint8).numpy().data
        row_bytes = len(data) // self._starts[-1]
        return [data[start * row_bytes : end * row_bytes] for start, end in pairwise(self._starts)]


def _lies_in_rows(x: Tensor) -> bool:
    return type(x) in (Tensor, nn.Parameter) and x.is_contiguous() and not x.is_conj() and not x.is_neg()
