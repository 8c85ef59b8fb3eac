"""Data that is made while training: sources in worker processes, a replay buffer, batches."""

import copy
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Unpack, cast

import torch
from torch import Tensor

from ai.data.arguments import check_at_least, check_instance, check_rank, check_state
from ai.data.batch.device import checked_device
from ai.data.batch.postprocess import Finish
from ai.data.batch.seeds import derive_seed
from ai.data.batch.transform import Applied, Transform
from ai.data.episodes.packing import packed
from ai.data.generation.begun import began, check_begun
from ai.data.generation.options import DatagenOptions, PassesOptions, datagen_options
from ai.data.generation.pacing import Intake
from ai.data.generation.passes import PassesLoader
from ai.data.generation.portable_state import from_portable, to_portable
from ai.data.generation.source import Source, begin
from ai.data.generation.source_pool import Fleet
from ai.data.replay_buffer import ReplayBuffer

_DEFAULT_CAPACITY = 100_000
_STATE_KEYS = {"seed", "generation", "version", "params", "buffer", "n_used", "n_steps", "n_episodes", "source"}


class Datagen:
    """Generated data.

    Args:
        source: makes episodes, see `Source`.
        postprocess: called on each batch on its device, as of `Dataset`.

    Raises:
        TypeError: the source lacks a method, or postprocess is nothing to call.

    Example:
        >>> import numpy as np
        >>> class Coins:
        ...     def start(self, seed, worker):
        ...         self.rng = np.random.default_rng(seed)
        ...     def __next__(self):
        ...         return {"obs": np.zeros((4, 1)), "action": self.rng.integers(0, 2, 3), "reward": np.ones(3)}
        ...     def update_params(self, state_dict, version):
        ...         pass
        >>> loader = Datagen(Coins()).loader(32, n_workers=0)
        >>> batch = next(iter(loader))
        >>> batch["obs"].shape, batch["action"].shape
        (torch.Size([32, 1]), torch.Size([32]))
    """

    def __init__(self, source: Source, postprocess: Transform | None = None) -> None:
        check_instance(source=source)
        for method in ("start", "__next__", "update_params"):
            if not callable(getattr(source, method, None)):
                raise TypeError(f"source must have the method {method}, {type(source).__name__} has none")
        if postprocess is not None:
            Applied(postprocess, "postprocess")
        self.source = source
        self.postprocess = postprocess

    def loader(
        self,
        batch_size: int,
        device: str | torch.device = "cpu",
        **options: Unpack[DatagenOptions],
    ) -> "DatagenLoader":
        """Returns a loader, its workers launched and generating; the options are those of `DatagenOptions`."""
        return DatagenLoader(self, batch_size, device, **options)

    def passes(
        self,
        passes: int,
        device: str | torch.device = "cpu",
        **options: Unpack[PassesOptions],
    ) -> PassesLoader:
        """Returns a loader for on-policy learning: each rollout `passes` times in shuffled parts, then never again.

        The options are those of `PassesOptions`.
        """
        return PassesLoader(self.source, self.postprocess, passes, device=device, **options)


