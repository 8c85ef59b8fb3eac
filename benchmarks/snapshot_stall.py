"""How long does a snapshot hold the training loop up? The wait in the loop beside the time of the whole writing.

    python benchmarks/snapshot_stall.py [--width 1024] [--snapshots 5]

The model is an MLP with AdamW and a moving average: four tensors for each parameter. "memory ready" is what a hook does
after the first step; without it the first copy goes into fresh memory. On one thread.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from ai.train import Ema, Run, Snapshots, opt


def made(width: int) -> Run:
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(width, width) for _ in range(8)])
    optimizer = opt.adamw(model)
    model(torch.randn(2, width)).square().mean().backward()
    optimizer.step()
    return Run({"model": model}, {"model": optimizer}, [], ema={"model": Ema(model)})


def measure(run: Run, snapshots: int, *, asynchronous: bool, ready: bool) -> list[tuple[float, float]]:
    """(wait in the loop, time until it is on disk) of each snapshot, in seconds."""
    found = []
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        saver = Snapshots(folder, asynchronous=asynchronous, keep_last=1)
        if ready:
            saver.make_ready(run)
            saver.wait()
        for step in range(1, snapshots + 1):
            start = time.perf_counter()
            saver.save(run, step)
            waited = time.perf_counter() - start
            saver.wait()
            found.append((waited, time.perf_counter() - start))
    return found


def main(width: int, snapshots: int) -> None:
    torch.set_num_threads(1)
    run = made(width)
    megabytes = sum(p.numel() for p in run.models["model"].parameters()) * 16 / 1e6
    print(f"{megabytes:.0f} MB a snapshot: model, two moments, moving average")
    print(f"{'':<32}{'first wait':>12}{'of writing':>12}{'later wait':>12}{'of writing':>12}")
    for name, how in {
        "at once": {"asynchronous": False, "ready": False},
        "in background, fresh memory": {"asynchronous": True, "ready": False},
        "in background, memory ready": {"asynchronous": True, "ready": True},
    }.items():
        (first, whole), *later = measure(run, snapshots, **how)
        wait = statistics.median(w for w, _ in later)
        share = statistics.median(w / t for w, t in later)
        print(f"{name:<32}{first * 1e3:>9.1f} ms{first / whole:>12.1%}{wait * 1e3:>9.1f} ms{share:>12.1%}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--snapshots", type=int, default=5)
    args = parser.parse_args()
    main(args.width, args.snapshots)
