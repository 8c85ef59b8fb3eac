"""The sliding-tile puzzle (the 8-puzzle and its kin): one player, one reward, for the solution."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ai.game import draws
from ai.game.arguments import check_amount, check_count
from ai.game.protocol import Actions, Seed, State, check_actions, illegal_action

# where the blank goes: up, right, down, left
_MOVES = np.array([[-1, 0], [0, 1], [1, 0], [0, -1]])


class SlidingTiles:
    """Tiles 1, 2, … on a square board with one blank; reward 1 when they are in order with the blank last.

    Args:
        size: side of the board, 2 to 11.
        scramble: how many random moves, never straight back, lead from the solution to a start.
        max_steps: moves after which a game is over unsolved.
        discount: below 1, so that a shorter solution is worth more.

    >>> game = SlidingTiles(size=2)
    >>> game.init(1, seed=0)["board"][0].tolist() != [[1, 2], [3, 0]]
    True
    """

    num_actions = 4
    num_players = 1

    def __init__(self, *, size: int = 3, scramble: int = 11, max_steps: int = 40, discount: float = 0.97) -> None:
        check_count(2, size=size)
        if size > 11:
            raise ValueError(f"size must be at most 11, whose tiles have numbers of one byte, got {size}")
        check_count(1, scramble=scramble, max_steps=max_steps)
        check_amount(0, 1, above=True, discount=discount)
        self.size, self.scramble, self.max_steps, self.discount = size, scramble, max_steps, discount
        self.dtype: np.dtype[Any] = np.dtype(
            [("board", "i1", (size, size)), ("blank", "i1", 2), ("steps", "i4"), ("over", "i1"), ("reward", "f4")],
            align=True,
        )
        self.observation_shape: tuple[int, ...] = (size * size, size, size)
        self._solved = ((np.arange(size * size) + 1) % (size * size)).reshape(size, size).astype(np.int8)

    def init(self, batch: int, seed: Seed = 0) -> State:
        """Returns boards `scramble` moves away from the solution; each is solvable and none is solved."""
        check_count(0, batch=batch)
        state = np.zeros(batch, self.dtype)
        state["board"] = self._solved
        state["blank"] = self.size - 1
        seeds = draws.row_seeds(seed, batch)
        last = np.full(batch, -1)
        move = 0
        unsolved = np.zeros(batch, bool)
        while move < self.scramble or not unsolved.all():
            allowed = self._inside(state)
            allowed[np.arange(batch), (last + 2) % 4] &= last < 0
            action = draws.choose(draws.fold_in(seeds, move), allowed.astype(np.float64))
            moving = np.flatnonzero(~unsolved) if move >= self.scramble else np.arange(batch)
            state[moving] = self._slide(state[moving], action[moving])
            last = np.where(np.isin(np.arange(batch), moving), action, last)
            unsolved = (state["board"] != self._solved).any(axis=(1, 2))
            move += 1
        return state

    def step(self, state: State, action: Actions) -> State:
        """Returns the boards with the blank moved up, right, down or left (0 to 3).

        Raises:
            ValueError: the blank would leave the board.
        """
        action = check_actions(action, len(state), self.num_actions)
        live = state["over"] == 0
        illegal = live & ~self._inside(state)[np.arange(len(state)), action]
        if illegal.any():
            raise illegal_action(action, int(illegal.argmax()))
        out = state.copy()
        out[live] = self._slide(state[live], action[live])
        solved = self._in_order(out)
        out["steps"] += live
        out["over"] = ~live | solved | (out["steps"] >= self.max_steps)
        out["reward"] = live & solved
        return out

    def observe(self, state: State) -> NDArray[np.float32]:
        """Returns `[B, size², size, size]`: one plane a tile, the blank's first."""
        tiles = np.arange(self.size**2, dtype=np.int8)[:, None, None]
        planes: NDArray[np.float32] = (state["board"][:, None] == tiles).astype(np.float32)
        return planes

    def legal(self, state: State) -> NDArray[np.bool_]:
        """Returns `[B, 4]`: where the blank can go, until the game is over."""
        legal: NDArray[np.bool_] = self._inside(state) & (state["over"] == 0)[:, None]
        return legal

    def terminal(self, state: State) -> NDArray[np.bool_]:
        """Returns which games are over, `[B]`."""
        over: NDArray[np.bool_] = state["over"] != 0
        return over

    def truncated(self, state: State) -> NDArray[np.bool_]:
        """Returns which games `max_steps` ended unsolved, `[B]`: what is seen does not tell the moves made."""
        return self.terminal(state) & ~self._in_order(state)

    def reward(self, state: State) -> NDArray[np.float64]:
        """Returns 1 where the last move solved the puzzle, else 0."""
        return state["reward"].astype(np.float64)

    def to_play(self, state: State) -> NDArray[np.int64]:
        """Returns zeros: there is one player."""
        return np.zeros(len(state), np.int64)

    def render(self, state: State, row: int = 0) -> str:
        """Returns one board as text, the blank as a dot."""
        width = len(str(self.size**2 - 1))
        return "\n".join(" ".join(f"{tile or '.':>{width}}" for tile in line) for line in state["board"][row])

    def _in_order(self, state: State) -> NDArray[np.bool_]:
        solved: NDArray[np.bool_] = (state["board"] == self._solved).all(axis=(1, 2))
        return solved

    def _inside(self, state: State) -> NDArray[np.bool_]:
        target = state["blank"][:, None] + _MOVES
        inside: NDArray[np.bool_] = ((target >= 0) & (target < self.size)).all(axis=2)
        return inside

    def _slide(self, state: State, action: Actions) -> State:
        out = state.copy()
        rows = np.arange(len(state))
        blank = state["blank"].astype(np.int64)
        target = blank + _MOVES[action]
        out["board"][rows, blank[:, 0], blank[:, 1]] = state["board"][rows, target[:, 0], target[:, 1]]
        out["board"][rows, target[:, 0], target[:, 1]] = 0
        out["blank"] = target
        return out
