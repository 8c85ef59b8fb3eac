"""Ranks whose data end apart stop together, and what they draw differs."""

import torch
import torch.distributed as dist
from torch import nn

from ai.train import Classify, Trainer, opt


def check(how: str) -> None:
    """The ranks have 4 and 3 batches: with two to a step, the second step is made of one batch on each."""
    rank = dist.get_rank()
    model = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 2))
    data = [(torch.ones(3, 2), torch.zeros(3, dtype=torch.uint8))] * (4 - rank)
    steps = Trainer(Classify(), data, accumulate=2, parallel=how).train(model, opt.sgd(model))
    print(f"{how} rank {rank} ended at {steps}", flush=True)


def check_noise() -> None:
    """A seeded script draws other noise on each rank; rank 0 draws what a lone process would."""
    torch.manual_seed(0)
    drawn = []

    def env(model: nn.Module, batch: torch.Tensor, step: int) -> torch.Tensor:
        drawn.append(torch.rand(()))
        return model(batch).mean()

    model = nn.Linear(2, 1)
    torch.manual_seed(0)
    Trainer(env, [torch.ones(1, 2)], parallel="ddp").train(model, opt.sgd(model))
    torch.manual_seed(0)
    alone = bool(drawn[0] == torch.rand(()))
    assert alone == (dist.get_rank() == 0), (dist.get_rank(), drawn)
    print(f"noise rank {dist.get_rank()} apart", flush=True)
