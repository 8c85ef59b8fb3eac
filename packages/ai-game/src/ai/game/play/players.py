"""Players: callables from positions and seeds to moves, `(state [B], seed [B]) -> action [B]`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ai.game import draws
from ai.game.arguments import check_amount, check_has
from ai.game.protocol import Game, State, check_game
from ai.game.search.dynamics.evaluated import checked
from ai.game.search.dynamics.known_rules import Evaluator
from ai.game.search.evaluator import NetEvaluator, StateEvaluator, check_evaluator
from ai.game.search.search import Search
from ai.game.search.walk import LOWEST_SCORE
from ai.model.arguments import check_instance

Player = Callable[[State, NDArray[np.uint64]], NDArray[np.int64]]


class Judgement(Protocol):
    """What knows the best moves, such as `Solution` or `ConnectFourSolver`."""

    def best(self, state: State) -> NDArray[np.bool_]:
        """Returns which moves are best, `[B, A]`."""
        ...


def check_players(**named: Any) -> None:
    """Raises `TypeError` for what can choose no move.

    >>> check_players(first=print)
    """
    check_instance(**named)
    for name, player in named.items():
        if not callable(player):
            raise TypeError(f"{name} must be a player, such as random_player(game), got {player!r}")


def random_player(game: Game) -> Player:
    """Returns a player of uniformly random legal moves."""
    check_game(game, "legal")
    return lambda state, seed: draws.choose(seed, game.legal(state).astype(np.float64))


def greedy_player(game: Game, evaluator: Evaluator) -> Player:
    """Returns a player of the evaluator's likeliest legal move, without any search."""
    check_game(game, "num_players", "num_actions", "legal")
    check_evaluator(evaluator)
    if isinstance(evaluator, nn.Module):
        evaluator = NetEvaluator(evaluator)

    def play(state: State, seed: NDArray[np.uint64]) -> NDArray[np.int64]:
        if isinstance(evaluator, StateEvaluator):
            outcome = evaluator.evaluate(state)
        else:
            outcome = evaluator(torch.from_numpy(game.observe(state)))
        logits, _ = checked(outcome, len(state), game.num_actions, game.num_players)
        legal = game.legal(state)
        if np.isnan(logits[legal]).any():
            raise ValueError("evaluator must return numbers as logits of legal actions, got NaN")
        # of legal moves that are all masked, the first
        likely = np.where(legal, np.maximum(logits.astype(np.float64), LOWEST_SCORE), -np.inf)
        action: NDArray[np.int64] = likely.argmax(axis=1)
        return action

    return play


def search_player(search: Search, *, temperature: float = 0.0) -> Player:
    """Returns a player of the search's moves, without noise.

    Args:
        search: of the game; with a `RolloutEvaluator` it is the classical player by rollouts.
        temperature: above 0 draws from the policy to the power 1 / temperature, for varied games.

    Raises:
        TypeError: `search` is none, such as the evaluator that one would ask.
    """
    if not isinstance(search, Search):
        raise TypeError(f"search must be a Search, such as Search(game, evaluator), got {search!r}")
    check_amount(0, finite=False, temperature=temperature)

    def play(state: State, seed: NDArray[np.uint64]) -> NDArray[np.int64]:
        found = search(state, seed)
        if temperature == 0:
            return found.action
        return draws.choose(seed, draws.tempered(found.policy, temperature))

    return play


def perfect_player(judgement: Judgement) -> Player:
    """Returns a player of a best move, drawn among equals.

    Raises:
        TypeError: `judgement` knows no best moves, such as the game itself.
    """
    check_has(("best",), "what knows the best moves, such as solve(game)", judgement=judgement)
    return lambda state, seed: draws.choose(seed, judgement.best(state).astype(np.float64))


def human_player(
    game: Game,
    search: Search | None = None,
    *,
    read: Callable[[str], str] = input,
    write: Callable[[str], None] = print,
) -> Player:
    """Returns a player that asks at the terminal, one game after the other.

    Args:
        game: shown by its `render`, where it has one.
        search: whose visit counts are shown as advice, where given.
        read: asks for a line.
        write: shows text.

    Raises:
        TypeError: `game` has no `legal`, or `search` is none.
    """
    check_game(game, "legal")
    if not isinstance(search, Search | None):
        raise TypeError(f"search must be a Search, such as Search(game, evaluator), or None, got {search!r}")

    def play(state: State, seed: NDArray[np.uint64]) -> NDArray[np.int64]:
        render = getattr(game, "render", None)
        legal = game.legal(state)
        action = np.zeros(len(state), np.int64)
        for row in range(len(state)):
            write(render(state, row) if render else str(state[row]))
            if search is not None:
                found = search(state[row : row + 1])
                counts = ", ".join(f"{a}: {int(n)}" for a, n in enumerate(found.visits[0]) if n)
                write(f"search value {found.value[0]:+.2f}; visits {counts}")
            allowed = np.flatnonzero(legal[row]).tolist()
            while True:
                answer = read(f"move, one of {allowed}: ").strip()
                if answer in map(str, allowed):
                    break
                write(f"a move must be one of {allowed}, got {answer!r}")
            action[row] = int(answer)
        return action

    return play
