"""Play held against the truth: every position of a solved game, and every line that an opponent can steer into."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ai.game import Game, NetEvaluator, Puct, Search, Solution, outcome_for
from ai.game.protocol import State


class Judge:
    """Chooses moves as a match would, without noise, from the network alone (0 simulations) or a search.

    Args:
        game: the game.
        model: from observations to `(logits, value)`.
        simulations: of the search.
        rule: of the search.
    """

    def __init__(self, game: Game, model: nn.Module, simulations: int, rule: Puct | None = None) -> None:
        self.game, self.simulations = game, simulations
        self._evaluator = NetEvaluator(model)
        self._search = Search(game, self._evaluator, simulations=max(simulations, 1), rule=rule or Puct())

    def __call__(self, state: State) -> NDArray[np.int64]:
        """Returns one move a position, `[B]`."""
        if self.simulations:
            return self._search(state).action
        logits, _ = self._evaluator(torch.from_numpy(self.game.observe(state)))
        action: NDArray[np.int64] = np.where(self.game.legal(state), np.asarray(logits), -np.inf).argmax(axis=1)
        return action


def wrong_moves(solution: Solution, choose: Callable[[State], NDArray[np.int64]]) -> int:
    """Returns in how many of all positions the move gives something away."""
    action = choose(solution.states)
    return int((~solution.best(solution.states)[np.arange(len(action)), action]).sum())


def lost_lines(game: Game, choose: Callable[[State], NDArray[np.int64]]) -> int:
    """Returns how many positions an opponent can win in, trying every reply, from either seat.

    Positions that several lines share are counted once.
    """
    lost = 0
    for seat in (0, 1):
        states = game.init(1)
        while len(states):
            ours = game.to_play(states) == seat
            moved = game.step(states[ours], choose(states[ours])) if ours.any() else states[:0]
            row, reply = np.nonzero(game.legal(states[~ours]))
            replied = game.step(states[~ours][row], reply)
            for after, mover in ((moved, seat), (replied, 1 - seat)):
                movers = np.full(len(after), mover)
                lost += int((outcome_for(seat, game.reward(after), movers) < 0).sum())
            states = np.concatenate([moved, replied])
            states = np.unique(states[~game.terminal(states)])
    return lost
