"""A sum tree: draws in proportion to priorities, many at once.

Source: Schaul, Quan, Antonoglou and Silver, 2016, Prioritized Experience Replay, appendix B.2.1.
"""

import numpy as np


class SumTree:
    """Non-negative priorities of `n` places; setting and drawing cost O(log n) each.

    Example:
        >>> tree = SumTree(4)
        >>> tree.set(np.array([1, 3]), np.array([1.0, 3.0]))
        >>> tree.total, tree.find(np.array([0.5, 1.5])).tolist()
        (4.0, [1, 3])
    """

    def __init__(self, n: int) -> None:
        self._n_leaves = 1 << max(int(n) - 1, 1).bit_length()
        # Node i has the children 2i and 2i + 1; the leaves come last.
        self._sums = np.zeros(2 * self._n_leaves)

    @property
    def total(self) -> float:
        """The sum of all priorities."""
        return float(self._sums[1])

    def get(self, places: np.ndarray) -> np.ndarray:
        """Returns the priorities at `places`."""
        priorities: np.ndarray = self._sums[self._n_leaves + places]
        return priorities

    def set(self, places: np.ndarray, priorities: np.ndarray) -> None:
        """Sets the priorities at `places`; of a place named twice the last one holds."""
        nodes = self._n_leaves + places
        self._sums[nodes] = priorities
        while len(nodes) and nodes[0] > 1:
            nodes = nodes >> 1
            # Sums are made anew from both children, so no rounding error ever builds up.
            self._sums[nodes] = self._sums[2 * nodes] + self._sums[2 * nodes + 1]

    def find(self, masses: np.ndarray) -> np.ndarray:
        """Returns the place whose share of [0, total) holds each mass; never one of priority zero."""
        masses = masses.copy()
        nodes = np.ones(len(masses), np.int64)
        while len(nodes) and nodes[0] < self._n_leaves:
            left = self._sums[2 * nodes]
            # A mass that rounding put past the end must not leave the places that have a share.
            right = (masses >= left) & (self._sums[2 * nodes + 1] > 0)
            masses -= np.where(right, left, 0)
            nodes = 2 * nodes + right
        return nodes - self._n_leaves
