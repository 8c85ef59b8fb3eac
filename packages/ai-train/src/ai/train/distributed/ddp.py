"""Every rank holds the whole model: `DistributedDataParallel` around the call of the environment."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ai.train.distributed.job import check_device, common_to_ranks, join, part_of
from ai.train.distributed.process_group import own_device
from ai.train.engine.placement import Call
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

    def scaler(self, device: torch.device) -> torch.amp.GradScaler:
        """Torch's own: every rank has the same gradients."""
        return torch.amp.GradScaler(device.type)

    def wrap(self, call: Call, model: nn.Module, outside: Sequence[nn.Parameter]) -> tuple[Call, dict[str, Any]]:
        """The call inside DDP: whichever methods the environment uses, its backward synchronises."""
        # Gradients lie in the buckets that are reduced: else each is held twice.
        wrapped = nn.parallel.DistributedDataParallel(
            _Call(call, model), find_unused_parameters=self.find_unused, gradient_as_bucket_view=True
        )
        return wrapped, {"no_sync": wrapped.no_sync, **common_to_ranks(model, outside)}


class _Call(nn.Module):
    """The environment's call as a module over the trained model, so that DDP sees exactly its parameters."""

    def __init__(self, call: Call, model: nn.Module) -> None:
        super().__init__()
        self.call = call
        self.model = model
        self._trained = [param.requires_grad for param in model.parameters()]

    def forward(self, batch: Any, step: int) -> Loss:
        # DDP sums the gradients of the parameters that it found; another's would drift apart from rank to rank.
        trained = [param.requires_grad for param in self.model.parameters()]
        if trained != self._trained:
            names = [name for name, _ in self.model.named_parameters()]
            pairs = zip(names, trained, self._trained, strict=False)
            changed = next((name for name, now, before in pairs if now != before), "a parameter that is new")
            raise ValueError(
                f"requires_grad of {changed!r} was changed while parallel='ddp' trains, which DDP cannot follow: end "
                "the run, change it, and train on from the step that was reached"
            )
        return self.call(batch, step)
