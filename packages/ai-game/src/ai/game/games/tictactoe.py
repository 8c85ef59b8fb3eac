"""Tic-tac-toe on bitboards: bit `3 * row + column` of nine.

`own` holds the stones of the player to move, `stones` those of both.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ai.game.kit.scalar import ScalarGame
from ai.game.protocol import State

LINES = (0o7, 0o70, 0o700, 0o111, 0o222, 0o444, 0o421, 0o124)
FULL = 0o777


class TicTacToe(ScalarGame):
    """Three in a row on a 3 × 3 board; an action is a cell.

    >>> game = TicTacToe()
    >>> state = game.step(game.init(2), np.array([4, 0]))
    >>> game.legal(state).sum(axis=1)
    array([8, 8])
    """

    num_actions = 9
    dtype: np.dtype[Any] = np.dtype(
        [("own", "u2"), ("stones", "u2"), ("player", "i1"), ("over", "i1"), ("reward", "f4")], align=True
    )
    observation_shape: tuple[int, ...] = (2, 3, 3)
    num_symmetries = 8
    branch_free = True

    @staticmethod
    def play_row(s: Any, action: Any) -> None:
        """Puts a stone on a free cell; who has three in a row wins."""
        stone = 1 << action
        own, stones = s["own"] | stone, s["stones"] | stone
        won = own & LINES[0] == LINES[0]
        for line in LINES:
            won |= own & line == line
        s["own"], s["stones"], s["player"] = stones ^ own, stones, 1 - s["player"]
        s["over"] = won | (stones == FULL)
        s["reward"] = won

    @staticmethod
    def legal_row(s: Any, out: Any) -> None:
        """Allows the free cells."""
        for cell in range(9):
            out[cell] = s["stones"] >> cell & 1 == 0

    @staticmethod
    def observe_row(s: Any, out: Any) -> None:
        """Shows the mover's stones, then the other's."""
        own, stones = s["own"], s["stones"]
        for cell in range(9):
            mine = own >> cell & 1
            out[0, cell // 3, cell % 3] = mine
            out[1, cell // 3, cell % 3] = (stones >> cell & 1) ^ mine

    def transform(
        self, observation: NDArray[np.float32], policy: NDArray[np.float32], which: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Returns boards and policies turned and mirrored; `which` in [0, 8)."""
        cells = _SYMMETRIES[which]
        flat = observation.reshape(*observation.shape[:2], 9)
        turned = np.take_along_axis(flat, np.broadcast_to(cells[:, None], flat.shape), axis=2)
        return turned.reshape(observation.shape), np.take_along_axis(policy, cells, axis=1)

    def render(self, state: State, row: int = 0) -> str:
        """Returns one board as text: X moved first; free cells show their number."""
        own, stones, player = (int(state[name][row]) for name in ("own", "stones", "player"))
        first = own if player == 0 else stones ^ own
        cells = ["X" if first >> k & 1 else "O" if stones >> k & 1 else str(k) for k in range(9)]
        return "\n".join(" ".join(cells[k : k + 3]) for k in (0, 3, 6))


def _symmetries() -> NDArray[np.int64]:
    board = np.arange(9).reshape(3, 3)
    turned = [np.rot90(board, k) for k in range(4)]
    return np.array([b.reshape(9) for b in [*turned, *(b.T for b in turned)]])


_SYMMETRIES = _symmetries()
