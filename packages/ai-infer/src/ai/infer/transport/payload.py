"""What a starter sends its workers: the model or how it is built, and their options, in one file without a name."""

import importlib
import mmap
import os
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import cloudpickle  # type: ignore[import-untyped]
import torch
from torch import nn

from ai.infer.transport.shared_memory import anonymous_file


def pack_payload(model: nn.Module, options: Sequence[object], build: Callable[[], nn.Module] | None) -> int:
    """Returns the descriptor of such a file; classes of `__main__` travel by value.

    Args:
        model: of the workers.
        options: of each worker.
        build: makes the model, into which the state of `model` is to be loaded; None: `model` itself travels.
    """
    payload: dict[str, Any] = {"options": list(options)}
    payload |= {"model": model} if build is None else {"build": build, "state": model.state_dict()}
    descriptor = _anonymous_file_for_writing()
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            torch.save(payload, file, pickle_module=_ByValue)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_payload(descriptor: int) -> dict[str, Any]:
    """Returns `options` and either `model`, or `build` and `state`; the file may be closed after."""
    # Mapped, not read: the replicas share the file, its memory and its position.
    with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as file:
        payload: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=False)  # type: ignore[arg-type]
    return payload


class _ModulePickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Knows modules of a class of their own, such as `torch.backends.cudnn`, which a script's model may name."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, ModuleType) and type(obj) is not ModuleType and sys.modules.get(obj.__name__) is obj:
            return importlib.import_module, (obj.__name__,)
        return super().reducer_override(obj)


class _ByValue:
    """What `torch.save` takes for a module that pickles."""

    Pickler = _ModulePickler


def _anonymous_file_for_writing() -> int:
    """Returns the descriptor of a new empty file without a name, of no fixed size."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("ai-infer-model", os.MFD_CLOEXEC)
    return anonymous_file(0)
