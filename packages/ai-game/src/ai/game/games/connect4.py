"""Connect Four on bitboards: seven columns of seven bits, the top bit of each always free.

`own` holds the stones of the player to move, `stones` those of both. Bit `7 * column + height`.

Source: Tromp 1995, "John's Connect Four Playground" (the layout with a sentinel bit a column).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ai.game.kit.scalar import ScalarGame
from ai.game.protocol import State

WIDTH, HEIGHT = 7, 6
ZERO, ONE = np.uint64(0), np.uint64(1)
FULL = np.uint64(sum(((1 << HEIGHT) - 1) << 7 * column for column in range(WIDTH)))


class ConnectFour(ScalarGame):
    """Four in a row on 7 columns of 6; an action is a column.

    >>> game = ConnectFour()
    >>> state = game.step(game.init(1), np.array([3]))
    >>> print(game.render(state).splitlines()[-2])
    . . . X . . .
    """

    num_actions = WIDTH
    dtype: np.dtype[Any] = np.dtype(
        [("own", "u8"), ("stones", "u8"), ("player", "i1"), ("over", "i1"), ("reward", "f4")], align=True
    )
    observation_shape: tuple[int, ...] = (2, HEIGHT, WIDTH)
    num_symmetries = 2
    branch_free = True

    @staticmethod
    def play_row(s: Any, action: Any) -> None:
        """Drops a stone into a column with room; who has four in a row wins."""
        before = s["stones"]
        stones = before | (before + (ONE << np.uint64(7) * np.uint64(action)))
        own = s["own"] | (stones ^ before)
        won = four_in_a_row(own)
        s["own"], s["stones"], s["player"] = stones ^ own, stones, 1 - s["player"]
        s["over"] = won | (stones == FULL)
        s["reward"] = won

    @staticmethod
    def legal_row(s: Any, out: Any) -> None:
        """Allows the columns with room."""
        for column in range(WIDTH):
            out[column] = (s["stones"] >> np.uint64(7 * column + HEIGHT - 1)) & ONE == ZERO

    @staticmethod
    def observe_row(s: Any, out: Any) -> None:
        """Shows the mover's stones, then the other's, top row first."""
        own, stones = s["own"], s["stones"]
        for column in range(WIDTH):
            for height in range(HEIGHT):
                bit = np.uint64(7 * column + height)
                mine = (own >> bit) & ONE
                out[0, HEIGHT - 1 - height, column] = mine
                out[1, HEIGHT - 1 - height, column] = ((stones >> bit) & ONE) ^ mine

    def transform(
        self, observation: NDArray[np.float32], policy: NDArray[np.float32], which: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Returns boards and policies mirrored left to right where `which` is 1."""
        mirrored = (which == 1)[:, None]
        board = np.where(mirrored[:, :, None, None], observation[..., ::-1], observation)
        return board, np.where(mirrored, policy[:, ::-1], policy)

    def render(self, state: State, row: int = 0) -> str:
        """Returns one board as text: X moved first; the last line numbers the columns."""
        own, stones, player = (int(state[name][row]) for name in ("own", "stones", "player"))
        first = own if player == 0 else stones ^ own
        lines = [
            " ".join("X" if first >> k & 1 else "O" if stones >> k & 1 else "." for k in range(height, 49, 7))
            for height in reversed(range(HEIGHT))
        ]
        return "\n".join([*lines, " ".join(map(str, range(WIDTH)))])

    def positions(self, moves: list[str]) -> State:
        """Returns the states after each string of columns, counted from 0, as in `"334"`.

        Raises:
            ValueError: a move is illegal, or comes after the end of its game.
        """
        out = self.init(len(moves))
        for row, line in enumerate(moves):
            state = self.init(1)
            for column in line:
                if self.terminal(state)[0]:
                    raise ValueError(f"moves[{row}] must end with its game, got {line!r}")
                state = self.step(state, np.array([int(column)]))
            out[row] = state[0]
        return out


def four_in_a_row(stones: Any) -> Any:
    """Returns whether one player's stones hold four in a row, of one board or of many."""
    won = stones != stones
    for step in (1, 6, 7, 8):
        pairs = stones & (stones >> np.uint64(step))
        won |= (pairs & (pairs >> np.uint64(2 * step))) != ZERO
    return won
