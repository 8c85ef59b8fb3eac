"""Exact means over a validation set: losses by their weights, over every batch and every rank."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from ai.train.ema import Ema
from ai.train.engine.argument_checks import check_loader
from ai.train.engine.batch_weight import UnknownWeight, rows
from ai.train.engine.log import Record, recording
from ai.train.engine.precision import autocast
from ai.train.engine.ranks import Ranks
from ai.train.engine.update import Loss
from ai.train.engine.whole_set import Measures, measuring
from ai.train.state.random_state import own_randomness


@contextmanager
def evaluating(models: Iterable[nn.Module], averages: Iterable[Ema] = (), seed: int = 0) -> Iterator[None]:
    """Evaluation mode, no gradients, moving averages swapped in, own random seed; all undone afterwards.

    >>> model = nn.Dropout()
    >>> with evaluating([model]):
    ...     model.training
    False
    >>> model.training
    True
    """
    models = list(models)
    modes = [(module, module.training) for model in models for module in model.modules()]
    with ExitStack() as stack:
        for ema in averages:
            stack.enter_context(ema.swapped_in())
        stack.enter_context(own_randomness(seed))
        stack.enter_context(torch.no_grad())
        for model in models:
            model.eval()
        try:
            yield
        finally:
            for module, training in modes:
                module.training = training


def evaluate(
    losses: Mapping[str, Callable[[Any], Loss]],
    data: Iterable[Any],
    *,
    precision: str | None = None,
    device: torch.device,
    ranks: Ranks,
    sharded: bool = False,
    between: Callable[[], object] = lambda: None,
) -> dict[str, float]:
    """The weighted means of `losses` and of all that they log, over `data`.

    Call it inside `evaluating`, which sets the mode of the models.

    Args:
        losses: by the name to report under, batch -> loss or (loss, weight).
        data: iterated once; under several ranks each rank iterates its own part.
        precision: as the trainer's.
        device: the models'.
        ranks: over which the sums are reduced.
        sharded: whether forward passes are collective, so that all ranks make the same number.
        between: called before each batch; what it raises ends the evaluation.

    Raises:
        ValueError: there was no batch, or there would be no end of them.
        UnknownWeight: there are several batches, and one of them does not tell its rows.
    """
    refuse_endless(data)
    if ranks.world > 1 and hasattr(data, "shard"):
        data = data.shard(ranks.rank, ranks.world)
    record, totals, measures = Record(losses), Record(), Measures()
    unknown: UnknownWeight | None = None
    with recording(record), measuring(measures), autocast(precision, device):
        for index, (batch, share) in enumerate(_in_step(iter(data), ranks, sharded)):
            between()
            measures.counts = share > 0
            for name, loss_of in losses.items():
                loss = loss_of(batch)
                weight: Any = 1.0
                if isinstance(loss, tuple):
                    loss, weight = loss
                else:
                    try:
                        weight = rows(batch)
                    except UnknownWeight as error:
                        unknown = error
                # A lone batch is its own mean, whatever it weighs.
                if unknown is not None and (index > 0 or ranks.world > 1):
                    raise unknown
                record.weigh(weight * share)
                totals.add(name, loss)
                totals.weigh(weight * share)
    sums = ranks.sum_named(record.totals() | totals.totals())
    if not any(weight for _, weight in sums.values()):
        raise ValueError(
            "there is no batch to validate on: the data is empty, or an iterator that has been run through"
        )
    means = {name: total / weight for name, (total, weight) in sums.items()}
    measured = measures.compute(ranks)
    for key in means.keys() & measured.keys():
        raise ValueError(f"{key!r} is logged, and a metric is measured as {key!r}: give the metric another key")
    return means | measured


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
