"""2048: sliding tiles of powers of two, and chance that puts a new one down after every move.

Source: Cirulli 2014, the game of that name: a new tile is a 2 nine times in ten, else a 4, on any free cell alike.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ai.game.arguments import check_amount
from ai.game.kit.scalar import ScalarChanceGame
from ai.game.protocol import State

PLANES = 18  # of 2^1 to 2^17, the largest tile there can be, and of nothing


class Twenty48(ScalarChanceGame):
    """One player slides all tiles up, right, down or left (0 to 3); equal ones that meet become one, and pay their sum.

    Chance moves when `waiting` tiles are to be put down: outcome `2 * cell` puts a 2, `2 * cell + 1` a 4. `board` holds
    exponents, 0 where nothing is. A game is over when no slide changes the board.

    Args:
        discount: what a later reward is worth a move earlier.

    >>> game = Twenty48()
    >>> state = game.init(1)
    >>> game.chance(state)[0, :2]
    array([0.05625, 0.00625])
    >>> for outcome in (0, 7):  # a 2 and a 4
    ...     state = game.step(state, np.array([outcome]))
    >>> print(game.render(state).splitlines()[0].split())
    ['2', '.', '.', '4']
    """

    num_players = 1
    num_actions = 32
    observation_shape = (PLANES, 4, 4)
    dtype = np.dtype([("board", "i1", (4, 4)), ("waiting", "i1"), ("player", "i1"), ("over", "i1"), ("reward", "f4")])

    def __init__(self, *, discount: float = 1.0) -> None:
        check_amount(0, 1, above=True, discount=discount)
        self.discount = discount

    @staticmethod
    def start_row(s: Any, luck: Any) -> None:
        """Leaves two tiles to be put down."""
        s["waiting"] = 2

    @staticmethod
    def play_row(s: Any, action: Any) -> None:
        """Slides all tiles, or puts one down."""
        board = s["board"]
        s["reward"] = 0
        if s["waiting"] > 0:
            board[action // 2 // 4, action // 2 % 4] = 1 + action % 2
            s["waiting"] -= 1
            if s["waiting"] == 0:
                over = True
                for way in range(4):
                    over = over and not _slides(board, way)
                s["over"] = over
        else:
            s["reward"] = _slide(board, action)
            s["waiting"] = 1

    @staticmethod
    def legal_row(s: Any, out: Any) -> None:
        """Allows the slides that change the board, or a tile on any free cell."""
        board = s["board"]
        if s["waiting"] > 0:
            for cell in range(16):
                out[2 * cell] = out[2 * cell + 1] = board[cell // 4, cell % 4] == 0
        else:
            for way in range(4):
                out[way] = _slides(board, way)

    @staticmethod
    def observe_row(s: Any, out: Any) -> None:
        """Shows a plane for each exponent."""
        board = s["board"]
        for i in range(4):
            for j in range(4):
                out[board[i, j], i, j] = 1

    @staticmethod
    def chance_row(s: Any, out: Any) -> None:
        """Gives each free cell a 2 with 0.9 of its share, and a 4 with the rest."""
        board = s["board"]
        if s["waiting"] > 0:
            free = 0
            for cell in range(16):
                free += board[cell // 4, cell % 4] == 0
            for cell in range(16):
                if board[cell // 4, cell % 4] == 0:
                    out[2 * cell] = 0.9 / free
                    out[2 * cell + 1] = 0.1 / free

    def render(self, state: State, row: int = 0) -> str:
        """Returns one board as text."""
        board = state["board"][row]
        return "\n".join(" ".join(f"{2 ** int(e) if e else '.':>6}" for e in line) for line in board)


def _cell(way: int, line: int, k: int) -> tuple[int, int]:
    """Returns the k-th cell of a line, counted from the edge that tiles slide to."""
    if way == 0:
        return k, line
    if way == 1:
        return line, 3 - k
    if way == 2:
        return 3 - k, line
    return line, k


def _slides(board: NDArray[np.int8], way: int) -> bool:
    """Returns whether a slide would change the board."""
    for line in range(4):
        for k in range(3):
            near, far = board[_cell(way, line, k)], board[_cell(way, line, k + 1)]
            if far != 0 and (near == 0 or near == far):
                return True
    return False


def _slide(board: NDArray[np.int8], way: int) -> int:
    """Slides all tiles and returns the sum of those that became one."""
    paid = 0
    for line in range(4):
        to, joined = 0, True  # whether the last tile put down may not join another
        for k in range(4):
            tile = board[_cell(way, line, k)]
            if tile == 0:
                continue
            board[_cell(way, line, k)] = 0
            if not joined and board[_cell(way, line, to - 1)] == tile:
                board[_cell(way, line, to - 1)] = tile + 1
                paid += 1 << (tile + 1)
                joined = True
            else:
                board[_cell(way, line, to)] = tile
                to += 1
                joined = False
    return paid
