"""How an iterable dataset is cut into batches, here or in worker processes that read ahead."""

import copy
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from ai.data.batch.seeds import OwnGlobalStates, derive_seed, seed_global_states
from ai.data.loading.worker_info import WorkerInfo

if TYPE_CHECKING:
    from ai.data.workers.worker import Link


class Cursor(NamedTuple):
    """Where in its passes a reading is: `n_given` samples of pass `epoch` were given.

    Reading goes on from a mark, where `n_marked` had been given, `n_read` read of the dataset, and its own state was
    `state`; without a state the mark is the pass's beginning.
    """

    epoch: int = 0
    n_given: int = 0
    n_marked: int = 0
    n_read: int = 0
    state: Any = None


@dataclass
class Reading:
    """Passes over a dataset: every world-th sample from `rank` on, or all of a rank's own part, in batches.

    Args:
        dataset: iterated once a pass.
        batch_size: samples a batch.
        tail: what becomes of a pass's incomplete batch: `carry` fills it from the next pass, `drop` leaves it out,
            `keep` gives it.
        collate: makes a batch of a list of samples.
        endless: pass follows pass.
        shuffle: samples that are put in another order together; 0 keeps the dataset's.
        rank: of this process among `world`.
        world: how many processes share the samples.
        is_part: the dataset holds this rank's samples alone.
    """

    dataset: Iterable[Any]
    batch_size: int
    tail: Literal["carry", "drop", "keep"]
    collate: Callable[[list[Any]], Any]
    endless: bool = False
    shuffle: int = 0
    rank: int = 0
    world: int = 1
    is_part: bool = False


class Walk:
    """Reads batches of samples from a cursor on, and knows where it is.

    Args:
        reading: what to read.
        seed: of the loader; each pass is seeded by (seed, epoch).
        cursor: where to begin.
        begin: called with a seed before each pass, to seed what the dataset may draw from.
    """

    def __init__(self, reading: Reading, seed: int, cursor: Cursor, begin: Callable[[int], None]) -> None:
        self._reading = reading
        self._dataset = _own(reading.dataset)
        self._seed = seed
        self._begin = begin
        self._cursor = cursor
        self._samples = self._pass(cursor)

    @property
    def cursor(self) -> Cursor:
        """Where the next batch begins."""
        cursor = self._cursor
        if self._reading.shuffle > 1 or cursor.n_given == 0 or (state := _state_of(self._dataset)) is None:
            return cursor
        return cursor._replace(n_marked=cursor.n_given, n_read=self._n_read, state=state)

    def chunk(self) -> list[Any] | None:
        """Returns the samples of the next batch; None after the last pass, and after one that gave nothing."""
        size, fruitless = self._reading.batch_size, False
        chunk: list[Any] = []
        while True:
            chunk += islice(self._samples, size - len(chunk))
            if len(chunk) == size:
                return chunk
            if (
                chunk and self._reading.tail == "keep"
            ):  # the pass is over, and some datasets' states begin another there
                self._go_to(self._cursor.epoch + 1)
                return chunk
            gave_none = self._cursor.n_given == 0 or (self._reading.tail == "drop" and self._cursor.n_given < size)
            if not self._reading.endless or (gave_none and fruitless):
                return None if self._reading.tail != "carry" or not chunk else chunk
            fruitless = gave_none
            if self._reading.tail == "drop":
                chunk = []
            self._go_to(self._cursor.epoch + 1)

    def _go_to(self, epoch: int) -> None:
        self._cursor = Cursor(epoch)
        self._samples = self._pass(self._cursor)

    def _pass(self, cursor: Cursor) -> Iterator[Any]:
        """Yields the samples of a pass from a cursor on."""
        reading, dataset = self._reading, self._dataset
        if cursor.epoch and not reading.endless:
            return
        self._begin(derive_seed(self._seed, cursor.epoch))
        if hasattr(dataset, "set_epoch"):
            dataset.set_epoch(cursor.epoch)
        if cursor.state is not None:
            dataset.load_state_dict(copy.deepcopy(cursor.state))
        self._n_read = cursor.n_read
        from_between = cursor.state is not None and cursor.n_read == 0
        n_given, mine = cursor.n_marked, self._mine(_begun_pass(dataset) if from_between else iter(dataset))
        block_size = max(reading.shuffle, 1)
        while True:
            mark = Cursor(cursor.epoch)
            if cursor.state is not None and n_given == cursor.n_marked:
                mark = cursor  # some tell the state that was loaded only once they go on
            elif reading.shuffle > 1 and (state := _state_of(dataset)) is not None:
                mark = Cursor(cursor.epoch, 0, n_given, self._n_read, state)
            block = list(islice(mine, block_size))
            if not block:
                return
            if len(block) > 1:
                rank = () if reading.world == 1 else (reading.rank,)
                seed = derive_seed(self._seed, cursor.epoch, n_given, *rank)
                order = np.random.default_rng(seed).permutation(len(block))
                block = [block[place] for place in order]
            for sample in block:
                n_given += 1
                if n_given > cursor.n_given:
                    self._cursor = mark._replace(n_given=n_given)
                    yield sample

    def _mine(self, samples: Iterator[Any]) -> Iterator[Any]:
        """Yields the samples of this rank, counting all."""
        for sample in samples:
            mine = self._reading.is_part or self._n_read % self._reading.world == self._reading.rank
            self._n_read += 1
            if mine:
                yield sample


