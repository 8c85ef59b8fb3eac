"""Every rank holds the whole model: `DistributedDataParallel` around the call of the environment."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ai.train.distributed.job import Call, check_device, join, part_of
from ai.train.distributed.process_group import mean_weight, own_device
from ai.train.engine.ranks import Ranks
from ai.train.engine.update import Loss


@dataclass(frozen=True, kw_only=True)
class Ddp:
    """Every rank holds the whole model; gradients are averaged (`DistributedDataParallel`).

    Attributes:
        find_unused: set where a step may leave parameters without gradients.
        timeout_s: how long ranks wait for one another before the run fails.

    >>> Ddp().shards
    False
    """

    find_unused: bool = False
    timeout_s: float = 600.0
    shards = False

    def ranks(self) -> Ranks:
        """Join the job, if there is one."""
        return join(self.timeout_s)

    def owns_precision(self, precision: str | None) -> bool:
        """Whether autocast must stay out of it."""
        return False

    def part_of(self, data: Iterable[Any], ranks: Ranks) -> Iterable[Any]:
        """This rank's part of the data."""
        return part_of(data, ranks)

    def check_device(self, model: nn.Module) -> None:
        """Refuse a model on another rank's GPU."""
        check_device(model, own_device())

    def apply(self, model: nn.Module, optimizer: Optimizer | None, options: Any) -> None:
        """Nothing is changed: the wrapper lies around the call of the environment."""

    def wrap(self, call: Call, model: nn.Module) -> tuple[Call, dict[str, Any]]:
        """The call inside DDP: whichever methods the environment uses, its backward synchronises."""
        wrapped = nn.parallel.DistributedDataParallel(_Call(call, model), find_unused_parameters=self.find_unused)
        device = next(model.parameters()).device
        return wrapped, {"no_sync": wrapped.no_sync, "sum_weights": lambda total: mean_weight(total, device)}


class _Call(nn.Module):
    """The environment's call as a module over the trained model, so that DDP sees exactly its parameters."""

    def __init__(self, call: Call, model: nn.Module) -> None:
        super().__init__()
        self.call = call
        self.model = model

    def forward(self, batch: Any, step: int) -> Loss:
        return self.call(batch, step)
