"""Where a run stands in its data: the pass over it (the epoch), and the batch in that pass."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ai.train.state.data_generators import generator_states, set_generator_states
from ai.train.state.random_state import move_apart, random_state, set_random_state
from ai.train.state.stateful import Stateful

State = Mapping[str, Any]


class DataPosition:
    """Hands out a run's batches, pass after pass, and goes on in the middle of one.

    Three kinds of data: what has `state_dict` keeps its own position; an iterator stands where its owner left it; any
    other iterable is begun again in the random states in which its pass began, and run through up to the batch. To
    these belong the generators that the data or its sampler holds.

    Args:
        data: what the trainer was given.
        epoch: how many passes were completed before.

    >>> position = DataPosition([1, 2, 3])
    >>> position.end = 2  # passes
    >>> list(position.batches()), position.epoch
    ([1, 2, 3, 1, 2, 3], 2)
    """

    def __init__(self, data: Iterable[Any], epoch: int = 0) -> None:
        self.data = data
        self.epoch, self.batch = epoch, 0
        self.end: float = epoch + 1
        self.is_plain = not isinstance(data, (Stateful, Iterator))
        self._began: State | None = None  # the global random states in which this pass began
        self._restored = False
        self._random: State | None = None  # what they are to be when the first batch is asked for
        self._to_pass = 0  # batches, of a snapshot that knows no epochs
        self._own_random: State = {}  # as `_random`, of the data's own generators

    def state_dict(self) -> dict[str, Any]:
        """Epoch, batch, and the random states in which the pass began."""
        own = generator_states(self.data) if self.is_plain else {}
        return {"epoch": self.epoch, "batch": self.batch, "began": self._began, "generators": own}

    def go_to(self, position: State | None, random: State | None, n_batches: int) -> None:
        """Stand where a snapshot was taken.

        Args:
            position: what `state_dict` gave; None in a snapshot that was made before there was one.
            random: the global random states as they were then; None where they belong to another process.
            n_batches: how many batches had been trained on; decides where there is no position.
        """
        self._restored, self._random = True, random
        if position is not None:
            self.epoch, self.batch, self._began = int(position["epoch"]), int(position["batch"]), position["began"]
            self._own_random = position.get("generators", {})
        elif self.is_plain:
            self._to_pass = n_batches

    @property
    def at_end(self) -> bool:
        """Whether no pass is left to be made."""
        return self.epoch >= self.end

    def batches(self, rank: int = 0, world: int = 1) -> Iterator[Any]:
        """Every batch from here to the end of the last pass; the first pass begins at once.

        Args:
            rank: of this process; others than 0 draw from random states of their own, unless these were restored.
            world: how many processes there are.

        Raises:
            ValueError: a pass has no batch, or the data cannot be passed over again.
        """
        return self._passes(self._first_pass(rank), world)

    def _passes(self, iterator: Iterator[Any], world: int) -> Iterator[Any]:
        while True:
            for batch in iterator:
                self.batch += 1
                yield batch
            if not self.batch and world == 1:  # several ranks find together that it has ended
                raise ValueError(_NO_BATCH.format(name=type(self.data).__name__))
            self.epoch, self.batch, self._began = self.epoch + 1, 0, None
            if self.at_end:
                return
            if isinstance(self.data, Iterator):
                raise ValueError(_ONE_PASS.format(name=type(self.data).__name__, epochs=self.end))
            iterator = self._begin()

    def _begin(self) -> Iterator[Any]:
        """A pass from its first batch."""
        if self.is_plain:
            _tell_epoch(self.data, self.epoch)
            self._began = self._random_state()
        return iter(self.data)

    def _first_pass(self, rank: int) -> Iterator[Any]:
        if not self._restored or not self.is_plain:
            if self.is_plain:
                self._began = self._random_state()
            elif self._restored and self.batch and not isinstance(self.data, Stateful):
                print(_GOES_ON.format(name=type(self.data).__name__, batch=self.batch), file=sys.stderr)
            iterator = iter(self.data)
            self.settle(rank)
            return iterator
        if self._began is None and not self._to_pass:  # the pass begins here, and draws its order here
            self.settle(rank)
            return self._begin()
        _tell_epoch(self.data, self.epoch)
        if self._began is not None:
            set_random_state(dict(self._began))
            set_generator_states(self.data, self._began.get("generators", {}))
        iterator = self._pass_over(iter(self.data))
        self.settle(rank)
        return iterator

    def _random_state(self) -> State:
        return {**random_state(), "generators": generator_states(self.data)}

    def settle(self, rank: int) -> None:
        """Put back the random states that `go_to` was given."""
        if self._own_random:
            set_generator_states(self.data, self._own_random)
            self._own_random = {}
        if self._random is not None:
            set_random_state(dict(self._random))
            self._random = None
        elif rank:
            # Ranks that drew the same noise would train on one batch's noise, as often as there are ranks.
            move_apart(rank)

    def _pass_over(self, iterator: Iterator[Any]) -> Iterator[Any]:
        count = self._to_pass or self.batch
        if count:
            print(
                f"the data ({type(self.data).__name__}) has no state_dict: passing over the {count} batches that were "
                "trained on",
                file=sys.stderr,
            )
        passed = 0
        for _ in range(count):
            if next(iterator, _END) is not _END:
                passed += 1
            elif not self._to_pass:
                print(_SHORTER.format(name=type(self.data).__name__, batch=count, passed=passed), file=sys.stderr)
                break
            elif passed:  # a snapshot that counted on through all passes
                self.epoch, passed, iterator = self.epoch + 1, 1, iter(self.data)
                next(iterator)
        if self._to_pass:
            self.batch, self._to_pass = passed, 0
        return iterator


_END = object()
_NO_BATCH = (
    "the data ({name}) gave no batch: it is empty, or an iterator that has been run through; for another pass give the "
    "trainer what can be iterated again, such as a loader or a list"
)
_GOES_ON = (
    "the data ({name}) is an iterator, which cannot be put behind the {batch} batches that were trained on: the run "
    "goes on with what it gives next; give the trainer what can be iterated again, such as a loader or a list"
)
_SHORTER = (
    "the data ({name}) gave {passed} batches where {batch} were trained on before the snapshot: this pass is over, and "
    "the next begins"
)
_ONE_PASS = (
    "epochs ({epochs}) asks for another pass over the data, and an iterator ({name}) has but one: give the trainer "
    "what can be iterated again, such as a loader or a list"
)


def _tell_epoch(data: Any, epoch: int) -> None:
    """Have a sampler that shuffles by epoch (`DistributedSampler`) shuffle anew."""
    for taker in (data, getattr(data, "sampler", None), getattr(data, "batch_sampler", None)):
        if callable(set_epoch := getattr(taker, "set_epoch", None)):
            set_epoch(epoch)
            return
