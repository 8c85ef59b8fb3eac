"""What games of stones on a square board share: the fields, the planes, the free cells, the picture."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ai.game.kit.scalar import ScalarGame
from ai.game.kit.symmetry import SquareSymmetry
from ai.game.protocol import State

Field = tuple[str, str]


class BoardGame(ScalarGame):
    """A game in whose states the mover's stones are 1 on `board`, the other's -1; extend it by `play_row`.

    An action is a cell, row by row. A game with others writes its own `legal_row`, which allows the free cells here.

    Args:
        size: cells of a side.
        num_actions: of the game; None for one a cell.
        fields: of a state besides `board`, `player`, `over` and `reward`.
    """

    def __init__(self, size: int, num_actions: int | None = None, *, fields: tuple[Field, ...] = ()) -> None:
        self.size = size
        self.num_actions = size * size if num_actions is None else num_actions
        self.observation_shape = (2, size, size)
        told = [("player", "i1"), ("over", "i1"), ("reward", "f4")]
        self.dtype = np.dtype([("board", "i1", (size, size)), *fields, *told], align=True)

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

    def looks_the_same_from(self, sides: tuple[int, ...] = tuple(range(8))) -> None:
        """Gives the game its symmetries, of the eight of `SquareSymmetry`."""
        symmetry = SquareSymmetry(self.size, self.num_actions, sides)
        self.num_symmetries, self.transform = symmetry.num_symmetries, symmetry.transform

    def signs(self, state: State, row: int = 0) -> list[list[str]]:
        """Returns one board as signs: X moved first, free cells are dots."""
        signs = {1: "XO", -1: "OX", 0: ".."}
        board, player = state["board"][row], int(state["player"][row])
        return [[signs[int(stone)][player] for stone in line] for line in board]

    def render(self, state: State, row: int = 0) -> str:
        """Returns one board as text: X moved first; free cells show their number."""
        width = len(str(self.size * self.size - 1))
        return "\n".join(
            " ".join(f"{i * self.size + j if sign == '.' else sign:>{width}}" for j, sign in enumerate(line))
            for i, line in enumerate(self.signs(state, row))
        )


def change_sides(board: NDArray[np.int8]) -> None:
    """Makes the mover's stones the other's: the turn passes."""
    for i in range(board.shape[0]):
        for j in range(board.shape[0]):
            board[i, j] = -board[i, j]
