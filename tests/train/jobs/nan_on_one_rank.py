"""Rank 1's third loss is NaN."""

import sys

import torch
import torch.distributed as dist
from torch import nn

from ai.train import Hook, NonFiniteError, Trainer, opt
from ai.train.update import local

how, policy = sys.argv[1], (sys.argv[2] if len(sys.argv) > 2 else "raise")
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
optimizer = opt.sgd(model, lr=0.01)
seen: dict[str, float] = {}


def env(model: nn.Module, batch: torch.Tensor, step: int) -> torch.Tensor:
    loss = model(batch).square().mean()
    return loss * float("nan") if step == 2 and dist.get_rank() == 1 else loss


trainer = Trainer(env, [torch.ones(2, 4)] * 50, parallel=how, on_nan=policy)
hook = Hook(log_interval=4, log=lambda step, numbers: seen.update(numbers))
hook.log = lambda key, value: seen.__setitem__(key, value)  # every rank's, not rank 0's alone
try:
    trainer.train(model, optimizer, hook)
except NonFiniteError:
    print(f"rank {dist.get_rank()}: NonFiniteError", flush=True)
    sys.exit(1)
finite = all(bool(torch.isfinite(local(p.detach())).all()) for p in model.parameters())
print(f"skipped {seen.get('skipped', 0):.0f}, finite {finite}", flush=True)
dist.destroy_process_group()
