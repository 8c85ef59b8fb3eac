"""Anonymous memory that several processes map: it has no name, so that no exit, however abrupt, can leave it behind."""

import ctypes
import fcntl
import mmap
import os
import platform
import tempfile

import torch
from torch import Tensor

ALIGNMENT = 64  # bytes; a cache line, and enough for every dtype and vector unit
_madvise = ctypes.CDLL(None).madvise if hasattr(mmap, "MADV_REMOVE") else None


def align(n_bytes: int) -> int:
    """Returns `n_bytes` rounded up to a whole number of cache lines."""
    return align_up(n_bytes, ALIGNMENT)


def align_up(n: int, to: int) -> int:
    """Returns `n` rounded up to a multiple of `to`."""
    return -(-n // to) * to


def shared_slots_supported() -> bool:
    """Returns whether requests can travel through shared memory here.

    Publishing a request is "write the data, then write its number" without a fence between, which is ordered on
    x86 alone; elsewhere, and without eventfd or memfd, requests travel through the socket.
    """
    ordered = platform.machine().lower() in {"x86_64", "amd64"}
    return ordered and hasattr(os, "eventfd") and hasattr(os, "memfd_create")


def anonymous_file(n_bytes: int) -> int:
    """Returns the descriptor of a new nameless file of zeros, sealed at its size where the system can do that."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("ai-infer", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, n_bytes)
        # Whoever the file is handed to cannot shrink it and so kill us with SIGBUS.
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        return descriptor
    with tempfile.TemporaryFile() as file:
        file.truncate(n_bytes)
        return os.dup(file.fileno())


def return_pages(data: Tensor) -> None:
    """Gives the memory behind a part of a mapped file back to the system, where it can: what is there reads as zeros.

    Args:
        data: uint8 `(n,)`; of the pages that it touches, those that it fills.
    """
    begin = align_up(data.data_ptr(), mmap.PAGESIZE)
    n_bytes = (data.data_ptr() + data.numel()) // mmap.PAGESIZE * mmap.PAGESIZE - begin
    if n_bytes > 0 and _madvise is not None:
        _madvise(ctypes.c_void_p(begin), ctypes.c_size_t(n_bytes), mmap.MADV_REMOVE)


def map_file(descriptor: int, n_bytes: int) -> Tensor:
    """Returns the file's bytes as a shared, writable uint8 tensor `(n_bytes,)`; the descriptor may be closed after.

    The mapping keeps no descriptor of its own where that can be had: a worker has a mapping for each client.
    """
    path = f"/proc/self/fd/{descriptor}"
    if os.path.exists(path):
        os.close(os.dup(descriptor))  # raises OSError where torch's own error would not tell what is missing
        with torch.inference_mode(False):  # it outlives the mode in which somebody first asks
            return torch.from_file(path, shared=True, size=n_bytes, dtype=torch.uint8)
    with torch.inference_mode(False):
        return torch.frombuffer(mmap.mmap(descriptor, n_bytes), dtype=torch.uint8)
