"""Training on many devices: the same script under `torchrun`, with `parallel='ddp'` or `'fsdp'`.

Both are applied in place: the environment, the hook and the user keep their own objects. An optimiser that was made
before sharding stays valid: its groups are bound anew, by name. Without `torchrun` either does nothing.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DistributedSampler

from ai.train.distributed.process_group import GroupRanks, mean_weight, own_device, start_process_group
from ai.train.engine.ranks import Ranks
from ai.train.engine.update import Loss

Call = Callable[[Any, int], Loss]


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
        return _join(self.timeout_s)

    def owns_precision(self, precision: str | None) -> bool:
        """Whether autocast must stay out of it."""
        return False

    def part_of(self, data: Iterable[Any], ranks: Ranks) -> Iterable[Any]:
        """This rank's part of the data."""
        return _part_of(data, ranks)

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


@dataclass(frozen=True, kw_only=True)
class Fsdp:
    """Parameters, gradients and optimiser states are sharded over the ranks (FSDP2, `fully_shard`).

    Attributes:
        blocks: modules to be gathered one at a time: classes, or names; None takes each part of every `Sequential` and
            `ModuleList` that has parameters.
        methods: names of methods besides `forward` that the environment calls on the model.
        checkpoint: whether the blocks' activations are recomputed in the backward pass.
        reshard: whether parameters are freed between forward and backward; False is faster and takes more memory.
        timeout_s: how long ranks wait for one another before the run fails.

    `precision='bf16'` becomes FSDP's mixed precision policy: parameters in bfloat16, gradients reduced in float32.

    >>> Fsdp().shards
    True
    """

    blocks: Sequence[str | type[nn.Module]] | None = None
    methods: Sequence[str] = ()
    checkpoint: bool = False
    reshard: bool = True
    timeout_s: float = 600.0
    shards = True

    def ranks(self) -> Ranks:
        """Join the job, if there is one."""
        return _join(self.timeout_s)

    def owns_precision(self, precision: str | None) -> bool:
        """Whether autocast must stay out of it."""
        return precision == "bf16"

    def part_of(self, data: Iterable[Any], ranks: Ranks) -> Iterable[Any]:
        """This rank's part of the data."""
        return _part_of(data, ranks)

    def check_device(self, model: nn.Module) -> None:
        """Refuse a model on another rank's GPU."""
        check_device(model, own_device())

    def scaler(self, device: torch.device) -> torch.amp.GradScaler:
        """A scaler whose verdict is the same on every rank."""
        from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

        return ShardedGradScaler(device.type)

    def apply(self, model: nn.Module, optimizer: Optimizer | None, options: Any) -> None:
        """Shard the model in place, from rank 0's parameters, and bind the optimiser to the shards.

        Raises:
            ValueError: the optimiser holds state already, whose parameters are about to be replaced.
        """
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

        if isinstance(model, FSDPModule):
            return
        if optimizer is not None and optimizer.state:
            raise ValueError(
                f"the optimizer ({type(optimizer).__name__}) holds state of {len(optimizer.state)} parameters that "
                "parallel='fsdp' would replace: shard with a fresh optimizer, and load its state from a snapshot"
            )
        with torch.no_grad():
            for tensor in [*model.parameters(), *model.buffers()]:
                dist.broadcast(tensor, 0)
        names = {id(p): name for name, p in model.named_parameters(remove_duplicate=False)}
        half = options.precision == "bf16"
        policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if half else MixedPrecisionPolicy()
        mesh = init_device_mesh(next(model.parameters()).device.type, (dist.get_world_size(),))
        blocks = self._find_blocks(model)
        if self.checkpoint:
            from torch.distributed._composable.checkpoint_activation import checkpoint

            for block in blocks:
                checkpoint(block)
        for block in blocks:
            fully_shard(block, mesh=mesh, mp_policy=policy, reshard_after_forward=self.reshard)
        fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=self.reshard)
        for method in self.methods:
            register_fsdp_forward_method(model, method)
        if optimizer is not None:
            _rebind(optimizer, names, dict(model.named_parameters(remove_duplicate=False)))

    def _find_blocks(self, model: nn.Module) -> list[nn.Module]:
        found = []
        if self.blocks is None:
            for module in model.modules():
                if isinstance(module, (nn.Sequential, nn.ModuleList)):
                    found += [child for child in module if next(child.parameters(), None) is not None]
        else:
            for name, module in model.named_modules():
                if any(module.__class__ is b if isinstance(b, type) else name == b for b in self.blocks):
                    found.append(module)
            if not found:
                raise ValueError(f"blocks ({self.blocks}) must name a module of {type(model).__name__}")
        unique = {id(module): module for module in found if module is not model}
        # Inner modules must be sharded before those that hold them.
        return list(unique.values())[::-1]

    def wrap(self, call: Call, model: nn.Module) -> tuple[Call, dict[str, Any]]:
        """The call as it is; FSDP acts inside the model."""
        sharded: Any = model
        device = next(model.parameters()).device

        @contextmanager
        def no_sync() -> Iterator[None]:
            sharded.set_requires_gradient_sync(False)
            try:
                yield
            finally:
                sharded.set_requires_gradient_sync(True)

        def reduce_flag(flag: torch.Tensor) -> None:
            dist.all_reduce(flag, dist.ReduceOp.MAX)

        return call, {
            "no_sync": no_sync,
            "sum_weights": lambda total: mean_weight(total, device),
            "reduce_flag": reduce_flag,
        }


