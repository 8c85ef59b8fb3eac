"""Gomoku, and any game of k stones in a row on a free board. The mover's stones are 1 on `board`, the other's -1."""

from __future__ import annotations

from typing import Any

from ai.game.arguments import check_count
from ai.game.games.board import BoardGame, change_sides
from ai.game.protocol import State


class Gomoku(BoardGame):
    """Who first has five stones in a row, or more, wins. An action is a cell.

    Args:
        size: cells of a side.
        connect: how many in a row win.

    >>> game = Gomoku()
    >>> game.num_actions
    225
    """

    def __init__(self, size: int = 15, *, connect: int = 5) -> None:
        check_count(2, size=size, connect=connect)
        if connect > size:
            raise ValueError(f"connect must be in [2, size ({size})], got {connect}")
        super().__init__(size, fields=(("connect", "i2"), ("free", "i2")))
        self.connect = connect
        self.looks_the_same_from()

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
        change_sides(board)
        won = longest >= s["connect"]
        s["free"] -= 1
        s["player"] = 1 - s["player"]
        s["over"] = won or s["free"] == 0
        s["reward"] = won
