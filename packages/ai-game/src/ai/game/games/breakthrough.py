"""Breakthrough. The mover's pawns are 1 on `board` and go up, the other's -1; the board turns round with the turn."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ai.game.arguments import check_count
from ai.game.games.board import BoardGame
from ai.game.protocol import State


class Breakthrough(BoardGame):
    """Pawns step forward, straight where it is free, aslant to go or to take; who reaches the far row wins.

    An action is `3 * cell + way`, seen by the mover: way 0 is up and left, 1 straight up, 2 up and right.

    Args:
        size: cells of a side; each player has two rows of pawns.

    >>> game = Breakthrough()
    >>> int(game.legal(game.init(1)).sum())
    22
    """

    num_symmetries = 2

    def __init__(self, size: int = 8) -> None:
        check_count(5, size=size)
        super().__init__(size, 3 * size * size)

    @staticmethod
    def start_row(s: Any, luck: Any) -> None:
        """Puts two rows of pawns on each side."""
        board = s["board"]
        size = board.shape[0]
        for column in range(size):
            board[0, column] = board[1, column] = -1
            board[size - 2, column] = board[size - 1, column] = 1

    @staticmethod
    def play_row(s: Any, action: Any) -> None:
        """Moves a pawn and turns the board round."""
        board = s["board"]
        size = board.shape[0]
        row, column = action // 3 // size, action // 3 % size
        board[row, column] = 0
        board[row - 1, column + action % 3 - 1] = 1
        left = 0
        for i in range(size):
            for j in range(size):
                left += board[i, j] == -1
        won = row == 1 or left == 0
        for cell in range((size * size + 1) // 2):
            i, j = cell // size, cell % size
            one, other = board[i, j], board[size - 1 - i, size - 1 - j]
            board[i, j], board[size - 1 - i, size - 1 - j] = -other, -one
        s["player"] = 1 - s["player"]
        s["over"] = won
        s["reward"] = won

    @staticmethod
    def legal_row(s: Any, out: Any) -> None:
        """Allows steps to free cells, and aslant onto the other's pawns."""
        board = s["board"]
        size = board.shape[0]
        for row in range(1, size):
            for column in range(size):
                if board[row, column] == 1:
                    for way in range(3):
                        to = column + way - 1
                        if 0 <= to < size:
                            there = board[row - 1, to]
                            out[3 * (row * size + column) + way] = there == 0 or (there == -1 and way != 1)

    def transform(
        self, observation: NDArray[np.float32], policy: NDArray[np.float32], which: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Returns boards and policies mirrored left to right where `which` is 1."""
        mirrored = which == 1
        board = np.where(mirrored[:, None, None, None], observation[..., ::-1], observation)
        moves = policy.reshape(len(policy), self.size, self.size, 3)
        turned = moves[:, :, ::-1, ::-1].reshape(policy.shape)
        return board, np.where(mirrored[:, None], turned, policy)

    def render(self, state: State, row: int = 0) -> str:
        """Returns one board as the mover sees it, whose pawns go up: X moved first."""
        return "\n".join(" ".join(line) for line in self.signs(state, row))
