"""Hog solved: what each number of dice is worth at all points, and what a player takes of the best one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ai.game.games.hog import Hog
from ai.game.protocol import State, check_states
from ai.game.solvers.exhaustive import ILLEGAL
from ai.model.arguments import check_instance

_EXACT = 1e-12


class HogSolver:
    """The value of every number of dice at every score, by value iteration: 1 for a sure win, -1 for a sure loss.

    Args:
        game: which Hog.

    >>> solver = HogSolver(Hog(goal=2, dice=1))
    >>> round(float(solver.values[0, 0].max()), 6)  # who throws first wins 6 of 7 games
    0.714286
    """

    def __init__(self, game: Hog) -> None:
        check_instance(game=game)
        if not isinstance(game, Hog):
            raise TypeError(f"game must be a Hog, got {type(game).__name__}")
        self.game = game
        # what comes about at [own, other] by each number of dice: a win, or the other's turn at [other, own + sum]
        own, total = np.arange(game.goal), np.arange(game.num_actions)
        self._reached = own[:, None] + total
        self.values = self._settled(lambda worth: worth.max(axis=2))

    def _settled(self, chosen: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> NDArray[np.float64]:
        """Returns what each number of dice is worth, `[goal, goal, dice]`, where both play on as `chosen` says."""
        goal, odds = self.game.goal, self.game.odds[1:]
        value = np.zeros((goal, goal))
        while True:
            beyond = np.ones((goal, goal, self.game.num_actions))  # a win, but where the other one moves on
            inside = self._reached < goal
            first, second = np.nonzero(inside)
            beyond[first, :, second] = -value[:, self._reached[first, second]].T
            worth = beyond @ odds.T
            new = chosen(worth)
            if np.abs(new - value).max() < _EXACT:
                return worth
            value = new

    def score(self, state: State) -> NDArray[np.float64]:
        """Returns what each move is worth to who makes it, `[B, A]`; -9 where illegal.

        Raises:
            ValueError: a game is over, dice lie, or it is of other rules.
        """
        check_states(self.game, state)
        if ((state["over"] != 0) | (state["thrown"] > 0)).any():
            raise ValueError("state must hold positions where a player is to throw")
        scores = np.full((len(state), self.game.num_actions), ILLEGAL)
        scores[:, : self.game.dice] = self.values[state["own"], state["other"]]
        return scores

    def best(self, state: State) -> NDArray[np.bool_]:
        """Returns which moves are best, `[B, A]`."""
        scores = self.score(state)
        best: NDArray[np.bool_] = scores >= scores.max(axis=1, keepdims=True) - 1e-9
        return best

    def positions(self) -> State:
        """Returns all positions where a player is to throw, `[goal * goal]`."""
        state = np.zeros(self.game.goal**2, self.game.dtype)
        state["own"], state["other"] = np.divmod(np.arange(self.game.goal**2), self.game.goal)
        return state

    def points(self, choose: Callable[[State], NDArray[np.int64]]) -> float:
        """Returns the share of the games that a player wins of the best one, who begins in every second one.

        Nothing is drawn: the player is asked once at every position, and the rest is reckoned.

        Args:
            choose: positions `[B]` -> moves `[B]`, always the same at the same position.
        """
        goal, odds = self.game.goal, self.game.odds[1:]
        states = self.positions()
        moves = np.stack([choose(states), self.best(states).argmax(axis=1)]).reshape(2, goal, goal)
        # how likely the player wins from [own, other] of who moves: the player first, then the best one
        wins = np.zeros((2, goal, goal))
        first, second = np.nonzero(self._reached < goal)
        while True:
            new = np.empty_like(wins)
            for mover in (0, 1):
                beyond = np.full((goal, goal, self.game.num_actions), 1.0 - mover)
                beyond[first, :, second] = wins[1 - mover][:, self._reached[first, second]].T
                new[mover] = (beyond * odds[moves[mover]]).sum(axis=2)
            if np.abs(new - wins).max() < _EXACT:
                return float(new[:, 0, 0].mean())
            wins = new
