"""What games under way have been so far, from which their episodes are made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ai.game.protocol import Game, State


class History:
    """The moves of B games so far, `[B, T]` by key, with room that grows.

    Attributes:
        columns: `state [B, T + 1]`; `action`, `reward`, `policy`, `value`, `full`, `best` and `explored`, one a move.
    """

    def __init__(self, game: Game, games: int, capacity: int = 16) -> None:
        self._game = game
        self.columns: dict[str, np.ndarray] = {
            "state": np.zeros((games, capacity), game.dtype),
            "action": np.zeros((games, capacity), np.int64),
            "reward": np.zeros((games, capacity)),
            "policy": np.zeros((games, capacity, game.num_actions)),
            "value": np.zeros((games, capacity)),
            "full": np.zeros((games, capacity), bool),
            "best": np.zeros((games, capacity)),
            "explored": np.zeros((games, capacity), bool),
        }

    def begin(self, rows: NDArray[np.int64], state: State) -> None:
        """Writes down the states in which the games of `rows` begin."""
        self.columns["state"][rows, 0] = state

    def record(self, length: NDArray[np.int64], after: State, **made: NDArray[Any]) -> None:
        """Writes down one move of every game, where `length[B]` were made before, and the state after it."""
        games, capacity = self.columns["action"].shape
        if length.max() + 1 >= capacity:
            grown = History(self._game, games, 2 * capacity).columns
            for name, old in self.columns.items():
                grown[name][:, :capacity] = old
            self.columns = grown
        rows = np.arange(games)
        for name, value in made.items():
            self.columns[name][rows, length] = value
        self.columns["state"][rows, length + 1] = after

    def states(self, row: int, length: int) -> State:
        """Returns the states of one game through its first moves, `[length + 1]`."""
        return self.columns["state"][row, : length + 1]

    def moves(self, row: int, length: int, *names: str) -> list[np.ndarray]:
        """Returns what was written of the first moves of one game: copies, `[length, …]` each."""
        return [self.columns[name][row, :length].copy() for name in names]

    def state_dict(self) -> dict[str, np.ndarray]:
        """Returns all of it as plain arrays."""
        return {k: (states_to_bytes(v) if v.dtype.names else v.copy()) for k, v in self.columns.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Becomes what `state_dict` was taken of; what an older version did not write is 0."""
        games, capacity = np.shape(state["action"])[:2]
        read = {k: (states_from_bytes(v, self._game) if k == "state" else np.array(v)) for k, v in state.items()}
        self.columns = {**History(self._game, games, capacity).columns, **read}


def greedy_return(
    reward: NDArray[np.float32],
    discount: NDArray[np.float32],
    to_play: NDArray[np.integer],
    best: NDArray[np.float64],
    explored: NDArray[np.bool_],
    *,
    beyond: float = 0.0,
) -> NDArray[np.float32]:
    """Returns what each position of an episode was worth to its mover, had no move explored: `[T]`.

    Args:
        reward: `[T]` for who moved.
        discount: `[T]` 0 at an end.
        to_play: `[T + 1]`
        best: `[T]` value of the move that the search prefers, for the mover.
        explored: `[T]` whether another, worse move was made.
        beyond: value of the position where an episode was cut off, for its mover.
    """
    out = np.empty(len(reward), np.float32)
    ahead = beyond
    for t in range(len(reward) - 1, -1, -1):
        sign = 1.0 if to_play[t + 1] == to_play[t] else -1.0
        played = reward[t] + discount[t] * sign * ahead
        ahead = out[t] = max(best[t], played) if explored[t] else played
    return out


def states_to_bytes(states: State) -> np.ndarray:
    """Returns structured states as plain bytes `[..., itemsize]`, which any store can keep."""
    return np.ascontiguousarray(states).view(np.uint8).reshape(*states.shape, states.dtype.itemsize).copy()


def states_from_bytes(data: Any, game: Game) -> State:
    """Returns the states of a game that `states_to_bytes` made bytes of."""
    array = np.ascontiguousarray(np.asarray(data, np.uint8))
    return array.view(game.dtype).reshape(array.shape[:-1]).copy()
