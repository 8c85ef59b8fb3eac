"""Othello on a square board of even side. The mover's discs are 1 on `board`, the other's -1."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ai.game.kit.scalar import ScalarGame
from ai.game.kit.symmetry import SquareSymmetry
from ai.game.protocol import State


class Othello(ScalarGame):
    """Discs that are enclosed turn over; who has more when nobody can move wins. An action is a cell, the last passes.

    Args:
        size: cells of a side.

    >>> game = Othello()
    >>> np.flatnonzero(game.legal(game.init(1))[0])
    array([19, 26, 37, 44])
    """

    def __init__(self, size: int = 8) -> None:
        if size < 4 or size % 2:
            raise ValueError(f"size must be even and at least 4, got {size}")
        self.size = size
        self.num_actions = size * size + 1
        self.observation_shape = (2, size, size)
        self.dtype = np.dtype(
            [("board", "i1", (size, size)), ("player", "i1"), ("over", "i1"), ("reward", "f4")], align=True
        )
        symmetry = SquareSymmetry(size, self.num_actions)
        self.num_symmetries, self.transform = symmetry.num_symmetries, symmetry.transform

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
                board[i, j] = -board[i, j]
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

    @staticmethod
    def observe_row(s: Any, out: Any) -> None:
        """Shows the mover's discs, then the other's."""
        board = s["board"]
        for i in range(board.shape[0]):
            for j in range(board.shape[0]):
                out[0, i, j] = board[i, j] == 1
                out[1, i, j] = board[i, j] == -1

    def render(self, state: State, row: int = 0) -> str:
        """Returns one board as text: X moved first; free cells show their number."""
        signs = {1: "XO", -1: "OX", 0: ".."}
        board, player = state["board"][row], int(state["player"][row])
        return render_board([[signs[int(disc)][player] for disc in line] for line in board])


def render_board(signs: list[list[str]]) -> str:
    """Returns a board as text, with the number of each free cell, `.`, in its place."""
    size = len(signs[0])
    width = len(str(len(signs) * size - 1))
    return "\n".join(
        " ".join(f"{str(i * size + j) if sign == '.' else sign:>{width}}" for j, sign in enumerate(line))
        for i, line in enumerate(signs)
    )


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
