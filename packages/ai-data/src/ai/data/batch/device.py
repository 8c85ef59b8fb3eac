"""Checks of device names and moves of nested batches."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ai.data.batch.collate import like
from ai.data.batch.page_locked import Stretch


def checked_device(device: str | torch.device) -> torch.device:
    """Returns the device, or raises one clear sentence where this machine does not have it."""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"device must be a name that torch knows (cpu, cuda, cuda:1, mps), got {device!r}") from None
    if found.type == "cuda":
        n_devices = torch.cuda.device_count()
        if (found.index or 0) >= n_devices:
            raise ValueError(f"device {str(device)!r} is not available: torch sees {n_devices} CUDA devices")
        if found.index is None:  # batches report their index, and are compared with this device
            found = torch.device("cuda", torch.cuda.current_device())
    elif found.type == "mps":
        if not torch.backends.mps.is_available():
            raise ValueError(f"device {str(device)!r} is not available on this machine")
        found = torch.device("mps", 0)  # as its tensors say
    elif found.type == "cpu":
        found = torch.device("cpu")
    elif found.type == "meta":
        raise ValueError(f"device must hold values, and {str(device)!r} holds shapes alone")
    else:
        try:
            torch.empty(0, device=found)
        except (RuntimeError, AssertionError, ImportError):
            raise ValueError(f"device {str(device)!r} is not available on this machine") from None
    return found


def to_device(batch: Any, device: torch.device, pin: bool | Stretch) -> Any:
    """Returns the nested batch with arrays as tensors and tensors on `device`; other objects stay.

    Args:
        batch: tensors, arrays, or dicts, tuples and lists of them.
        device: where to.
        pin: go through page-locked memory, so that the copy overlaps with computation; True: through new memory.
    """
    if isinstance(batch, np.ndarray) and batch.dtype.kind in "biufc":
        batch = torch.from_numpy(batch if batch.flags.writeable else batch.copy())
    if isinstance(batch, Tensor):
        if batch.device == device:
            return batch
        if pin is False or batch.device.type != "cpu":
            return batch.to(device)
        return (batch.pin_memory() if pin is True else pin.holding(batch)).to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: to_device(value, device, pin) for key, value in batch.items()}
    if isinstance(batch, tuple):
        return like(batch, [to_device(value, device, pin) for value in batch])
    if isinstance(batch, list) and batch and isinstance(batch[0], Tensor | np.ndarray | Mapping | tuple):
        return [to_device(value, device, pin) for value in batch]
    return batch


class Arriving:
    """Tensors on their way to the CPU, without waiting for a GPU.

    Args:
        *tensors: on one device.

    >>> Arriving(torch.ones(2)).wait()
    [tensor([1., 1.])]
    """

    def __init__(self, *tensors: Tensor) -> None:
        self.here = not any(x.is_cuda for x in tensors)
        if self.here:
            self._host = [x.cpu() for x in tensors]
            return
        # Page-locked memory, which the GPU writes when it comes to it.
        self._host = [torch.empty(x.shape, dtype=x.dtype, device="cpu", pin_memory=True) for x in tensors]
        for target, source in zip(self._host, tensors, strict=True):
            target.copy_(source, non_blocking=True)
        self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._arrived.record(torch.cuda.current_stream(tensors[0].device))

    def wait(self) -> list[Tensor]:
        """Returns the tensors on the CPU, waiting for what the GPU had to do when they were sent."""
        if not self.here:
            self._arrived.synchronize()
        return self._host
