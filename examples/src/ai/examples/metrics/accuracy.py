"""The share of right answers."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ai.examples.metrics.task import Task


def accuracy_task(data: Iterable[Mapping[str, Tensor]], *, reference: str, top: Sequence[int] = (1,)) -> Task:
    """Returns a trial's task with `accuracy` (0 to 1), and `accuracy_top5` and the like where asked for.

    Args:
        data: Batches with `x` and the labels `y`; iterated once a measurement, so a loader of one epoch.
        reference: Which images these are, for example `digits, test split`.
        top: An answer counts as right where the label is among the k most probable classes, for each k given.

    Raises:
        ValueError: `top` without entries or below 1; later, when measuring: no data, or fewer classes than k.
    """
    if not top or min(top) < 1:
        raise ValueError(f"top must hold numbers of at least 1, got {tuple(top)}")

    def measure(model: nn.Module) -> dict[str, float]:
        right = dict.fromkeys(top, 0.0)
        n = 0
        for batch in data:
            logits = model(batch["x"])
            if logits.shape[1] < max(top):
                raise ValueError(f"top ({max(top)}) must not exceed the model's {logits.shape[1]} classes")
            ranked = logits.topk(max(top), 1).indices == batch["y"].to(logits.device, torch.int64)[:, None]
            for k in top:
                right[k] += ranked[:, :k].sum().item()
            n += len(logits)
        if n == 0:
            raise ValueError("data must give at least one batch, it gave none")
        return {"accuracy" if k == 1 else f"accuracy_top{k}": count / n for k, count in right.items()}

    return Task(measure, {"metric": "accuracy", "reference": reference, "resize": "none"})