class DatagenLoader:
    """Endless batches from a replay buffer that workers fill, made by `Datagen.loader`.

    Threads may share it: each batch is drawn once.

    Args:
        datagen: what to run.
        batch_size: draws a batch.
        device: where batches go.
        **options: see `DatagenOptions`.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(
        self,
        datagen: Datagen,
        batch_size: int,
        device: str | torch.device = "cpu",
        **options: Unpack[DatagenOptions],
    ) -> None:
        check_at_least(1, batch_size=batch_size)
        if not isinstance(datagen, Datagen):
            raise TypeError(f"datagen must be an ai.data.Datagen, got {datagen!r}")
        chosen = datagen_options(options)
        buffer = chosen["buffer"]
        if not isinstance(buffer, ReplayBuffer):
            buffer = ReplayBuffer(_DEFAULT_CAPACITY if buffer is None else buffer, seed=chosen["seed"])
        if chosen["min_steps"] is not None and chosen["min_steps"] >= buffer.capacity:
            raise ValueError(
                f"min_steps ({chosen['min_steps']}) must be less than the capacity of the buffer ({buffer.capacity})"
            )
        self.dataset = datagen
        self.batch_size = batch_size
        self.device = checked_device(device)
        self.n_workers = chosen["n_workers"]
        self.seed = chosen["seed"]
        self._finish = Finish(datagen.postprocess, self.device, chosen["pin"])
        self._engine = chosen["engine"]
        self._stall_timeout_s = chosen["stall_timeout_s"]
        min_steps = chosen["min_steps"] or min(batch_size, buffer.capacity - 1)
        self._intake = Intake(buffer, batch_size, chosen["replay_ratio"], min_steps)
        self._generation = 0
        self._version = 0
        self._params: Mapping[str, Any] | None = None
        self._fleet: Fleet | None = None
        self._close = weakref.finalize(self, _nothing)
        self._ended = False
        self._waited = False  # a batch may be drawn: `wait` has said so
        self._launch()

    def __repr__(self) -> str:
        ratio = "" if self._intake.replay_ratio is None else f", each step {self._intake.replay_ratio:g} times"
        return (
            f"DatagenLoader(batches of {self.batch_size} on {self.device}{ratio}, {self.n_workers} workers, of "
            f"{type(self.dataset.source).__name__}, {self.buffer!r})"
        )

    @property
    def buffer(self) -> ReplayBuffer:
        """The replay buffer; hold `locked()` to read or rewrite it while workers run."""
        return self._intake.buffer

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers; empty with `n_workers=0`."""
        return [] if self._fleet is None else self._fleet.pids

    def locked(self) -> threading.Condition:
        """Returns a context in which no episode arrives."""
        return self._intake.changed

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        """Returns the next batch, waiting until it may be drawn.

        Raises:
            StopIteration: every source has ended, and no further batch may be drawn.
            RuntimeError: with `n_workers=0`, another loader has begun the source anew.
            Exception: what a source raised, with the worker's traceback as a note.
            WorkerFailedError: workers died again and again.
        """
        intake = self._intake
        while True:
            self.wait()
            with intake.changed:
                mine, self._waited = self._waited, False
                if mine and self._ended and (intake.replay_ratio is None or not intake.ready()):
                    raise StopIteration
                if mine and intake.ready():  # else another thread has drawn meanwhile
                    batch = intake.buffer.sample(self.batch_size)
                    intake.n_used += self.batch_size
                    place = self.seed, intake.n_used
                    break
        if self._fleet is not None:
            self._fleet.pay()
        return self._finish(batch, *place)

    def wait(self, give_up: Callable[[], bool] | None = None) -> bool:
        """Waits until the next batch may be drawn, or `give_up()` says that there is no time for it.

        It is asked several times a second; with `n_workers=0` between two episodes, or, where the source has `poll`,
        more often.

        Returns:
            Whether to draw now: False where it was given up. At the end of all sources True: the draw tells of it.

        Raises:
            Exception: what a source raised, with the worker's traceback as a note.
            WorkerFailedError: workers died again and again.
        """
        if self.n_workers:
            self._waited = self._waited or self._await_workers(give_up)
            return self._waited
        with self.locked():  # one thread at a time acts
            self._waited = self._waited or self._make(give_up)
            return self._waited

    def wants_params(self, batches: int = 1) -> bool:
        """Returns whether the source will act before so many more batches are drawn, so that newer parameters count.

        Raises:
            TypeError: batches is no whole number.
            ValueError: it is below 1.
            ValueError: there are workers, which act all the time.
        """
        check_at_least(1, batches=batches)
        if self.n_workers:
            raise ValueError(f"n_workers ({self.n_workers}) act at any time: say when to send parameters")
        return not self._ended and (self._intake.replay_ratio is None or not self._intake.ready(batches))

    def update_params(self, state_dict: Mapping[str, Any]) -> int:
        """Gives every source a copy of the parameters and returns its version, counted from 1.

        Does not wait for the workers: each takes the newest version between two of its episodes.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict must be one of a model, a dict by name, got {type(state_dict).__name__}")
        self._version += 1
        self._params = {key: _on_cpu(value) for key, value in state_dict.items()}
        self._intake.version = self._version
        if self._fleet is None:
            with self.locked():
                self.dataset.source.update_params(self._params, self._version)
        else:
            self._fleet.update_params(self._params, self._version)
        return self._version

    def update_priorities(self, index: Tensor, priority: Tensor) -> None:
        """Sets priorities of the buffer, by the `index` of a batch."""
        with self.locked():
            self.buffer.update_priorities(index, priority)

    def stats(self) -> dict[str, float]:
        """Returns figures for the log.

        `episodes` and `steps` so far, `episodes_per_s` since the last call, `buffer_steps` that may be drawn,
        `buffer_bytes`, `age_s` (mean time since the steps in the buffer arrived), `reuse` (mean draws of a step),
        `version_lag` (mean number of updates since the making), `worker_deaths` and `dropped_chunks` (parcels of
        episodes that were asked for and never came, their worker dead or the loader closed: at most two each time);
        `return` and `length`, means over the last 100 finished episodes, where the source tells them
        (`episode_return`, `episode_length`).
        """
        with self.locked():
            figures = self._intake.stats()
        deaths, dropped = (0, 0) if self._fleet is None else (self._fleet.n_deaths, self._fleet.n_dropped)
        return figures | {"worker_deaths": deaths, "dropped_chunks": dropped}

    def state_dict(self) -> dict[str, Any]:
        """Returns buffer, counters, parameters and, with `n_workers=0`, the source's state where it has one.

        It can be saved by `torch.save` and loaded with `weights_only=True`, if the source's state is made of numbers,
        text, arrays and tensors in dicts, lists and tuples.

        Raises:
            RuntimeError: with `n_workers=0`, another loader has begun the source anew.
        """
        self._check_begun()
        with self.locked():
            intake = self._intake
            state = {
                "seed": self.seed,
                "generation": self._generation,
                "version": self._version,
                "params": None if self._params is None else to_portable(dict(self._params)),
                "buffer": intake.buffer.state_dict(),
                **intake.counters(),
                "source": None,
            }
            if self.n_workers == 0 and hasattr(self.dataset.source, "state_dict"):
                state["source"] = to_portable(self.dataset.source.state_dict())
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from `state`: exactly with `n_workers=0` and a source that has states; else with fresh seeds.

        Raises:
            ValueError: the state is no such loader's, or of a buffer unlike this one.
        """
        check_state(state, "DatagenLoader", _STATE_KEYS)
        intake = self._intake
        intake.buffer.check_state(state["buffer"])  # before the workers are stopped
        self._close()
        try:
            with intake.changed:
                intake.buffer.load_state_dict(state["buffer"])
        except ValueError:
            if self.n_workers:
                self._generation += 1
                self._launch()
            raise
        with intake.changed:
            intake.go_on(state)
        self.seed = state["seed"]
        self._generation = state["generation"] + 1
        self._version = state["version"]
        self._params = from_portable(state["params"])
        self._launch()
        if self.n_workers == 0 and state["source"] is not None:
            cast("Any", self.dataset.source).load_state_dict(from_portable(state["source"]))

    def shard(self, rank: int, world: int) -> "DatagenLoader":
        """Returns the loader of one rank, whose sources have seeds of their own; closes this one.

        It goes on with this one's buffer, counters and parameters; the buffer draws as this rank's from now on. Shards
        that are made in one process share it.
        """
        check_rank(rank, world)
        self.close()
        other = copy.copy(self)
        other.seed = derive_seed(self.seed, rank, world)
        other._intake = self._intake.copied()
        with other.locked():
            other.buffer.draw_apart(rank, world)
        other._fleet = None
        other._close = weakref.finalize(other, _nothing)
        other._launch()
        return other

    def close(self) -> None:
        """Ends the workers and gives back page-locked memory; also when the loader is no longer referenced."""
        self._close()
        self._finish.close()

    def __enter__(self) -> "DatagenLoader":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _launch(self) -> None:
        self._ended = self._waited = False
        intake = self._intake
        if self.n_workers == 0:
            self._mark = began(self.dataset.source)
            begin(self.dataset.source, derive_seed(self.seed, self._generation, 0), 0, intake.n_steps)
            if self._params is not None:
                self.dataset.source.update_params(self._params, self._version)
            return
        # The fleet's threads know the intake and not this loader, so that a forgotten loader is collected and closed.
        self._fleet = Fleet(
            self.dataset.source,
            self.n_workers,
            self.seed,
            self._generation,
            intake.put,
            intake.notify,
            intake.wants_more,
            None if self._params is None else (self._version, self._params),
            self._engine,
            lambda: intake.n_steps,
            self._stall_timeout_s,
        )
        self._close = weakref.finalize(self, self._fleet.close)

    def _make(self, give_up: Callable[[], bool] | None) -> bool:
        """Has the source act until a batch may be drawn; returns whether it may, or the source has ended."""
        intake, source = self._intake, self.dataset.source
        act = source.__next__ if give_up is None else getattr(source, "poll", source.__next__)
        is_due = intake.replay_ratio is None
        self._check_begun()
        while not self._ended and (is_due or not intake.ready()):
            if give_up is not None and give_up():
                return False
            try:
                episode = act()
            except StopIteration:
                self._ended = True
            else:
                if episode is not None:
                    intake.put(packed([episode], self._version))
                    is_due = False
        return True

    def _check_begun(self) -> None:
        if self.n_workers == 0:
            check_begun(self.dataset.source, self._mark, "source")

    def _await_workers(self, give_up: Callable[[], bool] | None) -> bool:
        """Waits for episodes of the workers; returns whether a batch may be drawn, or every source has ended."""
        intake = self._intake
        while True:
            fleet = self._fleet
            if fleet is None or not self._close.alive:  # perhaps by another thread, while this one waits
                raise RuntimeError("this loader is closed: make a new one")
            with intake.changed:
                if fleet.error is not None:
                    raise fleet.error
                self._ended = fleet.ended
                if self._ended or intake.ready():
                    intake.hungry = False
                    return True
                intake.hungry = True
            fleet.pay()
            with intake.changed:
                if not intake.ready() and fleet.error is None and not fleet.ended:
                    intake.changed.wait(1 if give_up is None else 0.1)
            if give_up is not None and give_up():
                return False


def _on_cpu(value: Any) -> Any:
    return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else copy.deepcopy(value)


def _nothing() -> None:
    pass
