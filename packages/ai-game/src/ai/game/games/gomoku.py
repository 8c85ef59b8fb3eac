"""Gomoku, and any game of k stones in a row on a free board. The mover's stones are 1 on `board`, the other's -1."""

from __future__ import annotations

from typing import Any

import numpy as np

from ai.game.games.othello import render_board
from ai.game.kit.scalar import ScalarGame
from ai.game.kit.symmetry import SquareSymmetry
from ai.game.protocol import State


class Gomoku(ScalarGame):
    """Who first has five stones in a row, or more, wins. An action is a cell.

    Args:
        size: cells of a side.
        connect: how many in a row win.

    >>> game = Gomoku()
    >>> game.num_actions
    225
    """

    def __init__(self, size: int = 15, *, connect: int = 5) -> None:
        if not 2 <= connect <= size:
            raise ValueError(f"connect must be in [2, size ({size})], got {connect}")
        self.size, self.connect = size, connect
        self.num_actions = size * size
        self.observation_shape = (2, size, size)
        self.dtype = np.dtype(
            [
                ("board", "i1", (size, size)),
                ("connect", "i2"),
                ("free", "i2"),
                ("player", "i1"),
                ("over", "i1"),
                ("reward", "f4"),
            ],
            align=True,
        )
        symmetry = SquareSymmetry(size, self.num_actions)
        self.num_symmetries, self.transform = symmetry.num_symmetries, symmetry.transform

    def init(self, batch: int, seed: Any = 0) -> State:
        """Returns `batch` empty boards; there is no luck, so `seed` changes nothing."""
        state = super().init(batch, seed)
        state["connect"], state["free"] = self.connect, self.num_actions
        return state

    @staticmethod
    def play_row(s: Any, action: Any) -> None:
        """Puts a stone down and looks along the four lines through it."""
        board = s["board"]
        size = board.shape[0]
        row, column = action // size, action % size
        board[row, column] = 1
        longest = 1
        for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
            line = 1
            for sign in (1, -1):
                i, j = row + sign * down, column + sign * right
                while 0 <= i < size and 0 <= j < size and board[i, j] == 1:
                    line += 1
                    i, j = i + sign * down, j + sign * right
            longest = max(longest, line)
        for i in range(size):
            for j in range(size):
                board[i, j] = -board[i, j]
        won = longest >= s["connect"]
        s["free"] -= 1
        s["player"] = 1 - s["player"]
        s["over"] = won or s["free"] == 0
        s["reward"] = won

    @staticmethod
    def legal_row(s: Any, out: Any) -> None:
        """Allows the free cells."""
        board = s["board"]
        size = board.shape[0]
        for cell in range(size * size):
            out[cell] = board[cell // size, cell % size] == 0

    @staticmethod
    def observe_row(s: Any, out: Any) -> None:
        """Shows the mover's stones, then the other's."""
        board = s["board"]
        for i in range(board.shape[0]):
            for j in range(board.shape[0]):
                out[0, i, j] = board[i, j] == 1
                out[1, i, j] = board[i, j] == -1

    def render(self, state: State, row: int = 0) -> str:
        """Returns one board as text: X moved first; free cells show their number."""
        signs = {1: "XO", -1: "OX", 0: ".."}
        board, player = state["board"][row], int(state["player"][row])
        return render_board([[signs[int(stone)][player] for stone in line] for line in board])
