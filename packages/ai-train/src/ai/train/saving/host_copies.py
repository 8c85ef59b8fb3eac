"""Copies of a state in host memory that is kept from one copy to the next."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


class HostCopies:
    """Copies structures of tensors and arrays to the CPU, each time over the copy before.

    The system hands out fresh pages several times more slowly than they are copied, so that memory which is kept makes
    all copies after the first cheap. Copies of CUDA tensors lie in pinned memory.

    >>> copies, weight = HostCopies(), torch.ones(2)
    >>> first = copies.take({'weight': weight})
    >>> weight += 1
    >>> first['weight'].tolist(), copies.take({'weight': weight})['weight'].tolist()
    ([1.0, 1.0], [2.0, 2.0])
    >>> first['weight'].tolist()  # overwritten by the second copy
    [2.0, 2.0]
    """

    def __init__(self) -> None:
        # By form: what was lent to the last copy, in the order in which it was asked for.
        self._kept: dict[tuple[Any, ...], list[Any]] = {}

    def take(self, state: Any) -> Any:
        """The same structure with every tensor and array copied; it is valid until the next call."""
        taking = _Taking(self._kept)
        copied = taking.copy(state)
        torch._foreach_copy_(taking.targets, taking.sources, non_blocking=True)
        for device in {source.device for source in taking.sources if source.is_cuda}:
            torch.cuda.current_stream(device).synchronize()
        self._kept = taking.lent  # what the state no longer asks for is freed
        return copied

    def make_ready(self, state: Any) -> None:
        """Have the memory that `take` of such a state needs; in a thread it may run beside what changes the state."""
        taking = _Taking(self._kept)
        taking.copy(state)
        for target in taking.targets:
            target.zero_()  # touches each page
        self._kept = taking.lent


class _Taking:
    """One copy: tensors are only noted, to be copied together at its end."""

    def __init__(self, kept: Mapping[tuple[Any, ...], list[Any]]) -> None:
        self._kept = kept
        self._made: dict[tuple[Any, ...], Tensor] = {}
        self.lent: dict[tuple[Any, ...], list[Any]] = {}
        self.sources: list[Tensor] = []
        self.targets: list[Tensor] = []

    def copy(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._copy_tensor(value.detach())
        if isinstance(value, np.ndarray):
            return self._copy_array(value)
        if isinstance(value, Mapping):
            return {key: self.copy(item) for key, item in value.items()}
        if isinstance(value, tuple):
            return tuple(self.copy(item) for item in value)
        if isinstance(value, list):
            return [self.copy(item) for item in value]
        return value

    def _copy_tensor(self, value: Tensor) -> Tensor:
        # Tied tensors stay tied.
        form = (value.device, value.dtype, tuple(value.shape), value.stride())
        where = (*form, value.data_ptr())
        if value.numel() == 0 or where not in self._made:
            target = self._borrow(form)
            if target is None:
                target = torch.empty_like(value, device="cpu", pin_memory=value.is_cuda)
            self.lent.setdefault(form, []).append(target)
            self.sources.append(value)
            self.targets.append(target)
            self._made[where] = target
        return self._made[where]

    def _copy_array(self, value: np.ndarray) -> np.ndarray:
        form = (value.dtype, value.shape, value.strides)
        kept: np.ndarray | None = self._borrow(form)
        target = np.empty_like(value) if kept is None else kept
        self.lent.setdefault(form, []).append(target)
        np.copyto(target, value)
        return target

    def _borrow(self, form: tuple[Any, ...]) -> Any:
        """The next kept one of this form, or None where none is left."""
        kept, lent = self._kept.get(form, ()), len(self.lent.get(form, ()))
        return kept[lent] if lent < len(kept) else None
