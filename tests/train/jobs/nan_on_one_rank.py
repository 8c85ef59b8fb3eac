"""Rank 1's third loss is NaN."""

import torch
import torch.distributed as dist
from torch import nn

from ai.train import Hook, NonFiniteError, Trainer, opt
from ai.train.state.shards import local


def env(model: nn.Module, batch: torch.Tensor, step: int) -> torch.Tensor:
    loss = model(batch).square().mean()
    return loss * float("nan") if step == 2 and dist.get_rank() == 1 else loss


def check(how: str, policy: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    seen: dict[str, float] = {}
    hook = Hook(log_interval=4)
    hook.log = seen.__setitem__  # every rank's numbers, not rank 0's alone
    trainer = Trainer(env, [torch.ones(2, 4)] * 12, parallel=how, on_nan=policy)
    head = f"{how} {policy} rank {dist.get_rank()}:"
    try:
        trainer.train(model, opt.sgd(model, lr=0.01), hook)
    except NonFiniteError as error:
        print(head, "NonFiniteError", error.__notes__, flush=True)
        return
    finite = all(bool(torch.isfinite(local(p.detach())).all()) for p in model.parameters())
    print(head, f"skipped {seen.get('skipped', 0):.0f}, finite {finite}", flush=True)