def _begun_pass(dataset: Iterable[Any]) -> Iterator[Any]:
    """Yields the samples of a dataset whose state was taken between two passes.

    Some begin the next pass there, for others it is the last one's end: they give nothing, and begin at the next call.
    """
    gave = False
    for sample in dataset:
        gave = True
        yield sample
    if not gave:
        yield from dataset


def _has_states(dataset: Any) -> bool:
    return hasattr(dataset, "state_dict") and hasattr(dataset, "load_state_dict")


def _state_of(dataset: Any) -> Any:
    """Returns a copy of a dataset's state; None where it has none, or one that lacks samples it holds back."""
    return copy.deepcopy(dataset.state_dict()) if _has_states(dataset) and not _holds_back(dataset) else None


def _holds_back(part: Any) -> bool:
    """Returns whether a part of a Hugging Face dataset is a shuffle buffer, whose samples no state of it holds."""
    if not type(part).__module__.startswith("datasets."):
        return False
    if type(part).__name__ == "BufferShuffledExamplesIterable":
        return True
    inner = [getattr(part, name, None) for name in ("_ex_iterable", "ex_iterable")]
    return any(map(_holds_back, [*inner, *(getattr(part, "ex_iterables", None) or ())]))


def _own(dataset: Any) -> Any:
    """Returns a copy of a dataset with states, so that several readings of it know nothing of each other."""
    if not _has_states(dataset):
        return dataset
    try:
        return copy.deepcopy(dataset)
    except TypeError:  # it holds what cannot be copied, an open file say
        return dataset


def read_here(reading: Reading, seed: int, cursor: Cursor) -> Iterator[tuple[Any, Cursor]]:
    """Yields batches from a cursor on, each with the cursor after it.

    What the dataset draws from the global generators follows from the seed, and the caller's draws stay its own.
    """
    states = OwnGlobalStates(seed)
    walk = Walk(reading, seed, cursor, seed_global_states)
    while True:
        with states:
            chunk = walk.chunk()
            found = None if chunk is None else (reading.collate(chunk), walk.cursor)
        if found is None:
            return
        yield found


def serve_reading(reading: Reading, worker: int, n_workers: int, link: "Link") -> None:
    """Runs in a worker process: one answer for each request, in order.

    A dataset that looks at `torch.utils.data.get_worker_info()` divides itself, and this worker gives the batches of
    its part; of any other dataset it gives every `n_workers`-th batch, after the first `n_others` of the others.

    Messages in: `("begin", number, seed, cursor, n_others)`, `("next", number)`. Out, for those of the reading that
    runs: `(number, kind, content, cursor, whether the dataset divides itself)` with the kinds `batch`, `end` and
    `failed`.
    """
    from ai.data.workers.worker import portable_error

    info = WorkerInfo(worker, n_workers, reading.dataset)
    current = -1
    batches: Iterator[tuple[Any, Cursor]] = iter(())
    while True:
        request, number, *content = link.inbox.get()
        if request == "begin":
            current, (seed, cursor, n_others) = number, content
            batches = _part(reading, seed, Cursor(*cursor), n_others, info, n_workers)
        elif number == current:
            answer: tuple[str, Any, Cursor | None]
            try:
                found = next(batches, None)
                answer = ("end", None, None) if found is None else ("batch", *found)
            except Exception as error:
                answer = ("failed", portable_error(error), None)
            try:
                link.send((number, *answer, info.asked))
            except Exception as error:  # a batch that cannot be pickled
                link.send((number, "failed", portable_error(error), None, info.asked))


def _part(
    reading: Reading, seed: int, cursor: Cursor, n_others: int, info: WorkerInfo, n_workers: int
) -> Iterator[tuple[Any, Cursor]]:
    """Yields this worker's share of the batches, each with the cursor after it."""
    walk, chunk = _begun(reading, seed, cursor, info)
    index = 0
    while chunk is not None:
        if info.asked or index % n_workers == n_others:
            yield reading.collate(chunk), walk.cursor
        index += 1
        chunk = walk.chunk()


def _begun(reading: Reading, seed: int, cursor: Cursor, info: WorkerInfo) -> tuple[Walk, list[Any] | None]:
    """Returns a walk and its first chunk, with the worker info and the global generators set for each pass."""
    info.asked = info.early = False
    while True:
        had_torch, asked = "torch" in sys.modules, info.asked
        walk = Walk(reading, seed, cursor, info.begin)
        chunk = walk.chunk()
        # A dataset that imported torch may have drawn from a generator that was not seeded.
        is_seeded = had_torch == ("torch" in sys.modules)
        if is_seeded and not (info.early and info.asked and not asked):
            return walk, chunk
