"""A loader over an iterable torch dataset: what comes, in the order in which it comes."""

import copy
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, Literal, Unpack

import torch

from ai.data.arguments import check_rank, check_state, check_whole
from ai.data.batch.collate import collate as stack
from ai.data.batch.device import checked_device
from ai.data.batch.postprocess import Finish
from ai.data.batch.transform import Transform
from ai.data.batch.turns import Turn
from ai.data.loading.options import LoaderOptions, options_of
from ai.data.loading.stream_pool import Place, Readers
from ai.data.loading.stream_reading import Cursor, Reading, read_here

# Of states; 1 counted batches within passes whose incomplete batch was left out, in 2 ranks shuffled alike and workers
# drew alike.
_FORMAT = 3
_STATE_KEYS = {"batch", "seed", "train", "batch_size", "world", "parts"}


class StreamLoader:
    """Batches of an iterable torch dataset, made by `ai.data.util.create_data_loader`.

    With `train=True` the dataset is iterated again and again, and the samples that a pass leaves over begin the next
    one's first batch, so that every sample is seen; with `train=False` once, with its incomplete batch. The global
    random generators that the dataset may draw from are seeded for each pass by (seed, epoch), and its `set_epoch` is
    called where it has one.

    `shuffle` reads so many samples at a time and gives them in a seeded order. A state resumes exactly: a dataset with
    `state_dict` and `load_state_dict` (those of Hugging Face and torchdata) goes on where it was, any other is read
    again from the beginning of the pass. A state of such a dataset must hold all that it draws from. Hugging Face's
    own `shuffle` leaves its buffer out of its state, so a pass of it is read again too; `shuffle` here need not.

    Workers read ahead. A dataset that divides itself by `torch.utils.data.get_worker_info()` is read in parts, and
    batches are taken from the workers in turn; then their order depends on the number of workers. Any other is read
    whole by each worker, so more than one helps only to stack and send batches. From where it looks on, a worker draws
    its own from the global generators, as torch's do from the start: what all must draw alike, such as the order of the
    files that they divide, is drawn before, or from a generator that the dataset seeds itself.

    Of several ranks each reads all, too, and keeps every world-th sample; with `train=True`, a dataset with
    `part_of_rank(rank, world)` may give each rank a part of its own instead, as `Shards` does.

    Args:
        torch_dataset: an iterable.
        batch_size: samples a batch.
        device: where batches go.
        postprocess: called on each batch on its device.
        shuffle: samples that are shuffled together; 0 keeps the dataset's order.
        **options: see `LoaderOptions`. `drop_last=True` leaves out each pass's incomplete batch, False gives it.

    Raises:
        ValueError: an option that cannot be.
        TypeError: with workers, something in the dataset cannot be pickled.

    Example:
        >>> loader = StreamLoader(range(5), 3, train=True, n_workers=0)
        >>> from itertools import islice
        >>> [batch.tolist() for batch in islice(loader, 4)]
        [[0, 1, 2], [3, 4, 0], [1, 2, 3], [4, 0, 1]]
    """

    def __init__(
        self,
        torch_dataset: Iterable[Any],
        batch_size: int,
        device: str | torch.device = "cpu",
        *,
        postprocess: Transform | None = None,
        shuffle: int = 0,
        **options: Unpack[LoaderOptions],
    ) -> None:
        check_whole(batch_size=batch_size, shuffle=shuffle)
        batch_size, shuffle = int(batch_size), int(shuffle)  # numpy's own would end up in states
        chosen = options_of(options)
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if shuffle < 0:
            raise ValueError(f"shuffle must be at least 0 samples, got {shuffle}")
        if chosen.worker != "process":
            raise ValueError(f"worker must be 'process' for an iterable dataset, got {chosen.worker!r}")
        if chosen.resident:
            raise ValueError("resident=True needs a dataset whose samples are stored, not an iterable one")
        if chosen.sampler is not None:
            raise ValueError("sampler needs a dataset that is read by index, not an iterable one")
        self.dataset = torch_dataset
        self.batch_size = batch_size
        self.device = checked_device(device)
        self.train = chosen.train
        self.seed = chosen.seed
        self._finish = Finish(postprocess, self.device, chosen.pin)
        self._n_workers = 1 if chosen.n_workers is None else chosen.n_workers
        self._prefetch = chosen.prefetch or 2 * self._n_workers
        self._single_batch = chosen.single_batch
        self._timeout_s = chosen.timeout_s
        self._turn = Turn()
        tail: Literal["carry", "drop", "keep"] = "drop" if chosen.drop_last else "keep"
        if chosen.train and chosen.drop_last is None:
            tail = "carry"
        self._start(Reading(torch_dataset, batch_size, tail, chosen.collate or stack, chosen.train, shuffle))

    def _start(self, reading: Reading) -> None:
        self._reading = reading
        self._readers = Readers(reading, self._n_workers, self._prefetch, self._timeout_s) if self._n_workers else None
        self._n_passes = 0  # evaluations that were begun anew
        self._go_to(Place(), 0)

    def _go_to(self, place: Place, n_batches: int, n_to_skip: int = 0) -> None:
        self._place = place
        self._n_batches = n_batches  # that were given so far
        self._n_to_skip = n_to_skip  # of a state that only counts batches
        self._taken = False
        self._batches: Iterator[tuple[Any, Place]] | None = None

    def __repr__(self) -> str:
        how = "train" if self.train else "one pass"
        shuffle = f", shuffled by {self._reading.shuffle}" if self._reading.shuffle else ""
        rank = f", shard {self._reading.rank} of {self._reading.world}" if self._reading.world > 1 else ""
        return (
            f"StreamLoader(batches of {self.batch_size} on {self.device}, {how}{shuffle}{rank}, of "
            f"{type(self.dataset).__name__})"
        )

    def __iter__(self) -> Iterator[Any]:
        with self._turn:
            if not self.train and self._taken:
                self._go_to(Place(), 0)
                self._n_passes += 1
            self._taken = True
            return _Batches(self, self._n_passes)

    def state_dict(self) -> dict[str, Any]:
        """Returns where the next batch begins, and in how many parts the dataset divides itself."""
        return {
            "format": _FORMAT,
            "epoch": max((cursor.epoch for cursor in self._place.cursors if cursor), default=0),
            "batch": self._n_batches,
            "seed": self.seed,
            "train": self.train,
            "batch_size": self.batch_size,
            "world": self._reading.world,
            "shuffle": self._reading.shuffle,
            "is_part": self._reading.is_part,
            "parts": len(self._place.cursors),
            "cursors": [None if cursor is None else tuple(cursor) for cursor in self._place.cursors],
            "turn": self._place.turn,
            "skip": self._n_to_skip,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to the batch that came next when `state` was taken.

        Raises:
            ValueError: the state is no loader's, of a format that cannot be read, or of another mode, batch size,
                shuffle or number of ranks. The first batch raises it where the dataset divides itself into another
                number of parts.
        """
        check_state(state, "StreamLoader", _STATE_KEYS)
        number = state.get("format", 1)
        if number > _FORMAT or (number == 1 and state["train"]):
            why = "whose passes left out their incomplete batch" if number == 1 else f"newer than {_FORMAT}"
            raise ValueError(f"this loader state is of format {number}, {why}: it cannot be gone on with")
        own = self.state_dict()
        for key in ("train", "batch_size", "world", "shuffle"):
            if state.get(key, 0) != own[key]:
                raise ValueError(f"this loader state has {key} {state.get(key, 0)}, this loader {own[key]}")
        if number == 1:
            self.seed = state["seed"]
            self._go_to(Place(), 0, state["batch"])
            return
        if number == 2 and _drew_otherwise(state):
            raise ValueError(
                "this loader state is of format 2, whose ranks shuffled and whose workers drew alike: it cannot be "
                "gone on with within a pass"
            )
        reading, is_part = self._reading, state.get("is_part", False)
        if is_part != reading.is_part:  # the position was shared in the other way
            share = self._share(reading.rank, reading.world, is_part)
            if share.is_part != is_part:
                raise ValueError("this loader state is of a rank's own files, and these cannot be shared by the ranks")
            self.close()
            self._start(share)
        self.seed = state["seed"]
        cursors = tuple(None if cursor is None else Cursor(*cursor) for cursor in state["cursors"])
        self._go_to(Place(cursors, state["turn"]), state["batch"], state["skip"])

    def shard(self, rank: int, world: int) -> "StreamLoader":
        """Returns the loader of rank `rank`, which takes every world-th sample, with workers of its own.

        It goes on from this loader's position.

        Raises:
            ValueError: a rank outside the world, a loader that is a shard itself, or a position that the ranks cannot
                share: within samples that are shuffled together, or not after as many for each.
        """
        check_rank(rank, world)
        reading = self._reading
        if reading.world != 1:
            raise ValueError(
                f"this loader is already shard {reading.rank} of {reading.world}: shard the whole loader instead"
            )
        begins_anew = not self.train and self._taken
        place = Place() if begins_anew else self._dealt(world)
        other = copy.copy(self)
        other._turn = Turn()
        other._start(self._share(rank, world, by_part=self.train and place == Place()))
        if place != Place():
            other._go_to(place, self._n_batches // world)
        return other

    def _share(self, rank: int, world: int, by_part: bool) -> Reading:
        """Returns what a rank reads: where it can be, a part of its own, else every world-th sample of all."""
        part_of_rank = getattr(self.dataset, "part_of_rank", None)
        part = part_of_rank(rank, world) if by_part and callable(part_of_rank) else None
        dataset = self.dataset if part is None else part
        return replace(self._reading, dataset=dataset, rank=rank, world=world, is_part=part is not None)

    def _dealt(self, world: int) -> Place:
        """Returns the place of each of `world` ranks that together go on from this one's place."""
        place, shuffle = self._place, self._reading.shuffle
        if self._n_to_skip:
            raise ValueError("the state of format 1 in this loader can be gone on with by one rank only")
        for cursor in place.cursors:
            if cursor is not None and (cursor.n_given % world or (shuffle > 1 and cursor.n_given)):
                why = f"among {shuffle} that are shuffled together" if shuffle > 1 else f"no multiple of {world} ranks"
                raise ValueError(f"the position lies {cursor.n_given} samples into its pass, {why}: shard it elsewhere")
        return place._replace(
            cursors=tuple(
                cursor and cursor._replace(n_given=cursor.n_given // world, n_marked=cursor.n_marked // world)
                for cursor in place.cursors
            )
        )

    def close(self) -> None:
        """Stops the workers and gives back page-locked memory; also when the loader is no longer referenced."""
        if self._readers is not None:
            self._readers.close()
        self._finish.close()

    def __enter__(self) -> "StreamLoader":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _take(self) -> Any:
        """Returns the next batch, finished.

        Raises:
            StopIteration: the pass has ended.
        """
        try:
            found = self._read_next()
            if found is not None:
                place = self.seed, 0, 0 if self._single_batch else self._n_batches, self._reading.rank
                finished = self._finish(found[0], *place)
        except BaseException:
            self._batches = None  # the batch that failed stays the next one
            raise
        if found is None:
            if self.train:
                few = f"fewer samples than a batch of {self.batch_size}"
                raise ValueError(
                    f"the dataset gave {few if self._reading.tail == 'drop' else 'nothing'} in a whole pass"
                )
            raise StopIteration
        self._n_batches += 1
        if not self._single_batch:
            self._place = found[1]
        return finished

    def _read_next(self) -> tuple[Any, Place] | None:
        """Returns the next batch and the place after it."""
        if self._single_batch:
            self._batches = None
            if not self.train and self._n_batches:
                return None
        if self._batches is None:
            self._batches = self._checked(self._read())
        while self._n_to_skip:
            if (found := next(self._batches, None)) is None:
                return None
            self._place = found[1]
            self._n_to_skip -= 1
            self._n_batches += 1
        return next(self._batches, None)

    def _checked(self, batches: Iterator[tuple[Any, Place]]) -> Iterator[tuple[Any, Place]]:
        """Refuses to go on in a stream that is divided in another way than it was."""
        n_parts, begun = len(self._place.cursors), self._place != Place()
        for found in batches:
            if begun and len(found[1].cursors) != n_parts:
                raise _other_parts(n_parts, len(found[1].cursors))
            yield found

    def _read(self) -> Iterator[tuple[Any, Place]]:
        n_parts = len(self._place.cursors)
        if n_parts not in (1, self._n_workers):
            raise _other_parts(n_parts, max(self._n_workers, 1))
        if self._readers is not None:
            return self._readers.read(self.seed, self._place)
        (cursor,) = self._place.cursors
        found = read_here(self._reading, self.seed, cursor or Cursor())
        return ((batch, Place((after,))) for batch, after in found)


class _Batches:
    """An iterator of a stream's loader, which threads may share.

    Args:
        loader: where the batches come from.
        number: of the evaluation that it goes over.
    """

    def __init__(self, loader: StreamLoader, number: int) -> None:
        self._loader = loader
        self._number = number
        self._ended = False

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        with self._loader._turn:
            if self._ended:
                raise StopIteration
            if self._number != self._loader._n_passes:
                raise RuntimeError("this iterator has ended: its loader was iterated again since")
            try:
                return self._loader._take()
            except StopIteration:
                self._ended = True
                raise


def _drew_otherwise(state: dict[str, Any]) -> bool:
    """Returns whether a state of format 2 lies within a pass that is gone through in another way by now."""
    cursors = [(Cursor(*cursor), worker) for worker, cursor in enumerate(state["cursors"]) if cursor is not None]
    shuffles = state.get("shuffle", 0) > 1 and state["world"] > 1
    return any(cursor.n_given and (shuffles or (worker and cursor.state is None)) for cursor, worker in cursors)


def _other_parts(theirs: int, ours: int) -> ValueError:
    return ValueError(
        f"this loader state is of a dataset that divides itself into {theirs} parts, here into {ours}: take as many "
        "workers"
    )
