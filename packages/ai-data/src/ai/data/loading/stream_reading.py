"""How an iterable dataset is cut into batches, here or in worker processes that read ahead."""

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from ai.data.batch.seeds import OwnGlobalStates, seed_global_states

if TYPE_CHECKING:
    from ai.data.workers.worker import Link


@dataclass
class Reading:
    """A pass over a dataset: every world-th sample from `rank` on, in batches.

    Args:
        dataset: iterated once a pass.
        batch_size: samples a batch.
        drop_last: leave out an incomplete batch.
        collate: makes a batch of a list of samples.
        rank: of this process among `world`.
        world: how many processes share the samples.
    """

    dataset: Iterable[Any]
    batch_size: int
    drop_last: bool
    collate: Callable[[list[Any]], Any]
    rank: int = 0
    world: int = 1

    def chunks(self) -> Iterator[list[Any]]:
        """Yields the samples of each batch."""
        samples = islice(iter(self.dataset), self.rank, None, self.world)
        while chunk := list(islice(samples, self.batch_size)):
            if len(chunk) == self.batch_size or not self.drop_last:
                yield chunk


def read_here(reading: Reading, seed: int, n_done: int) -> Iterator[Any]:
    """Yields the batches of a pass from number `n_done` on.

    What the dataset draws from the global generators follows from `seed`, and the caller's draws stay its own.
    """
    states = OwnGlobalStates(seed)
    chunks = islice(reading.chunks(), n_done, None)
    while True:
        with states:
            chunk = next(chunks, None)
            batch = None if chunk is None else reading.collate(chunk)
        if chunk is None:
            return
        yield batch


def serve_reading(reading: Reading, worker: int, n_workers: int, link: "Link") -> None:
    """Runs in a worker process: one answer for each request, in order.

    A dataset that looks at `torch.utils.data.get_worker_info()` divides itself, and this worker gives the batches of
    its part; of any other dataset it gives every `n_workers`-th batch from number `worker` on.

    Messages in: `("pass", number, seed, n_done)`, `("next", number)`, `("skip", number)`. Out, for those of the pass
    that runs: `(number, kind, content)` with the kinds `batch`, `skipped` (whether the dataset divides itself), `end`
    and `failed`.
    """
    from ai.data.workers.worker import portable_error

    info = _Info(worker, n_workers, reading.dataset)
    current = -1
    chunks: Iterator[list[Any]] = iter(())
    while True:
        request, number, *content = link.inbox.get()
        if request == "pass":
            current, (seed, n_done) = number, content
            chunks = islice(_part(_seeded(reading, seed, info), info, worker, n_workers), n_done, None)
        elif number == current:
            try:
                chunk = next(chunks, None)
                if chunk is None:
                    answer: tuple[str, Any] = ("end", None)
                elif request == "skip":
                    answer = ("skipped", None)
                else:
                    answer = ("batch", reading.collate(chunk))
            except Exception as error:
                answer = ("failed", portable_error(error))
            try:
                link.send((number, info.asked, *answer))
            except Exception as error:  # a batch that cannot be pickled
                link.send((number, info.asked, "failed", portable_error(error)))


def _seeded(reading: Reading, seed: int, info: "_Info") -> Iterator[list[Any]]:
    """Yields the samples of each batch, with the worker info and the global generators set for this pass."""
    first = None
    for _ in range(2):
        had_torch = "torch" in sys.modules  # a worker that needs no torch starts ten times as fast
        if had_torch:
            import torch.utils.data._utils.worker as torch_worker

            torch_worker._worker_info = info  # type: ignore[assignment]
        info.asked = False
        seed_global_states(seed)
        chunks = reading.chunks()
        first = next(chunks, None)
        if had_torch or "torch" not in sys.modules:
            break  # else the dataset imported torch, and may have drawn from a generator that was not seeded
    if first is not None:
        yield first
        yield from chunks


def _part(chunks: Iterator[list[Any]], info: "_Info", worker: int, n_workers: int) -> Iterator[list[Any]]:
    """Yields this worker's share of what it reads."""
    divides = False
    for index, chunk in enumerate(chunks):
        if index == 0:
            divides = info.asked
        if divides or index % n_workers == worker:
            yield chunk


class _Info:
    """What `torch.utils.data.get_worker_info` returns in a worker; `asked` tells whether somebody looked.

    Args:
        worker: number of this worker.
        n_workers: how many there are.
        dataset: this worker's copy.
    """

    def __init__(self, worker: int, n_workers: int, dataset: Iterable[Any]) -> None:
        self.asked = False
        self.seed = worker
        self.dataset = dataset
        self._worker = worker
        self._n_workers = n_workers

    @property
    def id(self) -> int:
        """Number of this worker."""
        self.asked = True
        return self._worker

    @property
    def num_workers(self) -> int:
        """How many workers there are."""
        self.asked = True
        return self._n_workers
