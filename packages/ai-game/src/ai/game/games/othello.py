"""Othello on a square board of even side. The mover's discs are 1 on `board`, the other's -1."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ai.game.arguments import check_count
from ai.game.games.board import BoardGame, change_sides


class Othello(BoardGame):
    """Discs that are enclosed turn over; who has more when nobody can move wins. An action is a cell, the last passes.

    Args:
        size: cells of a side.

    >>> game = Othello()
    >>> np.flatnonzero(game.legal(game.init(1))[0])
    array([19, 26, 37, 44])
    """

    def __init__(self, size: int = 8) -> None:
        check_count(4, size=size)
        if size % 2:
            raise ValueError(f"size must be even and at least 4, got {size}")
        super().__init__(size, size * size + 1)
        self.looks_the_same_from()

    @staticmethod
    def start_row(s: Any, luck: Any) -> None:
        """Puts two discs of each side crosswise in the middle; the first player's are on the rising diagonal."""
        board = s["board"]
        middle = board.shape[0] // 2
        board[middle - 1, middle] = board[middle, middle - 1] = 1
        board[middle - 1, middle - 1] = board[middle, middle] = -1

    @staticmethod
    def play_row(s: Any, action: Any) -> None:
        """Puts a disc down and turns what it encloses; the game is over when neither side can move."""
        board = s["board"]
        size = board.shape[0]
        if action < size * size:
            row, column = action // size, action % size
            for down in range(-1, 2):
                for right in range(-1, 2):
                    for k in range(1, 1 + _enclosed(board, row, column, down, right, 1)):
                        board[row + k * down, column + k * right] = 1
            board[row, column] = 1
        over = not _can_move(board, 1) and not _can_move(board, -1)
        balance = 0
        for i in range(size):
            for j in range(size):
                balance += board[i, j]
        change_sides(board)
        s["player"] = 1 - s["player"]
        s["over"] = over
        s["reward"] = np.sign(balance) if over else 0

    @staticmethod
    def legal_row(s: Any, out: Any) -> None:
        """Allows the cells that enclose something; to pass where there is none."""
        board = s["board"]
        size = board.shape[0]
        stuck = True
        for cell in range(size * size):
            if _encloses(board, cell // size, cell % size, 1):
                out[cell] = True
                stuck = False
        out[size * size] = stuck


def _enclosed(board: NDArray[np.int8], row: int, column: int, down: int, right: int, side: int) -> int:
    """Returns how many discs a disc of `side` would turn over in one direction."""
    size, count = board.shape[0], 0
    i, j = row + down, column + right
    while 0 <= i < size and 0 <= j < size and board[i, j] == -side:
        i, j, count = i + down, j + right, count + 1
    return count if 0 <= i < size and 0 <= j < size and board[i, j] == side else 0


def _encloses(board: NDArray[np.int8], row: int, column: int, side: int) -> bool:
    """Returns whether a disc of `side` may be put on a cell."""
    if board[row, column] != 0:
        return False
    for down in range(-1, 2):
        for right in range(-1, 2):
            if (down != 0 or right != 0) and _enclosed(board, row, column, down, right, side) > 0:
                return True
    return False


def _can_move(board: NDArray[np.int8], side: int) -> bool:
    """Returns whether `side` has a cell to move to."""
    size = board.shape[0]
    for cell in range(size * size):
        if _encloses(board, cell // size, cell % size, side):
            return True
    return False
