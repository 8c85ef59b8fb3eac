"""How long a snapshot of a model on the device holds its training up."""

import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from gpu_parts.machine import Job, Machine, Row


def rows(machine: Machine) -> Iterator[Job]:
    """A snapshot of 1 GB (model and Adam's two moments), written in the background and at once."""
    for name, asynchronous in {"in the background": True, "at once": False}.items():
        yield Job(name, partial(saved, machine, asynchronous), 2 if machine.quick else 12)


def saved(machine: Machine, asynchronous: bool) -> Row:
    """How long one snapshot holds its training up, and when it is on disk."""
    import torch
    from torch import nn

    from ai.train import Run, Snapshots, opt

    width = 64 if machine.quick else 4096
    depth = 5  # 5 · 4096² parameters of 12 bytes are 1 GB
    model = nn.Sequential(*[nn.Linear(width, width) for _ in range(depth)]).to(machine.device)
    optimizer = opt.adam(model)
    model(torch.randn(2, width, device=machine.device)).square().mean().backward()
    optimizer.step()
    run = Run({"model": model}, {"model": optimizer}, [])
    size = sum(p.nbytes for p in model.parameters()) * 3 / 1e9
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        snapshots = Snapshots(folder, asynchronous=asynchronous, keep_last=1)
        snapshots.make_ready(run)
        snapshots.wait()
        start = machine.now()
        snapshots.save(run, 1)
        held = time.perf_counter() - start
        snapshots.wait()
        whole = time.perf_counter() - start
    return {"GB": size, "held ms": held * 1e3, "on disk ms": whole * 1e3, "held / whole": held / whole}
