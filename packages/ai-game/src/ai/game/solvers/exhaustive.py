"""Small games solved outright: every position reachable, and what each move leads to under perfect play."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ai.game.arguments import check_count
from ai.game.protocol import Game, State, check_game, check_states, state_keys

ILLEGAL = -9.0


@dataclass(frozen=True)
class Solution:
    """A solved game.

    Args:
        game: the game.
        states: `[P]` every reachable position where play goes on, the start first.
        scores: `[P, A]` the outcome for the mover after each move, both sides perfect; -9 where illegal.
    """

    game: Game
    states: State
    scores: NDArray[np.float64]

    def __post_init__(self) -> None:
        object.__setattr__(self, "_index", {key: i for i, key in enumerate(state_keys(self.states))})

    def score(self, state: State) -> NDArray[np.float64]:
        """Returns the outcome of each move, `[B, A]`.

        Raises:
            ValueError: a position is over, no play reaches it, or it is of another game.
        """
        check_states(self.game, state)
        index: dict[bytes, int] = self._index  # type: ignore[attr-defined]
        rows = [index.get(key, -1) for key in state_keys(state)]
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
        ValueError: the game has more positions than that, has luck, or can come back to a position, so that play need
            not end.

    >>> from ai.game import TicTacToe
    >>> solution = solve(TicTacToe())
    >>> len(solution.states), solution.scores[0].tolist()[:3]
    (4520, [0.0, 0.0, 0.0])
    """
    check_count(1, max_positions=max_positions)
    check_game(game, "num_players", "num_actions", "discount", "init", "step", "legal", "terminal", "reward", "to_play")
    if game.num_players > 2:
        raise ValueError(f"game must be for one or two players, {type(game).__name__} is for {game.num_players}")
    if hasattr(game, "chance"):
        raise ValueError(f"game must have no luck to be solved, {type(game).__name__} has chance")
    start = game.init(1)
    index = {key: row for row, key in enumerate(state_keys(start))}
    layers, count = [start], 1
    edges: list[tuple[NDArray[Any], ...]] = []
    while len(layers[-1]):
        states = layers[-1]
        row, action = np.nonzero(game.legal(states))
        after = game.step(states[row], action)
        over = game.terminal(after)
        target = np.full(len(row), -1)
        fresh: list[int] = []
        for move, key in enumerate(state_keys(after)):
            if over[move]:
                continue
            if key not in index:
                index[key] = len(index)
                fresh.append(move)
            target[move] = index[key]
        same = game.to_play(after) == game.to_play(states[row])
        ahead = np.where(over, 0.0, np.where(same, game.discount, -game.discount))
        edges.append((row + count - len(states), action, target, game.reward(after), ahead))
        layers.append(after[fresh])
        count += len(fresh)
        if count > max_positions:
            raise ValueError(f"game has more than max_positions ({max_positions}) positions")
    moves = [np.concatenate(part) for part in zip(*edges, strict=True)]
    return Solution(game, np.concatenate(layers), _backwards(game, count, *moves))


def _backwards(
    game: Game,
    count: int,
    source: NDArray[np.int64],
    move: NDArray[np.int64],
    target: NDArray[np.int64],
    paid: NDArray[np.float64],
    factor: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Returns the scores `[P, A]` of the moves listed, each of which leads from `source` to `target`, -1 at an end.

    A position is settled once all that its moves lead to are.
    """
    scores = np.full((count, game.num_actions), ILLEGAL)
    ends = target < 0
    scores[source[ends], move[ends]] = paid[ends]
    waiting = np.bincount(source[~ends], minlength=count)
    into = np.argsort(target, kind="stable")
    first = np.searchsorted(target[into], np.arange(count + 1))
    ready, settled = np.flatnonzero(waiting == 0), 0
    while len(ready):
        settled += len(ready)
        above = np.concatenate([into[first[node] : first[node + 1]] for node in ready])
        value = scores[target[above]].max(axis=1)
        scores[source[above], move[above]] = paid[above] + factor[above] * value
        left = np.bincount(source[above], minlength=count)
        waiting -= left
        ready = np.flatnonzero((waiting == 0) & (left > 0))
    if settled < count:
        raise ValueError(
            f"game must end however it is played, {type(game).__name__} can come back to a position: count the moves "
            "in its state and end it at a limit"
        )
    return scores
