"""Producers: what turns indices into a batch, here and now or in workers."""

import os
from typing import Any, Protocol

from torch import Tensor

from ai.data.batch.collate import collate as stack
from ai.data.batch.device import to_device
from ai.data.batch.seeds import global_states_kept
from ai.data.batch.transform import Transform
from ai.data.loading.options import Options
from ai.data.loading.preprocess import Job, Preprocess
from ai.data.storage import columns as cols
from ai.data.storage.gathering import Empty
from ai.data.storage.memory_mapped import Rows


class Producer(Protocol):
    """Makes batches, possibly several at a time; every ticket is either asked for its result or cancelled."""

    depth: int  # how many tickets to hold by default

    def submit(self, seed: int, epoch: int, indices: Tensor) -> Any:
        """Returns a ticket for the batch of `indices`; random numbers follow from (seed, epoch, index)."""

    def result(self, ticket: Any, empty: Empty | None = None) -> Any:
        """Returns the batch of a ticket, waiting for it; what is gathered may lie in the memory that `empty` gives."""

    def cancel(self, ticket: Any) -> None:
        """Drops a ticket."""

    def close(self) -> None:
        """Stops the workers."""


def make_producer(columns: cols.Columns, preprocess: Transform | None, options: Options) -> Producer:
    """Returns the producer that the data and the options need.

    Args:
        columns: of the dataset.
        preprocess: of the dataset.
        options: of the loader.
    """
    if preprocess is None and options.collate is None:
        return _Gather(columns)
    n_workers = min(4, os.cpu_count() or 1) if options.n_workers is None else options.n_workers
    run = Preprocess(preprocess, options.collate)
    if n_workers == 0:
        return _Inline(columns, run)
    from ai.data.loading.preprocess_pool import ProcessPool, ThreadPool

    pool = ThreadPool if options.worker == "thread" else ProcessPool
    return pool(columns, run, n_workers, options.timeout_s)


class _Gather:
    """One gather a tensor and one stack a list, when the batch is asked for."""

    depth = 1

    def __init__(self, columns: cols.Columns) -> None:
        self._columns = columns
        named = columns if isinstance(columns, dict) else {"": columns}
        devices = {column.device if isinstance(column, Tensor | Rows) else None for column in named.values()}
        first = devices.pop()
        # Columns that all lie on one accelerator share one copy of the indices.
        self._device = None if devices or first is None or first.type == "cpu" else first

    def submit(self, seed: int, epoch: int, indices: Tensor) -> Tensor:
        return indices

    def result(self, ticket: Tensor, empty: Empty | None = None) -> Any:
        if self._device is not None:  # page-locked, so that the copy does not wait for the device's work
            ticket = to_device(ticket, self._device, pin=self._device.type == "cuda")
        batch = cols.take(self._columns, ticket, empty)
        if isinstance(batch, dict):
            return {name: _stacked(column, name) for name, column in batch.items()}
        return _stacked(batch)

    def cancel(self, ticket: Tensor) -> None:
        pass

    def close(self) -> None:
        pass


def _stacked(column: cols.Column, name: str | None = None) -> Any:
    if isinstance(column, Tensor | Rows):
        return column
    return stack(column, "data" if name is None else f"data[{name!r}]")


class _Inline:
    """The preprocess, in the process and at the time that a batch is asked for."""

    depth = 1

    def __init__(self, columns: cols.Columns, run: Preprocess) -> None:
        self._columns = columns
        self._run = run

    def submit(self, seed: int, epoch: int, indices: Tensor) -> Job:
        return Job.gather(self._columns, seed, epoch, indices)

    def result(self, ticket: Job, empty: Empty | None = None) -> Any:
        with global_states_kept():
            return self._run(ticket, seed_globals=True)

    def cancel(self, ticket: Job) -> None:
        pass

    def close(self) -> None:
        pass
