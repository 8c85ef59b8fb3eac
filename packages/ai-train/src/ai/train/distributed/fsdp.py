"""Parameters, gradients and optimiser states sharded over the ranks: FSDP2's `fully_shard`, in place."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from ai.train.distributed.job import check_device, common_to_ranks, join, part_of
from ai.train.distributed.process_group import own_device
from ai.train.engine.placement import Call
from ai.train.engine.ranks import Ranks
from ai.train.optimizers.together import Together


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
        return join(self.timeout_s)

    def owns_precision(self, precision: str | None) -> bool:
        """Whether autocast must stay out of it."""
        return precision == "bf16"

    def part_of(self, data: Iterable[Any], ranks: Ranks) -> Iterable[Any]:
        """This rank's part of the data."""
        return part_of(data, ranks)

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
            ValueError: the optimiser holds state already, whose parameters are about to be replaced; or parameters that
            are not the model's; or the model lies on the CPU, and torch shards on GPUs alone, as 2.6 does.
        """
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

        if isinstance(model, FSDPModule):
            return
        if next(model.parameters()).device.type == "cpu" and not hasattr(torch.cpu.Stream, "record_event"):
            raise ValueError(
                f"parallel='fsdp' needs torch 2.7 or newer for a model on the CPU, not {torch.__version__}: "
                "use parallel='ddp'"
            )
        if optimizer is not None and optimizer.state:
            raise ValueError(
                f"the optimizer ({type(optimizer).__name__}) holds state of {len(optimizer.state)} parameters that "
                "parallel='fsdp' would replace: shard with a fresh optimizer, and load its state from a snapshot"
            )
        if isinstance(optimizer, Together):
            raise ValueError("parallel='fsdp' shards one optimizer a model, not several together: use parallel='ddp'")
        names = {id(p): name for name, p in model.named_parameters(remove_duplicate=False)}
        if optimizer is not None:
            _check_owns_all(optimizer, names)
        with torch.no_grad():
            for tensor in [*model.parameters(), *model.buffers()]:
                dist.broadcast(tensor, 0)
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

    def wrap(self, call: Call, model: nn.Module, outside: Sequence[nn.Parameter]) -> tuple[Call, dict[str, Any]]:
        """The call as it is; FSDP acts inside the model."""
        sharded: Any = model

        @contextmanager
        def no_sync() -> Iterator[None]:
            sharded.set_requires_gradient_sync(False)
            try:
                yield
            finally:
                sharded.set_requires_gradient_sync(True)

        return call, {"no_sync": no_sync, **common_to_ranks(model, outside)}


def _check_owns_all(optimizer: Optimizer, names: dict[int, str]) -> None:
    unknown = [p for group in optimizer.param_groups for p in group["params"] if id(p) not in names]
    if unknown:
        raise ValueError(
            f"the optimizer holds {len(unknown)} parameters that are not the model's, which parallel='fsdp' cannot "
            "shard: train them under parallel='ddp'"
        )


def _rebind(optimizer: Optimizer, names: dict[int, str], params: dict[str, nn.Parameter]) -> None:
    for group in optimizer.param_groups:
        group["params"] = [params[names[id(p)]] for p in group["params"]]
    if isinstance(optimizer, (torch.optim.SGD, torch.optim.Adagrad)) and optimizer.defaults.get("fused"):
        # torch has no sharding rule for their fused kernels.
        for settings in [optimizer.defaults, *optimizer.param_groups]:
            settings["fused"], settings["foreach"] = False, True
        optimizer._step_supports_amp_scaling = False
