"""Rank 1's disk is full: no rank takes the snapshot for written, and none waits for another."""

from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from ai.train import Hook, Snapshots, Trainer, opt


def check(folder: Path, asynchronous: bool) -> None:
    model = nn.Linear(2, 1)
    hook = Hook(snapshots=Snapshots(folder, asynchronous=asynchronous), save_interval=2)
    save = torch.save

    def full(*arguments: object) -> None:
        raise OSError("no space left on device")

    if dist.get_rank() == 1:
        torch.save = full
    try:
        Trainer(lambda m, batch, step: m(batch).mean(), [torch.ones(2, 2)] * 3, parallel="ddp").train(
            model, opt.sgd(model), hook
        )
    except OSError as error:
        head = f"write {'in background' if asynchronous else 'at once'} rank {dist.get_rank()}:"
        print(f"{head} {error}; {len(list(folder.glob('0*')))} snapshots", flush=True)
    finally:
        torch.save = save
