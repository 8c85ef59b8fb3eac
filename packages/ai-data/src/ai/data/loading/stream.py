"""A loader over an iterable torch dataset: what comes, in the order in which it comes."""

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import torch

from ai.data.batch.collate import collate as stack
from ai.data.batch.device import checked_device
from ai.data.batch.order import Position
from ai.data.batch.postprocess import Finish
from ai.data.batch.seeds import derive_seed
from ai.data.batch.transform import Transform
from ai.data.loading.stream_pool import Readers
from ai.data.loading.stream_reading import Reading, read_here


class StreamLoader:
    """Batches of an iterable torch dataset, made by `ai.data.util.create_data_loader`.

    With `train=True` the dataset is iterated again and again, and each pass's incomplete batch is left out; with
    `train=False` once, with its incomplete batch. Samples are not shuffled. The global random generators that the
    dataset may draw from are seeded for each pass by (seed, epoch), so passes repeat exactly. Resuming reads the pass
    again up to the position.

    Workers read ahead. A dataset that divides itself by `torch.utils.data.get_worker_info()` is read in parts, and
    batches are taken from the workers in turn; then their order depends on the number of workers. Any other is read
    whole by each worker, so more than one helps only to stack and send batches.

    Args:
        torch_dataset: an iterable.
        batch_size: samples a batch.
        device: where batches go.
        train: see above.
        n_workers: processes that read; 0 reads here when a batch is asked for; None means 1.
        postprocess: called on each batch on its device.
        seed: of all random numbers.
        drop_last: leave out the incomplete batch; None means `train`.
        pin: move through page-locked memory; None means where `device` is CUDA.
        prefetch: batches that workers may be ahead; None means two for each worker.
        single_batch: give the first batch of the first pass again and again.
        collate: makes a batch of a list of samples; None stacks.

    Raises:
        ValueError: a batch_size, device, n_workers or prefetch that cannot be.
        TypeError: with workers, something in the dataset cannot be pickled.
    """

    def __init__(
        self,
        torch_dataset: Iterable[Any],
        batch_size: int,
        device: str | torch.device = "cpu",
        *,
        train: bool = False,
        n_workers: int | None = None,
        postprocess: Transform | None = None,
        seed: int = 0,
        drop_last: bool | None = None,
        pin: bool | None = None,
        prefetch: int | None = None,
        single_batch: bool = False,
        collate: Callable[[list[Any]], Any] | None = None,
    ) -> None:
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("n_workers", n_workers, 0),
            ("prefetch", prefetch, 1),
        ):
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        self.dataset = torch_dataset
        self.batch_size = batch_size
        self.device = checked_device(device)
        self.train = train
        self.seed = seed
        self._finish = Finish(postprocess, self.device, pin)
        self._n_workers = 1 if n_workers is None else n_workers
        self._prefetch = prefetch or 2 * self._n_workers
        self._single_batch = single_batch
        self._start(Reading(torch_dataset, batch_size, train if drop_last is None else drop_last, collate or stack))

    def _start(self, reading: Reading) -> None:
        self._reading = reading
        self._readers = Readers(reading, self._n_workers, self._prefetch) if self._n_workers else None
        self._parts: int | None = None  # of the pass that a loaded position is in
        self._position = Position()
        self._taken = False
        self._batches: Iterator[Any] | None = None

    def __iter__(self) -> Iterator[Any]:
        if not self.train and self._taken:
            self._position = Position()
            self._batches = None
        self._taken = True
        return self._iterate()

    def state_dict(self) -> dict[str, Any]:
        """Returns which batch comes next, and in how many parts the dataset divides itself."""
        return {
            "epoch": self._position.epoch,
            "batch": self._position.batch,
            "seed": self.seed,
            "train": self.train,
            "batch_size": self.batch_size,
            "world": self._reading.world,
            "parts": self._parts if self._batches is None and self._parts else self._n_parts(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to the batch that came next when `state` was taken.

        Raises:
            ValueError: the state is no loader's, or of another mode, batch size or number of ranks. The first batch
                raises it where the dataset divides itself into another number of parts.
        """
        own = self.state_dict()
        if missing := sorted(own.keys() - state.keys()):
            raise ValueError(f"state must be the state_dict of a StreamLoader, the keys {missing} are not in it")
        for key in ("train", "batch_size", "world"):
            if state[key] != own[key]:
                raise ValueError(f"this loader state has {key} {state[key]}, this loader {own[key]}")
        self.seed = state["seed"]
        self._position = Position(state["epoch"], state["batch"])
        self._parts = state["parts"]
        self._batches = None
        self._taken = False

    def shard(self, rank: int, world: int) -> "StreamLoader":
        """Returns the loader of rank `rank`, which takes every world-th sample, with workers of its own."""
        if world < 1 or not 0 <= rank < world:
            raise ValueError(f"rank ({rank}) must lie in [0, world) with world ({world}) at least 1")
        other = copy.copy(self)
        other._start(replace(self._reading, rank=rank, world=world))
        return other

    def close(self) -> None:
        """Stops the workers; also happens when the loader is no longer referenced."""
        if self._readers is not None:
            self._readers.close()

    def __enter__(self) -> "StreamLoader":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _iterate(self) -> Iterator[Any]:
        while True:
            if self._batches is None:
                self._batches = self._pass(self._position)
            try:
                batch = next(self._batches, None)
                if batch is not None:
                    self._check_parts()
                    place = self.seed, self._position.epoch, self._position.batch, self._reading.rank
                    finished = self._finish(batch, *place)
            except BaseException:
                self._batches = None  # the batch that failed stays the next one
                raise
            if batch is None:
                if not self.train:
                    return
                if self._position.batch == 0:
                    raise ValueError(
                        f"the dataset gave fewer samples than a batch of {self.batch_size} in a whole pass"
                    )
                self._position, self._batches = Position(self._position.epoch + 1, 0), None
                continue
            self._position = Position(self._position.epoch, self._position.batch + 1)
            yield finished

    def _pass(self, position: Position) -> Iterator[Any]:
        read = partial(read_here, self._reading) if self._readers is None else self._readers.read
        if not self._single_batch:
            return read(derive_seed(self.seed, position.epoch), position.batch)
        return islice(read(derive_seed(self.seed, 0), 0), 0 if position.batch else 1)

    def _n_parts(self) -> int:
        return self._readers.n_workers if self._readers is not None and self._readers.divides else 1

    def _check_parts(self) -> None:
        """Refuses a position in a pass that was divided in another way."""
        if self._parts not in (None, self._n_parts()) and self._position.batch > 0:
            raise ValueError(
                f"this loader state is of a dataset that divides itself into {self._parts} parts, "
                f"here into {self._n_parts()}: take as many workers"
            )
        self._parts = None
