"""What a worker is told beside its model."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ai.infer.worker.batch_axes import Axes
from ai.infer.worker.engine import Precision
from ai.infer.worker.sharing import Share


@dataclass(frozen=True)
class WorkerOptions:
    """What a worker is told beside the model; see `Inferencer` for what each means."""

    device: str = "cpu"
    batch_size: int | None = 64
    """None: tune it."""
    max_delay_s: float = 0.0
    precision: Precision = "model"
    compile: bool | str = False
    graph_rows: tuple[int, ...] = ()
    pad: Callable[[Tensor], Tensor] | None = None
    share: Share = "auto"
    in_axes: Axes = 0
    out_axes: Axes = 0
    torch_state: dict[str, Any] = field(default_factory=dict)
    """The starter's own settings that decide how torch rounds."""


def torch_state() -> dict[str, Any]:
    """Returns this process's settings that decide how torch rounds."""
    return {
        "num_threads": torch.get_num_threads(),
        "default_dtype": torch.get_default_dtype(),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "deterministic_warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "mkldnn": torch.backends.mkldnn.enabled,
        "cudnn_tf32": torch.backends.cudnn.allow_tf32,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
    }


def take_over(state: dict[str, Any]) -> None:
    """Sets torch up as the starter had it, so that equal inputs give equal bits."""
    torch.set_num_threads(state["num_threads"])
    torch.set_default_dtype(state["default_dtype"])
    torch.set_float32_matmul_precision(state["matmul_precision"])
    torch.use_deterministic_algorithms(state["deterministic"], warn_only=state["deterministic_warn_only"])
    torch.backends.mkldnn.enabled = state["mkldnn"]
    torch.backends.cudnn.allow_tf32 = state["cudnn_tf32"]
    torch.backends.cudnn.benchmark = state["cudnn_benchmark"]
    torch.backends.cudnn.deterministic = state["cudnn_deterministic"]
