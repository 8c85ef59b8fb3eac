"""Where a run's models live: the interface of one process, which `Ddp` and `Fsdp` share."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import nn
from torch.optim import Optimizer

from ai.train.engine.ranks import Ranks
from ai.train.engine.update import Loss

Call = Callable[[Any, int], Loss]


class Placement(Protocol):
    """What `prepare` asks, of one process or many."""

    @property
    def shards(self) -> bool:
        """Whether parameters are divided among the ranks, so that forward passes are collective."""

    def part_of(self, data: Iterable[Any], ranks: Ranks) -> Iterable[Any]:
        """This rank's part of the data."""

    def check_device(self, model: nn.Module) -> None:
        """Refuse a model on another rank's device."""

    def apply(self, model: nn.Module, optimizer: Optimizer | None, options: Any) -> None:
        """Place the model, in place, and bind the optimiser to what has taken its parameters' place."""

    def owns_precision(self, precision: str | None) -> bool:
        """Whether autocast must stay out of it."""

    def scaler(self, device: torch.device) -> torch.amp.GradScaler:
        """A scaler of float16 whose verdict is the same on every rank."""

    def wrap(self, call: Call, model: nn.Module, outside: Sequence[nn.Parameter]) -> tuple[Call, dict[str, Any]]:
        """The call of the environment, and what `Update` takes for many ranks; `outside` are others' parameters."""


class Alone:
    """One process: everything stays as it is.

    >>> call, extra = Alone().wrap(print, nn.Identity(), [])
    >>> call is print, extra
    (True, {})
    """

    shards = False

    def part_of(self, data: Iterable[Any], ranks: Ranks) -> Iterable[Any]:
        """All of it."""
        return data

    def check_device(self, model: nn.Module) -> None:
        """Any device is right."""

    def apply(self, model: nn.Module, optimizer: Optimizer | None, options: Any) -> None:
        """Nothing is changed."""

    def owns_precision(self, precision: str | None) -> bool:
        """No."""
        return False

    def scaler(self, device: torch.device) -> torch.amp.GradScaler:
        """Torch's own."""
        return torch.amp.GradScaler(device.type)

    def wrap(self, call: Call, model: nn.Module, outside: Sequence[nn.Parameter]) -> tuple[Call, dict[str, Any]]:
        """The call itself."""
        return call, {}


def place(parallel: Any) -> tuple[Placement, Ranks]:
    """The placement that `parallel=` asks for, `Alone` for a single process, and its ranks."""
    ranks: Ranks = Ranks() if parallel is None else parallel.ranks()
    return (parallel, ranks) if ranks.world > 1 else (Alone(), ranks)
