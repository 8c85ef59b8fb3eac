"""A source that remembers what its episodes came to, and when."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ai.data import Packed
from ai.game import Rollouts


class Noted:
    """Rollouts, with the return of every finished episode beside the steps taken until its rollout was over.

    Args:
        source: what acts; it runs in this process.
    """

    def __init__(self, source: Rollouts) -> None:
        self.source = source
        self._steps: list[int] = []
        self._returns: list[float] = []

    def begin_at(self, n_steps: int) -> None:
        """Tells the source what was made already."""
        self.source.begin_at(n_steps)

    def start(self, seed: int, worker: int) -> None:
        """Starts the source."""
        self.source.start(seed, worker)

    def update_params(self, state_dict: Mapping[str, Any], version: int) -> None:
        """Hands the parameters on."""
        self.source.update_params(state_dict, version)

    def __next__(self) -> Packed:
        """Returns the next rollout."""
        made = next(self.source)
        finished = made.finished.get("episode_return", np.empty(0)).tolist()
        self._returns += finished
        self._steps += [self.source.n_steps] * len(finished)
        return made

    @property
    def episodes(self) -> NDArray[np.float64]:
        """`[n, 2]`: steps and return of each finished episode."""
        return np.array([self._steps, self._returns], np.float64).T

    def solved_at(self, goal: float, window: int = 20) -> float:
        """Returns the steps after which `window` episodes in a row first had this mean; NaN if they never had."""
        if len(self._returns) < window:
            return float("nan")
        means = np.convolve(self._returns, np.full(window, 1 / window), "valid")
        reached = np.flatnonzero(means >= goal - 1e-9)
        return float(self._steps[reached[0] + window - 1]) if len(reached) else float("nan")

    def state_dict(self) -> dict[str, Any]:
        """Returns the source's state and what was noted."""
        return {"source": self.source.state_dict(), "steps": list(self._steps), "returns": list(self._returns)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state."""
        self.source.load_state_dict(state["source"])
        self._steps, self._returns = list(state["steps"]), list(state["returns"])
