"""Page-locked memory that batches pass through on their way to a GPU: locked once, used again when it was read."""

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_ALIGNED = 64  # bytes


class PageLocked:
    """A few stretches of page-locked memory, of which each batch fills one.

    torch takes further memory for a batch whose predecessors no copy has read yet, and locking pages takes longer than
    copying them. Here a stretch is used again as soon as the copies out of it were made, and no sooner. Where none is
    free, its oldest is waited for: a loader is at most `size` batches ahead of its device.

    Args:
        device: a CUDA device, where batches go on to.
        size: stretches at most; more only where more threads fill them at once.
    """

    def __init__(self, device: torch.device, size: int = 4) -> None:
        self._device = device
        self._size = size
        self._n_made = 0
        self._free: deque[Stretch] = deque()  # the oldest first
        self._turn = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:  # a copy, or another process, locks memory of its own
        return type(self), (self._device, self._size)

    @contextmanager
    def stretch(self) -> Iterator["Stretch"]:
        """A stretch for one batch; at the end of the block all copies out of it were asked for."""
        stretch = self._next()
        try:
            stretch.clear()
            yield stretch
        finally:
            stretch.mark(self._device)
            self._free.append(stretch)

    def give_back(self) -> None:
        """Lets go of what no batch is in; torch's allocator waits for the copies out of it."""
        with self._turn:
            self._n_made -= len(self._free)
            self._free.clear()

    def _next(self) -> "Stretch":
        with self._turn:
            if self._free and (self._n_made >= self._size or self._free[0].was_read()):
                return self._free.popleft()
            self._n_made += 1
            return Stretch()


class Stretch:
    """Page-locked memory of one batch, given out piece by piece."""

    def __init__(self) -> None:
        self._blocks: list[Tensor] = []
        self._n_used = 0  # of the last block
        self._read: torch.cuda.Event | None = None

    def was_read(self) -> bool:
        """Whether the device has made the copies out of it."""
        return self._read is None or bool(self._read.query())  # type: ignore[no-untyped-call]

    def clear(self) -> None:
        """Begins anew, once the device has made the copies out of it."""
        if self._read is not None and not self.was_read():
            self._read.synchronize()
        if len(self._blocks) > 1:  # the next batch is as large, and finds it in one piece
            self._blocks = [_locked(sum(map(len, self._blocks)))]
        self._n_used = 0

    def mark(self, device: torch.device) -> None:
        """Notes that whatever is to be copied out of it has been asked of the device."""
        self._read = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._read.record(torch.cuda.current_stream(device))

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Returns memory for a tensor, until `clear`."""
        n_bytes = torch.Size(shape).numel() * dtype.itemsize
        start = -(-self._n_used // _ALIGNED) * _ALIGNED
        if not self._blocks or start + n_bytes > len(self._blocks[-1]):
            self._blocks.append(_locked(max(n_bytes, _ALIGNED)))
            start = 0
        self._n_used = start + n_bytes
        return self._blocks[-1][start : start + n_bytes].view(dtype).view(torch.Size(shape))

    def holding(self, x: Tensor) -> Tensor:
        """Returns the numbers of a tensor of the CPU in page-locked memory: the tensor itself where it lies there."""
        plain = type(x) is Tensor and x.layout is torch.strided and not x.is_nested and not x.is_quantized
        if not plain or x.requires_grad or not x.is_contiguous() or x.is_conj() or x.is_neg():  # torch knows how
            return x.pin_memory()
        return x if x.is_pinned() else self.empty(x.shape, x.dtype).copy_(x)


def _locked(n_bytes: int) -> Tensor:
    return torch.empty(n_bytes, dtype=torch.uint8, pin_memory=True, device="cpu")
