"""Hex. The mover's stones are 1 on `board`, the other's -1, and the mover joins the top with the bottom.

So the board is mirrored at its diagonal when the turn passes: rows to one player are columns to the other.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ai.game.arguments import check_count
from ai.game.games.board import BoardGame
from ai.game.protocol import State


class Hex(BoardGame):
    """Who joins their two sides of a rhombus of hexagons wins. An action is a cell, as the mover sees it.

    Args:
        size: cells of a side.

    >>> game = Hex(3)
    >>> state = game.init(1)
    >>> for cell in (1, 0, 4, 1, 7):  # the first player goes down the middle
    ...     state = game.step(state, np.array([cell]))
    >>> game.terminal(state), game.reward(state)
    (array([ True]), array([1.]))
    """

    def __init__(self, size: int = 11) -> None:
        check_count(2, size=size)
        super().__init__(size)
        self.looks_the_same_from((0, 2))  # half a turn

    @staticmethod
    def play_row(s: Any, action: Any) -> None:
        """Puts a stone down and follows its group to the edges."""
        board = s["board"]
        size = board.shape[0]
        board[action // size, action % size] = 2  # met
        waiting = np.empty(size * size, np.int64)
        waiting[0], count = action, 1
        top = bottom = False
        while count > 0:
            count -= 1
            row, column = waiting[count] // size, waiting[count] % size
            top, bottom = top or row == 0, bottom or row == size - 1
            for down, right in ((-1, 0), (-1, 1), (0, 1), (1, 0), (1, -1), (0, -1)):
                i, j = row + down, column + right
                if 0 <= i < size and 0 <= j < size and board[i, j] == 1:
                    board[i, j] = 2
                    waiting[count] = i * size + j
                    count += 1
        for i in range(size):
            for j in range(i + 1):
                one, other = board[i, j], board[j, i]
                board[i, j], board[j, i] = -min(other, 1), -min(one, 1)
        s["player"] = 1 - s["player"]
        s["over"] = top and bottom
        s["reward"] = top and bottom

    def render(self, state: State, row: int = 0) -> str:
        """Returns one board as the mover sees it, who joins top and bottom: X moved first."""
        lines = [" ".join(line) for line in self.signs(state, row)]
        return "\n".join(" " * indent + line for indent, line in enumerate(lines))
