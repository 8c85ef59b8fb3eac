"""Metrics over a whole validation on two ranks of unequal parts: those of torchmetrics over all rows at once."""

import torch
import torch.distributed as dist
from torch import nn
from torchmetrics import AUROC, ConfusionMatrix, Metric

from ai.train import Classify, Hook, Trainer, opt


def _metrics(**how: bool) -> dict[str, Metric]:
    return {
        "auroc": AUROC("multiclass", num_classes=3, **how),
        "confusion": ConfusionMatrix("multiclass", num_classes=3, **how),
    }


def check(parallel: str) -> None:
    rank = dist.get_rank()
    torch.manual_seed(0)
    x, y = torch.randn(40, 3), torch.randint(0, 3, (40,))
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        scores = model(x)
    part, cuts = (slice(0, 25), [20, 5]) if rank == 0 else (slice(25, 40), [15])
    data = list(zip(x[part].split(cuts), y[part].split(cuts), strict=True))
    seen: dict[str, float] = {}
    hook = Hook(val_data=data, val_interval=1, log=lambda step, found: seen.update(found))
    frozen = opt.sgd(model, lr=0.0)
    Trainer(Classify(metrics=_metrics()), data[:1] * 2, parallel=parallel).train(model, frozen, hook, steplimit=1)
    wanted = {}
    for key, metric in _metrics(sync_on_compute=False).items():
        metric.update(scores, y)
        found = metric.compute()
        names = [key] if not found.ndim else [f"{key}_{i}_{j}" for i in range(3) for j in range(3)]
        wanted |= dict(zip(names, found.flatten().tolist(), strict=True))
    assert sum(value for key, value in wanted.items() if key != "auroc") == 40
    if rank == 0:
        got = {key: seen[f"val_{key}"] for key in wanted}
        assert all(abs(got[key] - value) < 1e-6 for key, value in wanted.items()), (got, wanted)
    print(f"{parallel} metrics rank {rank}: of all rows", flush=True)
