"""What a trial runs from time to time: a measurement of the model, together with how it is taken."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import nn

Protocol: TypeAlias = dict[str, str | int | float | list[float] | None]


@dataclass(frozen=True)
class Task:
    """A callable `task(model, step) -> numbers` that a `Trial` takes as it is.

    The model is measured in evaluation mode and without gradients, and is left in the mode that it was in.

    Args:
        measure: Returns the numbers of a model.
        protocol: How they are measured: range, resize, number of samples, reference. A distance without these cannot be
            compared with another.

    Example:
        >>> task = Task(lambda model: {"parameters": sum(p.numel() for p in model.parameters())}, {"n": 1})
        >>> task(nn.Linear(2, 3), step=0)
        {'parameters': 9}
    """

    measure: Callable[[nn.Module], dict[str, float]]
    protocol: Protocol

    def __call__(self, model: nn.Module, step: int) -> dict[str, float]:
        """Returns the numbers at `step`."""
        with evaluating(model):
            return self.measure(model)

    def write(self, path: str | Path) -> None:
        """Writes the protocol as JSON, for example into the trial's folder."""
        Path(path).write_text(json.dumps(self.protocol, indent=2) + "\n", encoding="utf-8")


def yardstick(task: Task) -> dict[str, float]:
    """Returns the protocol's `real_vs_real`, what a perfect generator would score, as a number; none if it has none.

    Example:
        >>> yardstick(Task(lambda model: {}, {"n": 1, "real_vs_real": 0.5}))
        {'real_vs_real': 0.5}
    """
    value = task.protocol.get("real_vs_real")
    return {} if value is None else {"real_vs_real": float(value)}  # type: ignore[arg-type]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts a model in evaluation mode without gradients for a while; each submodule's own mode comes back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode
