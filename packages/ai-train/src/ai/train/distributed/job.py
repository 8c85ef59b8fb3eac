"""What every way of training on several ranks needs: the job joined, its device, a rank's part of the data."""

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DistributedSampler

from ai.train.distributed.process_group import GroupRanks, mean_weight, start_process_group
from ai.train.engine.ranks import Ranks


def join(timeout_s: float) -> Ranks:
    """Join the job that `torchrun` describes, if there is one.

    Args:
        timeout_s: how long ranks wait for one another before the run fails.
    """
    start_process_group(timeout_s)
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return Ranks()
    return GroupRanks(timeout_s)


def part_of(data: Iterable[Any], ranks: Ranks) -> Iterable[Any]:
    """This rank's part of the data; says so where the data cannot be divided."""
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


def common_to_ranks(model: nn.Module, outside: Sequence[nn.Parameter]) -> dict[str, Any]:
    """What `Update` takes for every way of training on several ranks; `outside` begin as rank 0's.

    Args:
        model: tells the device.
        outside: parameters that are trained and that are not the model's, such as an environment's weight of a loss.
    """
    device = next(model.parameters()).device
    for param in outside:
        dist.broadcast(param.detach(), 0)
    extra: dict[str, Any] = {"sum_weights": lambda total: mean_weight(total, device), "reduce_flag": _any_rank}
    if outside:
        extra["average_outside"] = lambda: _average_gradients(outside)
    return extra


def _any_rank(flag: torch.Tensor) -> None:
    dist.all_reduce(flag, dist.ReduceOp.MAX)


def _average_gradients(params: Sequence[nn.Parameter]) -> None:
    for param in params:
        if param.grad is None:  # this rank's batches did not need it
            param.grad = torch.zeros_like(param)
        dist.all_reduce(param.grad)
        param.grad /= dist.get_world_size()
