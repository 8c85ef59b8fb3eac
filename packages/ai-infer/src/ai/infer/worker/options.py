"""What a worker is told beside its model."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ai.infer.worker.engine import Precision
from ai.infer.worker.rows.batch_axes import Axes
from ai.infer.worker.rows.sharing import Share


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
