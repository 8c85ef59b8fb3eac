"""Rank 1 alone wants to stop; both must at the same step."""

import torch
import torch.distributed as dist
from torch import nn

from ai.train import HookInterface, Trainer, opt


class Impatient(HookInterface):
    def step(self, step: int) -> bool:
        return step == 5 and dist.get_rank() == 1


def check() -> None:
    model = nn.Linear(2, 1)
    trainer = Trainer(lambda model, batch, step: model(batch).mean(), [torch.ones(2, 2)] * 100, parallel="ddp")
    print(f"rank {dist.get_rank()} stopped at", trainer.train(model, opt.sgd(model), Impatient()), flush=True)
