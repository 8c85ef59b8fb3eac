"""Rank 1 cannot write: no rank takes the snapshot for written, none waits for another, and nothing is left behind."""

import resource
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from ai.train import Hook, Snapshots, Trainer, opt


def check(parallel: str, folder: Path, asynchronous: bool) -> None:
    model = nn.Linear(200, 200)
    hook = Hook(snapshots=Snapshots(folder, asynchronous=asynchronous), save_interval=2)
    how = f"write {parallel} {'in background' if asynchronous else 'at once'} rank {dist.get_rank()}:"
    try:
        with _full(parallel) if dist.get_rank() == 1 else _room():
            Trainer(lambda m, batch, step: m(batch).mean(), [torch.ones(2, 200)] * 3, parallel=parallel).train(
                model, opt.sgd(model), hook
            )
    except OSError as error:
        left = [path.name for path in folder.iterdir() if path.is_dir()] if dist.get_rank() == 0 else []
        print(f"{how} {error}; left {left}", flush=True)


@contextmanager
def _room():
    yield


@contextmanager
def _full(parallel: str):
    """Under DDP torch's writer fails; under FSDP the system lets a file grow no further than the rank's own states."""
    save, limits = torch.save, resource.getrlimit(resource.RLIMIT_FSIZE)

    def full(*arguments: object) -> None:
        raise OSError("no space left on device")

    if parallel == "ddp":
        torch.save = full
    else:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, limits[1]))
    try:
        yield
    finally:
        torch.save = save
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
