"""A loader over an iterable torch dataset: what comes, in the order in which it comes."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import torch
from torch.utils.data import IterableDataset

from ai.data.collate import collate as stack
from ai.data.device import checked_device
from ai.data.finish import Finish
from ai.data.order import Position
from ai.data.transform import Transform


class StreamLoader:
    """Batches of an iterable torch dataset, made by `ai.data.util.create_data_loader`.

    With `train=True` the dataset is iterated again and again, and each pass's incomplete batch is left out; with
    `train=False` once, with its incomplete batch. Samples are not shuffled. Resuming reads the pass again up to the
    position, so it is exact where the dataset's passes are alike.

    Args:
        torch_dataset: iterated in this process.
        batch_size: samples a batch.
        device: where batches go.
        train: see above.
        postprocess: called on each batch on its device.
        seed: of the generator that the postprocess may ask for.
        drop_last: leave out the incomplete batch; None means `train`.
        pin: move through page-locked memory; None means where `device` is CUDA.
        collate: makes a batch of a list of samples; None stacks.
    """

    def __init__(
        self,
        torch_dataset: IterableDataset[Any],
        batch_size: int,
        device: str | torch.device = "cpu",
        *,
        train: bool = False,
        postprocess: Transform | None = None,
        seed: int = 0,
        drop_last: bool | None = None,
        pin: bool | None = None,
        collate: Callable[[list[Any]], Any] | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.dataset = torch_dataset
        self.batch_size = batch_size
        self.device = checked_device(device)
        self.train = train
        self.seed = seed
        self._drop_last = train if drop_last is None else drop_last
        self._finish = Finish(postprocess, self.device, pin)
        self._collate = collate or stack
        self._rank, self._world = 0, 1
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
        """Returns which batch comes next."""
        return {
            "epoch": self._position.epoch,
            "batch": self._position.batch,
            "seed": self.seed,
            "train": self.train,
            "batch_size": self.batch_size,
            "world": self._world,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to the batch that came next when `state` was taken.

        Raises:
            ValueError: the state is no loader's, or of another mode, batch size or number of ranks.
        """
        if missing := sorted(self.state_dict().keys() - state.keys()):
            raise ValueError(f"state must be the state_dict of a StreamLoader, the keys {missing} are not in it")
        for key in ("train", "batch_size", "world"):
            if state[key] != self.state_dict()[key]:
                raise ValueError(f"this loader state has {key} {state[key]}, this loader {self.state_dict()[key]}")
        self.seed = state["seed"]
        self._position = Position(state["epoch"], state["batch"])
        self._batches = None
        self._taken = False

    def shard(self, rank: int, world: int) -> "StreamLoader":
        """Returns the loader of rank `rank`, which takes every world-th sample."""
        if world < 1 or not 0 <= rank < world:
            raise ValueError(f"rank ({rank}) must lie in [0, world) with world ({world}) at least 1")
        other = StreamLoader(self.dataset, self.batch_size, self.device, train=self.train, seed=self.seed)
        other._drop_last, other._finish, other._collate = self._drop_last, self._finish, self._collate
        other._rank, other._world = rank, world
        return other

    def close(self) -> None:
        """Does nothing: there are no workers."""

    def _iterate(self) -> Iterator[Any]:
        while True:
            if self._batches is None:
                self._batches = self._one_pass(self._position.batch)
            batch = next(self._batches, None)
            if batch is None:
                if not self.train:
                    return
                if self._position.batch == 0:
                    raise ValueError(
                        f"the dataset gave fewer samples than a batch of {self.batch_size} in a whole pass"
                    )
                self._position, self._batches = Position(self._position.epoch + 1, 0), None
                continue
            place = self.seed, self._position.epoch, self._position.batch, self._rank
            try:
                finished = self._finish(batch, *place)
            except BaseException:
                self._batches = None  # the batch that failed stays the next one
                raise
            self._position = Position(self._position.epoch, self._position.batch + 1)
            yield finished

    def _one_pass(self, n_used: int) -> Iterator[Any]:
        samples = islice(iter(self.dataset), self._rank, None, self._world)
        samples = islice(samples, n_used * self.batch_size, None)
        while samples_of_batch := list(islice(samples, self.batch_size)):
            if len(samples_of_batch) == self.batch_size or not self._drop_last:
                yield self._collate(samples_of_batch)
