"""The loader: batches in a fixed order, moved to a device and postprocessed, resumable at any batch."""

import copy
from collections import deque
from collections.abc import Iterator
from typing import Any, Protocol, Unpack

import torch

from ai.data.arguments import check_state, check_whole
from ai.data.batch.device import checked_device
from ai.data.batch.order import SCHEME, Order, Position
from ai.data.batch.postprocess import Finish
from ai.data.batch.transform import Transform
from ai.data.batch.turns import Turn
from ai.data.loading.options import LoaderOptions, options_of
from ai.data.loading.producer import Producer, make_producer
from ai.data.storage import columns as cols


class Samples(Protocol):
    """What a loader reads of a dataset."""

    data: cols.Columns
    preprocess: Transform | None
    postprocess: Transform | None

    def __len__(self) -> int:
        """Number of samples."""

    def fingerprint(self) -> str:
        """Tells this data from other data."""


class DataLoader:
    """Batches of a dataset on a device, made by `Dataset.loader`.

    With `train=True` the samples are shuffled, epoch follows epoch without end, and each epoch's incomplete batch is
    left out; iterating again goes on where the last iteration stopped. With `train=False` an iteration is one ordered
    epoch with its incomplete batch, and iterating again starts over.
    Threads that share an iterator get each batch once.

    Data without `preprocess` needs no workers: a batch is one gather a tensor, and a stack of each list. With
    `preprocess`, workers run it ahead of use. Order, values and random numbers are functions of (seed, epoch, index),
    whatever the number of workers.

    Args:
        dataset: where the samples come from.
        batch_size: samples a batch.
        device: where batches go; `postprocess` runs there.
        **options: see `LoaderOptions`.

    Raises:
        ValueError: a batch_size, device, n_workers or prefetch that cannot be.

    Example:
        >>> from ai.data import Dataset
        >>> loader = Dataset(torch.arange(6)).loader(4)
        >>> len(loader), [batch.tolist() for batch in loader]
        (2, [[0, 1, 2, 3], [4, 5]])
    """

    def __init__(
        self,
        dataset: Samples,
        batch_size: int,
        device: str | torch.device = "cpu",
        **options: Unpack[LoaderOptions],
    ) -> None:
        check_whole(batch_size=batch_size)
        batch_size = int(batch_size)  # numpy's own would end up in states
        chosen = options_of(options)
        train = chosen.train
        drop_last = train if chosen.drop_last is None else chosen.drop_last
        if isinstance(dataset, type) or not hasattr(dataset, "fingerprint"):
            raise TypeError(f"dataset must be an ai.data.Dataset, got {dataset!r}")
        n = len(dataset)
        if chosen.sampler is not None and len(chosen.sampler) != n:
            raise ValueError(f"sampler must be of the {n} samples of the dataset, it is of {len(chosen.sampler)}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if drop_last and batch_size > n:
            raise ValueError(f"batch_size ({batch_size}) must not exceed the {n} samples of the dataset")
        if chosen.resident and (dataset.preprocess is not None or chosen.collate is not None):
            raise ValueError("resident=True needs a dataset without preprocess or collate: they run before the device")
        self.dataset = dataset
        self.batch_size = batch_size
        self.device = checked_device(device)
        self.train = train
        self._finish = Finish(dataset.postprocess, self.device, chosen.pin)
        self._order = Order(
            n,
            batch_size,
            train,
            train,
            drop_last,
            chosen.seed,
            single_batch=chosen.single_batch,
            sampler=chosen.sampler,
        )
        columns = cols.columns_to(dataset.data, self.device) if chosen.resident else dataset.data
        self._producer = make_producer(columns, dataset.preprocess, chosen)
        self._prefetch = chosen.prefetch or self._producer.depth
        self._fingerprint: str | None = None
        self._turn = Turn()
        self._stream = self._stream_at(Position())

    def __repr__(self) -> str:
        how = "train" if self.train else "one ordered epoch"
        rank = f", shard {self._order.rank} of {self._order.world}" if self._order.world > 1 else ""
        return (
            f"DataLoader({len(self)} batches of {self.batch_size} on {self.device}, {how}{rank}, of {self.dataset!r})"
        )

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self._order)

    def __iter__(self) -> Iterator[Any]:
        with self._turn:
            if not self.train and self._stream.taken:
                self._stream = self._stream_at(Position())
            self._stream.taken = True
            return self._stream

    def state_dict(self) -> dict[str, Any]:
        """Returns what resuming needs: which batch comes next, counted where batches are used, and of which data.

        `batch` counts in this loader's batches, `batch_size` × `world` samples each. All ranks have the same state.
        """
        return {
            "epoch": self._stream.position.epoch,
            "batch": self._stream.position.batch,
            "seed": self._order.seed,
            "train": self.train,
            "batch_size": self.batch_size,
            "world": self._order.world,
            "n_samples": self._order.n,
            "order": self._order.scheme,
            "sampler": None if self._order.sampler is None else self._order.sampler.fingerprint(),
            "fingerprint": self._data_fingerprint(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to the batch that came next when `state` was taken; the next iteration starts there.

        A state may come from another batch size or number of ranks where the samples used so far make whole batches,
        and no sampler made the epoch's order of them.

        Raises:
            ValueError: the state is no loader's, of other data, of another mode, or between two batches of this loader.
        """
        check_state(state, "DataLoader", self.state_dict().keys() - {"order", "sampler"})
        scheme = state.get("order", 1)
        if not 1 <= scheme <= SCHEME:
            raise ValueError(f"this loader state is of order {scheme}, this version knows the orders 1 to {SCHEME}")
        for key, own in (
            ("n_samples", self._order.n),
            ("fingerprint", self._data_fingerprint()),
            ("train", self.train),
            ("sampler", None if self._order.sampler is None else self._order.sampler.fingerprint()),
        ):
            if state.get(key) != own:
                raise ValueError(
                    f"this loader state is of another dataset or mode: its {key} is {state.get(key)}, ours {own}"
                )
        n_used = state["batch"] * state["batch_size"] * state["world"]
        n_step = self.batch_size * self._order.world
        same_cut = (state["batch_size"], state["world"]) == (self.batch_size, self._order.world)
        if not same_cut and n_used % n_step:
            raise ValueError(
                f"the state lies {n_used} samples into its epoch, between two batches of this loader "
                f"(batch_size {self.batch_size} on {self._order.world} ranks)"
            )
        sampler = self._order.sampler
        together = state["batch_size"] * state["world"]
        if n_used and together != n_step and sampler is not None and not getattr(sampler, "any_cut", False):
            raise ValueError(
                f"the state lies within an epoch that its sampler cut into batches of {together} samples on all ranks, "
                f"this loader's are of {n_step}: take as many, or a state from between two epochs"
            )
        position = Position(state["epoch"], state["batch"] if same_cut else n_used // n_step)
        self._order = self._order.drawn_as(state["seed"], scheme)
        if self.train and self._order.ended(position):
            position = Position(position.epoch + 1, 0)
        if self.train:  # iterators already handed out follow
            self._stream.seek(self._order, position)
        else:
            self._stream.close()
            self._stream = self._stream_at(position)

    def shard(self, rank: int, world: int) -> "DataLoader":
        """Returns the loader of rank `rank` among `world` that together give each sample once.

        `batch_size` stays the size on each rank. The shards share this loader's workers and go on from its position.

        Raises:
            ValueError: a rank outside the world, a batch larger than the samples of a rank, or a position between two
                batches of the shards.
        """
        other = copy.copy(self)
        other._turn = Turn()
        other._order = self._order.shard(rank, world)
        if len(other._order) == 0:
            raise ValueError(f"batch_size ({self.batch_size}) on {world} ranks exceeds the {self._order.n} samples")
        begins_anew = not self.train and self._stream.taken
        other._stream = other._stream_at(Position())
        if not begins_anew and self._stream.position != Position():
            other.load_state_dict(self.state_dict())
        return other

    def close(self) -> None:
        """Stops the workers and gives back page-locked memory; also when the loader is no longer referenced."""
        self._stream.close()
        self._producer.close()
        self._finish.close()

    def __enter__(self) -> "DataLoader":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _stream_at(self, position: Position) -> "_Stream":
        return _Stream(self._order, self._producer, self._finish, self._prefetch, position)

    def _data_fingerprint(self) -> str:
        if self._fingerprint is None:  # taken once: snapshots are frequent
            self._fingerprint = self.dataset.fingerprint()
        return self._fingerprint


class _Stream:
    """The iterator: asks the producer for batches ahead of use and counts those that were used."""

    def __init__(self, order: Order, producer: Producer, finish: Finish, prefetch: int, position: Position) -> None:
        self.position = position
        self.taken = False
        self._order = order
        self._producer = producer
        self._finish = finish
        self._prefetch = prefetch
        self._ahead = position
        self._turn = Turn()
        self._tickets: deque[Any] = deque()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        with self._turn:
            return self._next()

    def _next(self) -> Any:
        order = self._order
        while len(self._tickets) < self._prefetch and not order.ended(self._ahead):
            self._tickets.append(self._producer.submit(order.seed, self._ahead.epoch, order.indices(self._ahead)))
            self._ahead = order.after(self._ahead)
        if not self._tickets:
            raise StopIteration
        try:
            with self._finish.way() as way:
                made = self._producer.result(self._tickets.popleft(), None if way is None else way.empty)
                moved = self._finish.moved(made, way)
            batch = self._finish.changed(moved, *self._place())
        except BaseException as error:
            self.seek(order, self.position)  # the batch that failed stays the next one
            if isinstance(error, StopIteration):  # would end the loop over the loader without a word
                raise RuntimeError("collate raised StopIteration") from error
            raise
        self.position = order.after(self.position)
        return batch

    def seek(self, order: Order, position: Position) -> None:
        """Goes to `position` of `order`; what was asked for ahead is dropped."""
        with self._turn:
            self.close()
            self._order = order
            self.position = self._ahead = position

    def _place(self) -> tuple[int, int, int, int]:
        return self._order.seed, self.position.epoch, self.position.batch, self._order.rank

    def close(self) -> None:
        """Drops what was asked for ahead."""
        while self._tickets:
            self._producer.cancel(self._tickets.popleft())

    def __del__(self) -> None:
        self.close()  # a loop that was left early; else the workers' pool would keep its batches
