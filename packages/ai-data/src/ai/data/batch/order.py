"""Which samples make up which batch: a pure function of (seed, epoch, batch index)."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ai.data.batch.seeds import derive_seed
from ai.data.batch.shuffle import DRAWN_WHOLE, shuffled

SCHEME = 2
# Samples that are looked up at once.
_STRETCH = 8192


class Position(NamedTuple):
    """The batch that comes next: `batch` counts from 0 within `epoch`."""

    epoch: int = 0
    batch: int = 0


class Sampler(Protocol):
    """Says which samples lie at which places of an epoch; its own length is that of an epoch."""

    def __len__(self) -> int:
        """Places of an epoch."""

    def __call__(self, places: Tensor, *, seed: int, epoch: int, together: int) -> Tensor:
        """Returns the samples at `places`, int64, as a function of the arguments alone.

        Args:
            places: of one batch: ascending, int64.
            seed: of the loader.
            epoch: which one.
            together: places that a batch takes on all ranks; batch k has those from k * together on.
        """

    def fingerprint(self) -> str:
        """Tells this sampler from others, kept in loader states."""


@dataclass(frozen=True)
class Order:
    """The order of `n` samples, cut into batches and dealt to ranks.

    Rank r takes every world-th sample of the epoch's order from r on, so the ranks' k-th batches together are the k-th
    batch of one rank with a batch `world` times as large, and no sample is given twice.

    Args:
        n: number of samples.
        batch_size: samples a batch on this rank.
        shuffle: draw a new permutation for each epoch; else the stored order.
        endless: epoch follows epoch; else one epoch only.
        drop_last: leave out an epoch's incomplete batch, and where ranks would differ in length its last samples.
        seed: of the permutations.
        rank: this process among `world`.
        world: number of processes that share the samples.
        single_batch: every batch is the first batch of epoch 0.
        sampler: what draws, instead of the permutations.
        scheme: how orders are drawn: 1 draws each whole, 2 looks up those of more than 65,536 samples place by place.
    """

    n: int
    batch_size: int
    shuffle: bool
    endless: bool
    drop_last: bool
    seed: int = 0
    rank: int = 0
    world: int = 1
    single_batch: bool = False
    sampler: Sampler | None = None
    scheme: int = SCHEME
    _cache: dict[tuple[int, int], Tensor] = field(default_factory=dict, compare=False, repr=False)

    def __len__(self) -> int:
        """Batches per epoch."""
        return self._n_batches

    @cached_property
    def _n_batches(self) -> int:  # asked for several times a batch
        n = self._n_given
        n_batches = n // self.batch_size if self.drop_last else -(-n // self.batch_size)
        return min(n_batches, 1) if self.single_batch else n_batches

    @cached_property
    def _n_given(self) -> int:
        """Samples that this rank may give in an epoch."""
        return self.n // self.world if self.drop_last else len(range(self.rank, self.n, self.world))

    def indices(self, position: Position) -> Tensor:
        """Returns the samples of the batch at `position`: `(batch,)` int64."""
        n = self._n_given
        start = position.batch * self.batch_size
        end = min(start + self.batch_size, n)
        if not self.shuffle or self.sampler is not None:
            places = torch.arange(self.rank + start * self.world, self.rank + end * self.world, self.world)
            if self.sampler is None:
                return places
            epoch = 0 if self.single_batch else position.epoch
            return self.sampler(places, seed=self.seed, epoch=epoch, together=self.batch_size * self.world)
        # A stretch of batches at a time: one look-up of many costs little more than one of few.
        n_batches = max(1, _STRETCH // self.batch_size)
        which = position.batch // n_batches
        first = which * n_batches * self.batch_size
        stretch = self._stretch(
            0 if self.single_batch else position.epoch, which, first, min(first + n_batches * self.batch_size, n)
        )
        return stretch[start - first : end - first].clone()

    def after(self, position: Position) -> Position:
        """Returns the position that follows; an endless order rolls over to the next epoch."""
        if self.endless and position.batch + 1 >= self._n_batches:
            return Position(position.epoch + 1, 0)
        return Position(position.epoch, position.batch + 1)

    def ended(self, position: Position) -> bool:
        """Returns whether no batch lies at `position`."""
        return position.batch >= self._n_batches

    def shard(self, rank: int, world: int) -> "Order":
        """Returns this order as rank `rank` of `world` sees it."""
        if world < 1 or not 0 <= rank < world:
            raise ValueError(f"rank ({rank}) must lie in [0, world) with world ({world}) at least 1")
        if self.world != 1:
            raise ValueError(
                f"this loader is already shard {self.rank} of {self.world}: shard the whole loader instead"
            )
        return replace(self, rank=rank, world=world, _cache={})

    def drawn_as(self, seed: int, scheme: int) -> "Order":
        """Returns this order with another seed and scheme."""
        same = (seed, scheme) == (self.seed, self.scheme)
        return self if same else replace(self, seed=seed, scheme=scheme, _cache={})

    def _stretch(self, epoch: int, which: int, first: int, end: int) -> Tensor:
        """Returns this rank's samples from number `first` to `end` of an epoch."""
        whole = self.scheme == 1 or self.n <= DRAWN_WHOLE
        key = (epoch, 0 if whole else which)
        if key not in self._cache:
            # Two are kept: a prefetching loader looks into the next one while it still reads this one.
            while len(self._cache) > 1:
                self._cache.pop(next(iter(self._cache)))
            if whole:
                generator = torch.Generator().manual_seed(derive_seed(self.seed, epoch))
                order = torch.randperm(self.n, generator=generator)
                self._cache[key] = order[self.rank :: self.world].contiguous()
            else:
                places = torch.arange(self.rank + first * self.world, self.rank + end * self.world, self.world)
                self._cache[key] = shuffled(places, self.n, self.seed, epoch)
        return self._cache[key][first:end] if whole else self._cache[key]
