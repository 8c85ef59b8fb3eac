"""Torch's switches: what a process computes under, beside gradients, autocast and inference mode.

A worker takes over its starter's, so that equal inputs give equal bits, and each reply in parts has its own.
"""

from collections.abc import Callable
from functools import partial
from operator import attrgetter
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


# Since torch 2.9, beside the older switches: each stands for those below it that say nothing, so it is set before them.
_PRECISION = "fp32_precision of "
_ONES_BELOW = "cuda.matmul cudnn cudnn.conv cudnn.rnn mkldnn mkldnn.matmul mkldnn.conv mkldnn.rnn".split()
if hasattr(torch.backends, "fp32_precision"):
    _SWITCHES[f"{_PRECISION}all"] = _attribute(torch.backends, "fp32_precision")
    for _name in _ONES_BELOW:
        _SWITCHES[_PRECISION + _name] = _attribute(attrgetter(_name)(torch.backends), "fp32_precision")


def read_switches() -> dict[str, Any]:
    """Returns how this process's switches stand, but those of which torch does not say it."""
    state = {name: _read(switch) for name, switch in _SWITCHES.items()}
    return {name: value for name, value in state.items() if value is not None}


def set_switches(state: dict[str, Any]) -> None:
    """Sets switches as they stood when `state` was read; what stands so already is not touched."""
    for name, value in state.items():
        switch = _SWITCHES[name]
        if _read(switch) != value:
            switch.set(value)


def may_round_to_tf32() -> bool:
    """Returns whether a GPU may compute fp32 in TF32."""
    state = read_switches()
    older = state.get("cudnn_tf32", False) or state.get("matmul_precision", "highest") != "highest"
    return older or any(value == "tf32" for name, value in state.items() if name.startswith(_PRECISION))


def _read(switch: _Switch) -> Any:
    try:
        return switch.get()
    except RuntimeError:  # torch refuses to say, for an older switch, what several newer ones say differently
        return None
