"""Small games solved outright: every position reachable, and what each move leads to under perfect play."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ai.game.protocol import Game, State

ILLEGAL = -9.0


@dataclass(frozen=True)
class Solution:
    """A solved game.

    Args:
        game: the game.
        states: `[P]` every reachable position where play goes on.
        scores: `[P, A]` the outcome for the mover after each move, both sides perfect; -9 where illegal.
    """

    game: Game
    states: State
    scores: NDArray[np.float64]

    def __post_init__(self) -> None:
        object.__setattr__(self, "_index", {key: i for i, key in enumerate(_keys(self.states))})

    def score(self, state: State) -> NDArray[np.float64]:
        """Returns the outcome of each move, `[B, A]`.

        Raises:
            ValueError: a position is over, or no play reaches it.
        """
        index: dict[bytes, int] = self._index  # type: ignore[attr-defined]
        rows = [index.get(key, -1) for key in _keys(state)]
        if -1 in rows:
            raise ValueError(f"state must hold positions of play, row {rows.index(-1)} is over or out of reach")
        return self.scores[rows]

    def best(self, state: State) -> NDArray[np.bool_]:
        """Returns which moves are best, `[B, A]`."""
        scores = self.score(state)
        best: NDArray[np.bool_] = scores == scores.max(axis=1, keepdims=True)
        return best


def solve(game: Game, *, max_positions: int = 1_000_000) -> Solution:
    """Returns the solution of a game without luck, by going through all its positions backwards.

    Args:
        game: two players, or one; with a single starting position.
        max_positions: refuse larger games.

    Raises:
        ValueError: the game has more positions than that.

    >>> from ai.game import TicTacToe
    >>> solution = solve(TicTacToe())
    >>> len(solution.states), solution.scores[0].tolist()[:3]
    (4520, [0.0, 0.0, 0.0])
    """
    layers = [game.init(1)]
    count = 1
    while True:
        row, action = np.nonzero(game.legal(layers[-1]))
        following = game.step(layers[-1][row], action)
        following = np.unique(following[~game.terminal(following)])
        if len(following) == 0:
            break
        layers.append(following)
        count += len(following)
        if count > max_positions:
            raise ValueError(f"game has more than max_positions ({max_positions}) positions")
    scores: list[NDArray[np.float64]] = []
    value_of: dict[bytes, float] = {}
    for states in reversed(layers):
        score = np.full((len(states), game.num_actions), ILLEGAL)
        row, action = np.nonzero(game.legal(states))
        before = states[row]
        after = game.step(before, action)
        sign = np.where(game.to_play(after) == game.to_play(before), game.discount, -game.discount)
        ahead = np.array([value_of.get(key, 0.0) for key in _keys(after)])
        score[row, action] = game.reward(after) + np.where(game.terminal(after), 0.0, sign * ahead)
        value_of = dict(zip(_keys(states), score.max(axis=1).tolist(), strict=True))
        scores.append(score)
    return Solution(game, np.concatenate(layers), np.concatenate(scores[::-1]))


def _keys(state: State) -> list[bytes]:
    """Returns each state as bytes without padding, whose content numpy leaves open, so that equal states are equal."""
    names = state.dtype.names or ()
    packed = np.zeros(len(state), np.dtype([(name, state.dtype[name]) for name in names]))
    for name in names:
        packed[name] = state[name]
    return [row.tobytes() for row in packed]
