"""A game with who answers in it: what the network says of a position, and what a search finds there."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ai.examples.play.view import as_text, cells_of, view_of
from ai.game import CachedEvaluator, Game, Puct, RolloutEvaluator, Rule, Search, outcome_for
from ai.game.protocol import State

MOST_SIMULATIONS = 800


class TableOptions(TypedDict, total=False):
    """How a table plays, as of `Table`."""

    rule: Rule | None
    title: str | None


class Table:
    """Answers what a page asks; a question carries all moves of its game, so that nobody's game is kept here.

    Args:
        game: for two players, without luck.
        network: from observations to `(logits, value)`, such as an inference client; None searches by rollouts.
        rule: of the search.
        title: of the game.

    Raises:
        ValueError: the game is not for two, or has luck; the network is for another game.

    >>> from ai.game import TicTacToe
    >>> Table(TicTacToe()).ask([4, 0], 0)["cells"]
    [[2, 0, 0], [0, 1, 0], [0, 0, 0]]
    """

    def __init__(
        self,
        game: Game,
        network: Callable[[Tensor], Any] | None = None,
        *,
        rule: Rule | None = None,
        title: str | None = None,
    ) -> None:
        if game.num_players != 2 or hasattr(game, "chance"):
            raise ValueError(f"game must be for two players and without luck, {type(game).__name__} is not")
        self.game, self.title, self.view = game, title or type(game).__name__, view_of(game)
        self._network = None if network is None else CachedEvaluator(network, capacity=1 << 16)
        if self._network is None:
            self._search = Search(game, RolloutEvaluator(game), simulations=MOST_SIMULATIONS, rule=rule)
        else:
            rule = rule or Puct(normalize=False)
            self._search = Search(game, self._network, simulations=MOST_SIMULATIONS, rule=rule)
        self._lock = threading.Lock()  # a search serves one at a time
        self._thinks(game.init(1))

    def describe(self) -> dict[str, Any]:
        """Returns what a page draws once."""
        return {
            "title": self.title,
            "actions": self.game.num_actions,
            "network": self._network is not None,
            "most": MOST_SIMULATIONS,
            **asdict(self.view),
        }

    def ask(self, moves: Sequence[int], level: int) -> dict[str, Any]:
        """Returns the position after `moves`, what the network says of it, and what a search with `level` leaves finds.

        Values are those of the first player, in [-1, 1]; `best` is the move of the search, of the network at level 0.

        Raises:
            ValueError: a move is illegal or comes after the end, or the level is outside `[0, MOST_SIMULATIONS]`.
        """
        if not 0 <= level <= MOST_SIMULATIONS:
            raise ValueError(f"level must be in [0, {MOST_SIMULATIONS}], got {level}")
        state, outcome, movers = self._followed(moves)
        game, over = self.game, bool(self.game.terminal(state)[0])
        mover = int(game.to_play(state)[0])
        answer = {
            "moves": list(moves),
            "movers": movers,
            "player": mover,
            "over": over,
            "outcome": outcome if over else None,
            "legal": np.flatnonzero(game.legal(state)[0]).tolist(),
            "cells": None if self.view.kind == "text" else cells_of(game, state),
            "text": as_text(game, state) if self.view.kind == "text" else None,
        }
        return answer if over else answer | self._judged(state, mover, level)

    def replayed(self, moves: Sequence[int]) -> tuple[State, float]:
        """Returns the state after moves, `[1]`, and what the first player has earned.

        Raises:
            ValueError: a move is illegal, or comes after the end.
        """
        state, outcome, _ = self._followed(moves)
        return state, outcome

    def _followed(self, moves: Sequence[int]) -> tuple[State, float, list[int]]:
        """Returns what `replayed` does, and who made each move."""
        game, outcome, movers = self.game, 0.0, list[int]()
        state = game.init(1)
        for count, move in enumerate(moves):
            if game.terminal(state)[0]:
                raise ValueError(f"moves must end with the game, which was over after {count}")
            if not 0 <= move < game.num_actions or not game.legal(state)[0, move]:
                raise ValueError(f"moves[{count}] must be legal, got {move}")
            mover = np.array(game.to_play(state))
            state = game.step(state, np.array([move]))
            outcome += float(outcome_for(0, game.reward(state), mover)[0])
            movers.append(int(mover[0]))
        return state, outcome, movers

    def _thinks(self, state: State) -> tuple[NDArray[np.float64], float] | None:
        """Returns the network's policy of one position, `[A]`, and its value for the mover; None without a network."""
        if self._network is None:
            return None
        shown = torch.from_numpy(self.game.observe(state))
        try:
            logits, value = self._network(shown)
        except RuntimeError as error:
            raise ValueError(f"network must take observations of {type(self.game).__name__}: {error}") from error
        actions, legal = self.game.num_actions, self.game.legal(state)[0]
        if logits.shape != (1, actions):
            raise ValueError(
                f"network must give {actions} logits a position of {type(self.game).__name__}, got {logits.shape[1:]}"
            )
        highest = logits[0][legal].max()
        if not (np.isfinite(highest) and np.isfinite(value[0])):
            raise RuntimeError("its policy and value are no finite numbers")
        weights = np.where(legal, np.exp(np.where(legal, logits[0], -np.inf) - highest), 0.0)
        return weights / weights.sum(), float(value[0])

    def _judged(self, state: State, mover: int, level: int) -> dict[str, Any]:
        legal = self.game.legal(state)[0]
        sign = 1.0 if mover == 0 else -1.0
        found: dict[str, Any] = {"policy": None, "value": None, "visits": None, "search_value": None}
        chances = legal / legal.sum()
        with self._lock:
            if (thought := self._thinks(state)) is not None:
                chances, value = thought
                found |= {"policy": chances.round(4).tolist(), "value": round(sign * value, 4)}
            found["best"] = int(chances.argmax())
            if level:
                searched = self._search(state, simulations=np.array([level]))
                found |= {
                    "visits": searched.visits[0].astype(int).tolist(),
                    "search_value": round(sign * float(searched.value[0]), 4),
                    "best": int(searched.action[0]),
                }
        return found
