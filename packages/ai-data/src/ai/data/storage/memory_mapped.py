"""Columns that lie in a memory-mapped file, and parts of them that stay there."""

import mmap
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

# Rows that are looked up together.
_AT_ONCE = 8192


class Mapped(Tensor):
    """A tensor over a memory-mapped file: a part of it is an index into the file, never a copy of its rows.

    Whatever is computed from it, a copy and a pickle included, is a plain tensor in memory.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # as in nn.Parameter

    def __deepcopy__(self, memo: Any) -> Tensor:
        return memo.setdefault(id(self), self.clone())  # type: ignore[no-any-return]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.as_subclass(Tensor).__reduce_ex__(protocol)  # type: ignore[no-untyped-call]


class Places(Protocol):
    """Numbers of rows: a tensor of them, or what works them out when they are asked for."""

    def __len__(self) -> int:
        """How many."""

    def __getitem__(self, index: Any) -> Tensor:
        """Returns some, as a tensor does."""


class Rows:
    """Chosen rows of a `Mapped` column, each read from the file when it is asked for.

    Args:
        source: `[N, ...]`, the whole column.
        rows: `[n]` int64, places in it; of a shuffled order they need not be drawn.

    Example:
        >>> part = Rows(torch.arange(10).as_subclass(Mapped), torch.tensor([7, 2, 5]))
        >>> len(part), part[1].item(), part[1:].tolist(), np.asarray(part).tolist()
        (3, 2, [2, 5], [7, 2, 5])
    """

    def __init__(self, source: Tensor, rows: Places) -> None:
        self.source = source
        self.rows = rows

    @property
    def shape(self) -> torch.Size:
        """That of the tensor with these rows."""
        return torch.Size((len(self.rows), *self.source.shape[1:]))

    @property
    def dtype(self) -> torch.dtype:
        """Of the column."""
        return self.source.dtype

    @property
    def device(self) -> torch.device:
        """Of the column: the CPU."""
        return self.source.device

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Tensor:
        """Returns a row as a view of the file, or the rows of a slice or of indices read into a tensor."""
        rows = self.rows[index]
        return self.source[int(rows)] if rows.ndim == 0 else self.source.index_select(0, rows)

    def __iter__(self) -> Iterator[Tensor]:
        return (
            self.source[row] for start in range(0, len(self), _AT_ONCE) for row in self.rows[start : start + _AT_ONCE]
        )

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("copy must not be False: the rows lie apart in their file")
        return np.asarray(self.tensor().numpy(), dtype)

    def __deepcopy__(self, memo: Any) -> Tensor:
        return memo.setdefault(id(self), self.tensor())  # type: ignore[no-any-return]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.tensor().__reduce_ex__(protocol)  # type: ignore[no-untyped-call]  # not the whole file

    def tensor(self) -> Tensor:
        """Returns all rows, read into memory."""
        return self[:]

    def part(self, indices: Places) -> "Rows":
        """Returns the column of the rows at `indices` of this one."""
        return Rows(self.source, self.rows[indices if isinstance(indices, Tensor) else indices[:]])


def is_mapped(array: np.ndarray) -> bool:
    """Returns whether the memory of `array` is that of a memory map."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    return isinstance(base, mmap.mmap)
