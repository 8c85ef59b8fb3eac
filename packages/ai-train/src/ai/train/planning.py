"""What training on several GPUs takes, worked out before any is there: bytes that a rank holds, bytes that it sends."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from torch import nn

from ai.model.arguments import check_module, check_whole
from ai.train.distributed.fsdp import Fsdp
from ai.train.parallel import as_parallel


@dataclass(frozen=True)
class Plan:
    """Bytes of the rank that has most; activations, which depend on the batch, come on top.

    Attributes:
        weights: parameters and buffers that stay.
        gradients: what the optimiser steps with; of micro-batches under FSDP also the whole ones that wait.
        optimizer: the optimiser's moments.
        average: the moving average's copy.
        passing: what is whole, or in half precision, for a part of a step: gathered parameters, gradients before they
            are scattered, autocast's copies.
        sent: what a rank sends in one step, by rings.
    """

    weights: float = 0
    gradients: float = 0
    optimizer: float = 0
    average: float = 0
    passing: float = 0
    sent: float = 0

    @property
    def memory(self) -> float:
        """All but what is sent."""
        return self.weights + self.gradients + self.optimizer + self.average + self.passing

    def __add__(self, other: "Plan") -> "Plan":
        """Several models that are trained in turns."""
        return Plan(**{field.name: getattr(self, field.name) + getattr(other, field.name) for field in fields(self)})


def plan(
    model: nn.Module,
    parallel: Any,
    world: int,
    *,
    precision: str | None = None,
    accumulate: int = 1,
    moments: int = 2,
    ema: bool = False,
) -> Plan:
    """Returns what one model takes.

    Args:
        model: on any device, the meta device too.
        parallel: as of a trainer: `'ddp'`, `'fsdp'`, a `Ddp` or an `Fsdp`.
        world: the number of ranks.
        precision: as of a trainer.
        accumulate: as of a trainer.
        moments: tensors of the optimiser for each parameter, in float32: 2 of Adam, 1 of SGD with momentum.
        ema: whether there is a moving average.

    Raises:
        ValueError: `world` or `accumulate` is below 1.

    >>> p = plan(nn.Linear(100, 100, bias=False), 'ddp', 4)
    >>> p.weights, p.optimizer, p.sent
    (40000, 80000, 60000.0)
    """
    check_module(model=model)
    check_whole(world=world, accumulate=accumulate, moments=moments)
    if world < 1 or accumulate < 1:
        raise ValueError(f"world ({world}) and accumulate ({accumulate}) must be at least 1")
    how = as_parallel(parallel)
    buffers = sum(b.nbytes for b in model.buffers())
    if isinstance(how, Fsdp):
        found = _sharded(model, how, world, precision, accumulate)
    else:
        whole, n = sum(p.nbytes for p in model.parameters()), sum(p.numel() for p in model.parameters())
        found = Plan(
            weights=whole,
            gradients=whole,
            passing=0 if precision is None else 2 * n,
            sent=2 * (world - 1) / world * whole,
        )
    held = found.weights
    return found + Plan(weights=buffers, optimizer=moments * held, average=held if ema else 0)


def _sharded(model: nn.Module, how: Fsdp, world: int, precision: str | None, accumulate: int) -> Plan:
    groups = [_Group.of(part, world, half=precision == "bf16") for part in _groups(model, how)]
    shards = sum(group.shard for group in groups)
    gathered, scattered = sum(group.gathered for group in groups), sum(group.scattered for group in groups)
    passes = accumulate * (2 if how.reshard else 1)
    whole = max(a.gathered + b.gathered for a, b in zip([*groups, groups[0]][1:], groups, strict=True))
    if len(groups) == 1 or not how.reshard:
        whole = gathered
    held_back = scattered if accumulate > 1 else 0
    return Plan(
        weights=shards,
        gradients=shards + held_back,
        passing=whole + max(group.gathered + group.scattered for group in groups),
        sent=(world - 1) / world * (passes * gathered + scattered),
    )


@dataclass(frozen=True)
class _Group:
    """Parameters that are gathered and scattered together; in bytes, with the padding that makes shards equal."""

    shard: float
    gathered: float
    scattered: float

    @classmethod
    def of(cls, params: Iterable[nn.Parameter], world: int, half: bool) -> "_Group":
        shard = gathered = scattered = 0
        for p in params:
            rows = -(-p.shape[0] // world) if p.ndim else 1
            n = rows * (p.numel() // max(p.shape[0], 1) if p.ndim else 1)
            shard += n * p.element_size()
            gathered += n * world * (2 if half else p.element_size())
            scattered += n * world * (4 if half else p.element_size())
        return cls(shard, gathered, scattered)


def _groups(model: nn.Module, how: Fsdp) -> list[list[nn.Parameter]]:
    """The parameters of each block that are in no block inside it, then those of no block."""
    taken: set[int] = set()
    groups = []
    for module in [*how._find_blocks(model), model]:
        own = [p for p in module.parameters() if id(p) not in taken]
        taken |= {id(p) for p in own}
        if own:
            groups.append(own)
    return groups
