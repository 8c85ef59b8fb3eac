"""What a `Datagen` runs: the protocol of a source."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from ai.data.episodes.packing import Episode, Packed


@runtime_checkable
class Source(Protocol):
    """Makes episodes, in this process (`n_workers=0`) or as a copy in each worker process.

    A source reaches a worker by cloudpickle before `start`, so build what cannot be pickled (environments, random
    generators) in `start`. It may also have `state_dict() -> dict` and `load_state_dict(state)`, which make a run with
    `n_workers=0` resume exactly; and `poll()`, which works for a moment and returns an episode, or None where none is
    finished yet, so that a wait for long episodes ends when it is to. What depends on how long it has acted, such as
    exploring, is told by `begin_at(n_steps)`: called before `start` where a copy's share of the steps was made already,
    by an earlier run or by a worker that died.

    Example:
        >>> import numpy as np
        >>> class Coins:
        ...     def start(self, seed: int, worker: int) -> None:
        ...         self.rng = np.random.default_rng(seed)
        ...     def __next__(self) -> Episode:
        ...         return {"obs": np.zeros((4, 1)), "action": self.rng.integers(0, 2, 3), "reward": np.ones(3)}
        ...     def update_params(self, state_dict: Mapping[str, Any], version: int) -> None:
        ...         pass
        >>> isinstance(Coins(), Source)
        True
    """

    def start(self, seed: int, worker: int) -> None:
        """Called once before the first episode.

        Args:
            seed: differs between workers, and between a worker and its replacement; draw everything from it.
            worker: 0 … n_workers - 1; 0 in synchronous use.
        """

    def __next__(self) -> Episode | Packed:
        """Returns the next episode, or several in one; raising `StopIteration` ends this worker's part.

        What it returns is copied before the next call, and may be written to again.
        """

    def update_params(self, state_dict: Mapping[str, Any], version: int) -> None:
        """Takes new parameters, between two episodes.

        Args:
            state_dict: as given to the loader's `update_params`, on the CPU; not to be changed.
            version: counts the updates from 1; skipped numbers were replaced by newer ones before they arrived.
        """


def begin(source: Source, seed: int, worker: int, n_steps: int) -> None:
    """Starts a source whose share of the steps made already is `n_steps`."""
    begin_at = getattr(source, "begin_at", None)
    if n_steps and begin_at is not None:
        begin_at(n_steps)
    source.start(seed, worker)
