"""Connect Four on bitboards: seven columns of seven bits, the top bit of each always free.

`own` holds the stones of the player to move, `stones` those of both. Bit `7 * column + height`.

Source: Tromp 1995, "John's Connect Four Playground" (the layout with a sentinel bit a column).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ai.game import fast
from ai.game.protocol import Actions, Seed, State, check_actions, illegal_action
from ai.game.search.tree import Leaf, Tree

WIDTH, HEIGHT = 7, 6
FULL = sum(((1 << HEIGHT) - 1) << 7 * column for column in range(WIDTH))


class ConnectFour:
    """Four in a row on 7 columns of 6; an action is a column.

    >>> game = ConnectFour()
    >>> state = game.step(game.init(1), np.array([3]))
    >>> print(game.render(state).splitlines()[-2])
    . . . X . . .
    """

    num_actions = WIDTH
    num_players = 2
    dtype: np.dtype[Any] = np.dtype(
        [("own", "u8"), ("stones", "u8"), ("player", "i1"), ("over", "i1"), ("reward", "f4")], align=True
    )
    observation_shape: tuple[int, ...] = (2, HEIGHT, WIDTH)
    discount = 1.0
    num_symmetries = 2

    def init(self, batch: int, seed: Seed = 0) -> State:
        """Returns `batch` empty boards; there is no luck, so `seed` changes nothing."""
        return np.zeros(batch, self.dtype)

    def step(self, state: State, action: Actions) -> State:
        """Returns the boards after a stone in column `action[B]`.

        Raises:
            ValueError: the column is full.
        """
        action = check_actions(action, len(state), self.num_actions)
        out = np.empty_like(state)
        if (compiled := fast.kernels(__name__)) is not None:
            row = compiled.step(state, action, out)
            if row >= 0:
                raise illegal_action(action, row)
            return out
        column = (7 * action).astype(np.uint64)
        live = state["over"] == 0
        illegal = live & ((state["stones"] >> (column + np.uint64(HEIGHT - 1))) & np.uint64(1) != 0)
        if illegal.any():
            raise illegal_action(action, int(illegal.argmax()))
        stones = state["stones"] | (state["stones"] + (np.uint64(1) << column))
        own = state["own"] | (stones ^ state["stones"])
        won = four_in_a_row(own)
        out["own"] = np.where(live, stones ^ own, state["own"])
        out["stones"] = np.where(live, stones, state["stones"])
        out["player"] = np.where(live, 1 - state["player"], state["player"])
        out["over"] = ~live | won | (stones == np.uint64(FULL))
        out["reward"] = live & won
        return out

    def observe(self, state: State) -> NDArray[np.float32]:
        """Returns `[B, 2, 6, 7]`, top row first: the mover's stones, then the other's."""
        out = np.empty((len(state), *self.observation_shape), np.float32)
        if (compiled := fast.kernels(__name__)) is not None:
            compiled.observe(state, out)
            return out
        own, stones = state["own"][:, None, None], state["stones"][:, None, None]
        out[:, 0] = (own >> _BITS) & np.uint64(1)
        out[:, 1] = ((stones ^ own) >> _BITS) & np.uint64(1)
        return out

    def legal(self, state: State) -> NDArray[np.bool_]:
        """Returns `[B, 7]`: the columns with room, of games that are not over."""
        if (compiled := fast.kernels(__name__)) is not None:
            out = np.empty((len(state), WIDTH), np.bool_)
            compiled.legal(state, out)
            return out
        room: NDArray[np.bool_] = (state["stones"][:, None] >> _BITS[0]) & np.uint64(1) == 0
        legal: NDArray[np.bool_] = room & (state["over"] == 0)[:, None]
        return legal

    def terminal(self, state: State) -> NDArray[np.bool_]:
        """Returns which games are over, `[B]`."""
        over: NDArray[np.bool_] = state["over"] != 0
        return over

    def reward(self, state: State) -> NDArray[np.float64]:
        """Returns 1 where the last stone won, else 0."""
        return state["reward"].astype(np.float64)

    def to_play(self, state: State) -> NDArray[np.int64]:
        """Returns who moves next, 0 or 1."""
        return state["player"].astype(np.int64)

    def step_in_tree(
        self, states: State, tree: Tree, rows: NDArray[np.int64], leaf: Leaf, seen: NDArray[np.float32]
    ) -> NDArray[np.int64] | None:
        """Plays all new edges of a search at once; see `SteppedInTrees`."""
        if (compiled := fast.kernels(__name__)) is None:
            return None
        live = np.empty(len(rows), np.int64)
        return live[: compiled.step_in_tree(states, tuple(tree), rows, tuple(leaf), seen, live)]

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


def four_in_a_row(stones: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Returns which boards of one player's stones, `[B]`, hold four in a row."""
    won = np.zeros(stones.shape, bool)
    for step in (1, 6, 7, 8):
        pairs = stones & (stones >> np.uint64(step))
        won |= (pairs & (pairs >> np.uint64(2 * step))) != 0
    return won


_BITS = (np.arange(WIDTH)[None] * 7 + np.arange(HEIGHT)[::-1, None]).astype(np.uint64)
