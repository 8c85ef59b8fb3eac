"""What a `Datagen` runs: the protocol of a source and the form of its episodes."""

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias, runtime_checkable

Episode: TypeAlias = Mapping[str, Any]
"""One episode of T steps: a dict of arrays over time. Keys that the library knows:

- `obs` `[T+1, ...]`: what was seen before each step, and at the end.
- `action` `[T]` or `[T, ...]`.
- `reward` `[T]`: float, from the view of the player who moved.
- `discount` `[T]`: float, 0 only where the episode truly ends. Default: 1, and 0 at the last step unless `truncated`.
- `truncated`: bool, the episode was cut off and did not end. Default: False.
- `policy` `[T, A]`: the search's probabilities. `value` `[T]` or `[T+1]`: the search's values, from the mover's view.
- `to_play` `[T+1]` or `[T]`: int, the player to move. Default: one player.
- `version`: int, of the parameters that it was made with.

Any other key passes through: arrays with T or T+1 entries go along with the steps, anything else is given to each step
of the episode. A constant array that has T or T+1 entries in one episode by chance is told by the other episodes that
travel with it; where each may come alone, or all have one T, give such a constant another length. All
episodes of a source have the same keys, dtypes and shapes apart from T.
"""


@runtime_checkable
class Source(Protocol):
    """Makes episodes, in this process (`n_workers=0`) or as a copy in each worker process.

    A source reaches a worker by cloudpickle before `start`, so build what cannot be pickled (environments, random
    generators) in `start`. It may also have `state_dict() -> dict` and `load_state_dict(state)`, which make a run with
    `n_workers=0` resume exactly.

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

    def __next__(self) -> Episode:
        """Returns the next episode; raising `StopIteration` ends this worker's part."""

    def update_params(self, state_dict: Mapping[str, Any], version: int) -> None:
        """Takes new parameters, between two episodes.

        Args:
            state_dict: as given to the loader's `update_params`, on the CPU; not to be changed.
            version: counts the updates from 1; skipped numbers were replaced by newer ones before they arrived.
        """
