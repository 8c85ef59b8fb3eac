"""The n-step sums of a ring's rows, made once when rows are written: each is drawn many times."""

import numpy as np
import torch
from torch import Tensor

from ai.data.episodes.returns import n_step_rewards
from ai.data.episodes.ring import Ring

MADE_OF = frozenset({"reward", "discount", "to_play"})
"""The keys of episodes that sums are made of: where these are rewritten, sums are as well."""


class NStepSums:
    """The rewards of n steps from each live row on, and what a value where they stop is multiplied by.

    Args:
        ring: whose live rows are summed; they tell by themselves of how many steps, since no row is overwritten before
            the earlier ones of its episode.
        n_step: steps, at least 1.
        gamma: factor a step, besides the `discount` of the episodes.
    """

    def __init__(self, ring: Ring, n_step: int, gamma: float) -> None:
        self._ring, self._n_step, self._gamma = ring, n_step, gamma
        self._reward, self._factor = (torch.zeros(ring.capacity, device="cpu") for _ in range(2))
        self.write(ring.live())

    @property
    def n_bytes(self) -> int:
        """Memory in bytes."""
        return self._reward.nbytes + self._factor.nbytes

    def are_of(self, ring: Ring, n_step: int, gamma: float) -> bool:
        """Whether they were made of that ring as it is, with these numbers."""
        same = ring is self._ring and n_step == self._n_step and gamma == self._gamma
        return same and ring.n_changes == self._n_changes

    def write(self, places: np.ndarray) -> None:
        """Sums anew at places that were written."""
        ring, at = self._ring, torch.from_numpy(places)
        left = ring.end[at] - torch.from_numpy(ring.number_at(places))
        reward, factor = n_step_rewards(ring.columns, at, left, self._n_step, self._gamma, ring.capacity)
        self._reward.numpy()[places], self._factor.numpy()[places] = reward, factor
        self._n_changes = ring.n_changes

    def rewrite(self, numbers: Tensor) -> None:
        """Sums anew what rows that were rewritten, by their numbers, are a part of."""
        oldest, n_live = self._ring.oldest, len(self._ring.live())
        at = np.unique(numbers.numpy()) - oldest
        # One more where a reach of rows begins, one less after it: of an end the moment after, too.
        change = np.zeros(n_live + 1, np.int64)
        np.add.at(change, np.maximum(at - self._n_step, 0), 1)
        np.add.at(change, np.minimum(at + 2, n_live), -1)
        self.write((oldest + np.flatnonzero(np.cumsum(change[:-1]))) % self._ring.capacity)

    def at(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Returns both parts at places of any shape."""
        if places.ndim == 1:
            return self._reward.index_select(0, places), self._factor.index_select(0, places)
        return self._reward[places], self._factor[places]
