"""A loss weight that the environment learns is one on all ranks, is that of one process, and is saved and restored."""

from pathlib import Path

import torch
import torch.distributed as dist
from equal_gradients import Net, assert_close, batches, whole
from torch import nn

from ai.train import Hook, Snapshots, Trainer, opt


class Weighted(nn.Module):
    """The log of a temperature, learned with the model; rank 1's begins elsewhere, as that of a forgotten seed."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(start))

    def forward(self, model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor], step: int) -> torch.Tensor:
        return nn.functional.cross_entropy(model(batch[0]) * self.log_scale.exp(), batch[1])


def _train(parallel: str | None, folder: Path | None, steplimit: int, start: float = 0.5) -> tuple[Net, Weighted]:
    torch.manual_seed(0)
    model = Net()
    env = Weighted(start)
    optimizer = opt.sgd([*model.parameters(), *env.parameters()], lr=0.1, momentum=0.9)
    pairs = [(torch.cat([a[0] for a in pair]), torch.cat([a[1] for a in pair])) for pair in batches()]
    data = pairs if parallel is None else [pair[dist.get_rank()] for pair in batches()]
    hook = [] if folder is None else Hook(snapshots=Snapshots(folder), resume=True)
    Trainer(env, data, parallel=parallel).train(model, optimizer, hook, steplimit=steplimit)
    return model, env


def check(folder: Path) -> None:
    rank = dist.get_rank()
    alone, weight = _train(None, None, 4)
    _train("ddp", folder, 2, start=0.5 if rank == 0 else -3.0)
    # Begun anew with other numbers: what was learned comes from the snapshot.
    model, found = _train("ddp", folder, 4, start=9.0)
    assert float(weight.log_scale.detach()) != 0.5
    assert_close("weight", found.log_scale.detach(), weight.log_scale.detach())
    for (name, wanted), param in zip(alone.named_parameters(), model.parameters(), strict=True):
        assert_close(name, whole(param.detach()), wanted.detach())
    everyone = [torch.zeros(()) for _ in range(dist.get_world_size())]
    dist.all_gather(everyone, found.log_scale.detach())
    assert everyone[0].equal(everyone[1]), everyone
    print(f"environment rank {rank}: equal", flush=True)


def check_refusal() -> None:
    """FSDP shards models; what belongs to none is refused before anything is sharded or trained."""
    try:
        _train("fsdp", None, 1)
    except ValueError as error:
        print(f"environment rank {dist.get_rank()}: {error}", flush=True)
