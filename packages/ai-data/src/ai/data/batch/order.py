"""Which samples make up which batch: a pure function of (seed, epoch, batch index)."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ai.data.arguments import check_rank
from ai.data.batch import shuffle
from ai.data.batch.seeds import derive_seed

SCHEME = 2
# Samples that are looked up at once.
_STRETCH = 8192


class Position(NamedTuple):
    """The batch that comes next: `batch` counts from 0 within `epoch`."""

    epoch: int = 0
    batch: int = 0


class Sampler(Protocol):
    """Says which samples lie at which places of an epoch; its own length is that of an epoch.

    One whose answers do not depend on `together` may say so by an attribute `any_cut` that is true: then a state taken
    within an epoch holds for other batch sizes and numbers of ranks too.
    """

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
        scheme: how orders are drawn: 1 draws each whole, 2 looks up those of more than 2**20 samples place by place.
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
        """Returns the samples of the batch at `position`: `(batch,)` int64, which is not to be written to."""
        epoch = 0 if self.single_batch else position.epoch
        start = position.batch * self.batch_size
        if self.shuffle and self.sampler is None:
            if self.scheme == 1 or self.n <= shuffle.DRAWN_WHOLE:
                return self._drawn(epoch)[start : min(start + self.batch_size, self._n_given)]
            # A stretch of batches at a time: one look-up of many costs little more than one of few.
            size = max(1, _STRETCH // self.batch_size) * self.batch_size
            first = start // size * size
            return self._looked_up(epoch, first, first + size)[start - first : start - first + self.batch_size]
        places = self._places(start, start + self.batch_size)
        if self.sampler is None:
            return places
        return self.sampler(places, seed=self.seed, epoch=epoch, together=self.batch_size * self.world)

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
        check_rank(rank, world)
        if self.world != 1:
            raise ValueError(
                f"this loader is already shard {self.rank} of {self.world}: shard the whole loader instead"
            )
        return replace(self, rank=rank, world=world, _cache={})

    def drawn_as(self, seed: int, scheme: int) -> "Order":
        """Returns this order with another seed and scheme."""
        same = (seed, scheme) == (self.seed, self.scheme)
        return self if same else replace(self, seed=seed, scheme=scheme, _cache={})

    def _drawn(self, epoch: int) -> Tensor:
        """Returns this rank's samples of an epoch whose order is drawn whole."""
        if (samples := self._cache.get((epoch, 0))) is None:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, epoch))
            samples = torch.randperm(self.n, generator=generator, device="cpu")[self.rank :: self.world].contiguous()
            self._keep((epoch, 0), samples)
        return samples

    def _looked_up(self, epoch: int, first: int, end: int) -> Tensor:
        """Returns this rank's samples from number `first` to `end` of an epoch."""
        if (samples := self._cache.get((epoch, first))) is None:
            samples = shuffle.shuffled(self._places(first, end), self.n, self.seed, epoch)
            self._keep((epoch, first), samples)
        return samples

    def _places(self, first: int, end: int) -> Tensor:
        """Returns the places in an epoch of this rank's samples from number `first` to `end`, or to the last one."""
        end = min(end, self._n_given)
        return torch.arange(self.rank + first * self.world, self.rank + end * self.world, self.world, device="cpu")

    def _keep(self, key: tuple[int, int], samples: Tensor) -> None:
        # Two are kept: a prefetching loader looks into the next one while it still reads this one. Iterators in other
        # threads may do the same at this moment.
        for earlier in list(self._cache)[:-1]:
            self._cache.pop(earlier, None)
        self._cache[key] = samples