Parallel = Ddp | Fsdp


def device() -> torch.device:
    """The device of this rank under `torchrun`, its GPU if there are any: for models and loaders, before they are made.

    Afterwards plain `'cuda'` means it too. Without `torchrun` it is the first GPU, or the CPU.

    >>> device().type in ('cuda', 'cpu')
    True
    """
    return own_device()


def check_device(model: nn.Module, own: torch.device) -> None:
    """Raise if the model lies on another rank's GPU.

    Raises:
        ValueError: it does; the fix is named.
    """
    found = next(model.parameters()).device
    if found.type == "cuda" and found != own:
        raise ValueError(
            f"the model lies on {found}, and this rank's device is {own}: "
            "make model and loader on ai.train.parallel.device()"
        )


def as_parallel(value: Any) -> Parallel:
    """`Ddp()` for `'ddp'`, `Fsdp()` for `'fsdp'`, or the object itself.

    Raises:
        ValueError: anything else.

    >>> as_parallel('ddp')
    Ddp(find_unused=False, timeout_s=600.0)
    """
    if isinstance(value, (Ddp, Fsdp)):
        return value
    if value == "ddp":
        return Ddp()
    if value == "fsdp":
        return Fsdp()
    raise ValueError(f"parallel must be None, 'ddp', 'fsdp', or a Ddp or Fsdp of ai.train.parallel, not {value!r}")


class _Call(nn.Module):
    """The environment's call as a module over the trained model, so that DDP sees exactly its parameters."""

    def __init__(self, call: Call, model: nn.Module) -> None:
        super().__init__()
        self.call = call
        self.model = model

    def forward(self, batch: Any, step: int) -> Loss:
        return self.call(batch, step)


def _join(timeout_s: float) -> Ranks:
    start_process_group(timeout_s)
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return Ranks()
    return GroupRanks(timeout_s)


def _part_of(data: Iterable[Any], ranks: Ranks) -> Iterable[Any]:
    if isinstance(ranks, GroupRanks):
        ranks.endless = getattr(data, "train", None) is True or hasattr(data, "update_params")
    if hasattr(data, "shard"):
        part: Iterable[Any] = data.shard(ranks.rank, ranks.world)
        return part
    sampler = getattr(data, "sampler", None)
    if ranks.rank == 0 and not hasattr(data, "update_params") and not isinstance(sampler, DistributedSampler):
        print(
            f"the data ({type(data).__name__}) has no shard(rank, world): each rank trains on all that it was given; "
            "a loader of ai.data is split by rank, a torch DataLoader needs a DistributedSampler",
            file=sys.stderr,
        )
    return data


def _rebind(optimizer: Optimizer, names: dict[int, str], params: dict[str, nn.Parameter]) -> None:
    for group in optimizer.param_groups:
        unknown = [p for p in group["params"] if id(p) not in names]
        if unknown:
            raise ValueError(f"the optimizer holds {len(unknown)} parameters that are not the model's")
        group["params"] = [params[names[id(p)]] for p in group["params"]]
    if isinstance(optimizer, (torch.optim.SGD, torch.optim.Adagrad)) and optimizer.defaults.get("fused"):
        # torch has no sharding rule for their fused kernels.
        for settings in [optimizer.defaults, *optimizer.param_groups]:
            settings["fused"], settings["foreach"] = False, True
        optimizer._step_supports_amp_scaling = False
