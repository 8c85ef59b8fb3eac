"""Exact means over a validation set: losses by their weights, over every batch and every rank."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from ai.train.engine.argument_checks import check_loader
from ai.train.engine.log import Record, recording
from ai.train.engine.ranks import Ranks
from ai.train.engine.run import Run
from ai.train.engine.update import Loss, rows

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def evaluate(
    losses: Mapping[str, Callable[[Any], Loss]],
    data: Iterable[Any],
    precision: str | None,
    model: nn.Module,
    run: Run | None,
) -> dict[str, float]:
    """The weighted means of `losses` and of all that they log, over `data`.

    Call it inside `Run.evaluating`, which sets the mode of the models.

    Args:
        losses: by the name to report under, batch -> loss or (loss, weight).
        data: iterated once; under several ranks each rank iterates its own part.
        precision: as the trainer's.
        model: tells the device.
        run: its ranks reduce the sums; None for one process.

    Raises:
        ValueError: there was no batch, or there would be no end of them.
    """
    refuse_endless(data)
    ranks = Ranks() if run is None else run.ranks
    if ranks.world > 1 and hasattr(data, "shard"):
        data = data.shard(ranks.rank, ranks.world)
    device = next(model.parameters(), torch.empty(0)).device
    record, totals = Record(), Record()
    with recording(record), torch.autocast(device.type, _DTYPES.get(precision or ""), enabled=precision is not None):
        for batch, share in _in_step(iter(data), ranks, bool(run and run.sharded)):
            for name, loss_of in losses.items():
                loss = loss_of(batch)
                value, weight = loss if isinstance(loss, tuple) else (loss, rows(batch))
                record.weigh(weight * share)
                totals.add(name, value)
                totals.weigh(weight * share)
    sums = ranks.sum_named(record.totals() | totals.totals())
    if not any(weight for _, weight in sums.values()):
        raise ValueError("there is no batch to validate on: the data is empty")
    return {name: total / weight for name, (total, weight) in sums.items()}


def refuse_endless(data: Iterable[Any]) -> None:
    """Raise if `data` is a training loader, which never ends, or a dataset."""
    check_loader("the data to validate on", data)
    if getattr(data, "train", None) is True:
        raise ValueError("the data to validate on must end, and a loader with train=True never does: use train=False")


def _in_step(batches: Iterator[Any], ranks: Ranks, together: bool) -> Iterator[tuple[Any, float]]:
    """Batches with share 1; where forward passes are collective, a rank that has run out repeats one with share 0."""
    if not together:
        yield from ((batch, 1.0) for batch in batches)
        return
    last: Any = None
    while True:
        batch = next(batches, None)
        if not ranks.any(batch is not None):
            return
        if batch is not None:
            last = batch
        elif last is None:
            raise ValueError(f"rank {ranks.rank} has no batch to validate on: give each rank at least one")
        yield last, float(batch is not None)
