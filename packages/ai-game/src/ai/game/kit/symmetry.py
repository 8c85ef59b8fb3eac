"""The sides that a square board can be seen from."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class SquareSymmetry:
    """Turns and mirrors square boards, and policies with an entry a cell; entries after the cells stay in place.

    Args:
        size: cells of a side.
        num_actions: entries of a policy.
        sides: which of the eight: 0 to 3 are quarter turns, 4 to 7 the same of the mirrored board.
    """

    def __init__(self, size: int, num_actions: int, sides: tuple[int, ...] = tuple(range(8))) -> None:
        board = np.arange(size * size).reshape(size, size)
        turned = [np.rot90(board, k) for k in range(4)]
        cells = np.array([b.reshape(-1) for b in [*turned, *(b.T for b in turned)]])[list(sides)]
        self.num_symmetries = len(sides)
        self._cells = cells
        others = np.broadcast_to(np.arange(size * size, num_actions), (len(sides), num_actions - size * size))
        self._actions = np.concatenate([cells, others], axis=1)

    def transform(
        self, observation: NDArray[np.float32], policy: NDArray[np.float32], which: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Returns observations `[B, planes, size, size]` and policies `[B, A]` seen from side `which[B]`."""
        flat = observation.reshape(*observation.shape[:2], -1)
        cells = np.broadcast_to(self._cells[which][:, None], flat.shape)
        turned = np.take_along_axis(flat, cells, axis=2).reshape(observation.shape)
        return turned, np.take_along_axis(policy, self._actions[which], axis=1)
