"""Torch's switches: what a process computes under, beside gradients, autocast and inference mode.

A worker takes over its starter's, so that equal inputs give equal bits, and each reply in parts has its own.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.backends import cuda, cudnn, mkldnn


class _Switch(NamedTuple):
    get: Callable[[], Any]
    set: Callable[[Any], object]


def _attribute(of: object, name: str) -> _Switch:
    return _Switch(partial(getattr, of, name), partial(setattr, of, name))


_SWITCHES = {
    "num_threads": _Switch(torch.get_num_threads, torch.set_num_threads),
    "default_dtype": _Switch(torch.get_default_dtype, torch.set_default_dtype),
    "matmul_precision": _Switch(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "deterministic": _Switch(torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
    "mkldnn": _attribute(mkldnn, "enabled"),
    "cudnn": _attribute(cudnn, "enabled"),
    "cudnn_tf32": _attribute(cudnn, "allow_tf32"),
    "cudnn_benchmark": _attribute(cudnn, "benchmark"),
    "cudnn_deterministic": _attribute(cudnn, "deterministic"),
    "flash_attention": _Switch(cuda.flash_sdp_enabled, cuda.enable_flash_sdp),
    "efficient_attention": _Switch(cuda.mem_efficient_sdp_enabled, cuda.enable_mem_efficient_sdp),
    "math_attention": _Switch(cuda.math_sdp_enabled, cuda.enable_math_sdp),
    "cudnn_attention": _Switch(cuda.cudnn_sdp_enabled, cuda.enable_cudnn_sdp),
}


def read_switches() -> dict[str, Any]:
    """Returns how this process's switches stand."""
    return {name: switch.get() for name, switch in _SWITCHES.items()}


def set_switches(state: dict[str, Any]) -> None:
    """Sets switches as they stood when `state` was read; what stands so already is not touched."""
    for name, value in state.items():
        switch = _SWITCHES[name]
        if switch.get() != value:
            switch.set(value)
