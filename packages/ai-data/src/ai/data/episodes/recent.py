"""What the last finished episodes came to, for the log."""

from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np

_KEPT = 100
# The name in the log of each figure that episodes carry.
_NAMES = {"episode_return": "return", "episode_length": "length"}


class RecentEpisodes:
    """Means over the last 100 episodes that ended, of the figures that their source gave.

    >>> recent = RecentEpisodes()
    >>> recent.stats()
    {}
    >>> recent.add({"episode_return": np.array([1.0, 2.0])})
    >>> recent.stats()
    {'return': 1.5}
    """

    def __init__(self) -> None:
        self._figures: dict[str, deque[float]] = {}

    def add(self, finished: Mapping[str, np.ndarray]) -> None:
        """Takes the figures of episodes, as `Packed.finished` holds them."""
        for key, values in finished.items():
            if len(values):
                self._figures.setdefault(_NAMES.get(key, key), deque(maxlen=_KEPT)).extend(values.tolist())

    def stats(self) -> dict[str, float]:
        """Returns `return` and `length`, where there are any."""
        return {name: sum(values) / len(values) for name, values in self._figures.items()}

    def state_dict(self) -> dict[str, Any]:
        """Returns the figures by name."""
        return {name: list(values) for name, values in self._figures.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a state."""
        self._figures = {name: deque(values, maxlen=_KEPT) for name, values in state.items()}
