"""Tic-tac-toe on bitboards: bit `3 * row + column` of nine.

`own` holds the stones of the player to move, `stones` those of both.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ai.game import fast
from ai.game.protocol import Actions, Seed, State, check_actions, illegal_action
from ai.game.search.tree import Leaf, Tree

LINES = (0o7, 0o70, 0o700, 0o111, 0o222, 0o444, 0o421, 0o124)
FULL = 0o777


class TicTacToe:
    """Three in a row on a 3 × 3 board; an action is a cell.

    >>> game = TicTacToe()
    >>> state = game.step(game.init(2), np.array([4, 0]))
    >>> game.legal(state).sum(axis=1)
    array([8, 8])
    """

    num_actions = 9
    num_players = 2
    dtype: np.dtype[Any] = np.dtype(
        [("own", "u2"), ("stones", "u2"), ("player", "i1"), ("over", "i1"), ("reward", "f4")], align=True
    )
    observation_shape: tuple[int, ...] = (2, 3, 3)
    discount = 1.0
    num_symmetries = 8

    def init(self, batch: int, seed: Seed = 0) -> State:
        """Returns `batch` empty boards; there is no luck, so `seed` changes nothing."""
        return np.zeros(batch, self.dtype)

    def step(self, state: State, action: Actions) -> State:
        """Returns the boards after a stone on cell `action[B]`.

        Raises:
            ValueError: the cell is taken.
        """
        action = check_actions(action, len(state), self.num_actions)
        out = np.empty_like(state)
        if (compiled := fast.kernels(__name__)) is not None:
            row = compiled.step(state, action, out)
            if row >= 0:
                raise illegal_action(action, row)
            return out
        stone = (1 << action).astype(np.uint16)
        live = state["over"] == 0
        illegal = live & ((state["stones"] & stone) != 0)
        if illegal.any():
            raise illegal_action(action, int(illegal.argmax()))
        own, stones = state["own"] | stone, state["stones"] | stone
        won = np.zeros(len(state), bool)
        for line in LINES:
            won |= (own & line) == line
        out["own"] = np.where(live, stones ^ own, state["own"])
        out["stones"] = np.where(live, stones, state["stones"])
        out["player"] = np.where(live, 1 - state["player"], state["player"])
        out["over"] = ~live | won | (stones == FULL)
        out["reward"] = live & won
        return out

    def observe(self, state: State) -> NDArray[np.float32]:
        """Returns `[B, 2, 3, 3]`: the mover's stones, then the other's."""
        out = np.empty((len(state), *self.observation_shape), np.float32)
        if (compiled := fast.kernels(__name__)) is not None:
            compiled.observe(state, out)
            return out
        bits = np.arange(9, dtype=np.uint16).reshape(3, 3)
        own, stones = state["own"][:, None, None], state["stones"][:, None, None]
        out[:, 0] = (own >> bits) & 1
        out[:, 1] = ((stones ^ own) >> bits) & 1
        return out

    def legal(self, state: State) -> NDArray[np.bool_]:
        """Returns `[B, 9]`: the free cells of games that are not over."""
        if (compiled := fast.kernels(__name__)) is not None:
            out = np.empty((len(state), 9), np.bool_)
            compiled.legal(state, out)
            return out
        free: NDArray[np.bool_] = (state["stones"][:, None] >> np.arange(9, dtype=np.uint16)) & 1 == 0
        legal: NDArray[np.bool_] = free & (state["over"] == 0)[:, None]
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
        """Returns boards and policies turned and mirrored; `which` in [0, 8)."""
        cells = _SYMMETRIES[which]
        flat = observation.reshape(len(observation), -1, 9)
        turned = np.take_along_axis(flat, np.broadcast_to(cells[:, None], flat.shape), axis=2)
        return turned.reshape(observation.shape), np.take_along_axis(policy, cells, axis=1)

    def render(self, state: State, row: int = 0) -> str:
        """Returns one board as text: X moved first; free cells show their number."""
        own, stones, player = (int(state[name][row]) for name in ("own", "stones", "player"))
        first = own if player == 0 else stones ^ own
        cells = ["X" if first >> k & 1 else "O" if stones >> k & 1 else str(k) for k in range(9)]
        return "\n".join(" ".join(cells[k : k + 3]) for k in (0, 3, 6))


def _symmetries() -> NDArray[np.int64]:
    board = np.arange(9).reshape(3, 3)
    turned = [np.rot90(board, k) for k in range(4)]
    return np.array([b.reshape(9) for b in [*turned, *(b.T for b in turned)]])


_SYMMETRIES = _symmetries()
