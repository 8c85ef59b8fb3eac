"""Where games of self-play begin: at their start or after random moves, and never where luck moves."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ai.game import draws
from ai.game.play.options import Play
from ai.game.protocol import Game, State, move_weights

_TRIED = 1000


def opened(
    game: Game,
    play: Play,
    luck: Callable[[NDArray[np.int64], int], NDArray[np.uint64]],
    rows: NDArray[np.int64],
    settle: Callable[[State, NDArray[np.int64]], State],
) -> State:
    """Returns states where new games of `rows` go on, `[len(rows)]`.

    Args:
        game: the rules.
        play: whose `opening_share` and `opening_moves` hold.
        luck: (rows, attempt) -> a seed for each.
        rows: of the games.
        settle: (states, rows) -> the states once luck has moved.

    Raises:
        ValueError: a thousand openings in a row ended a game.
    """
    begun = np.zeros(len(rows), game.dtype)
    pending = np.arange(len(rows))
    for attempt in range(_TRIED):
        seeds = luck(rows[pending], attempt)
        pair = draws.uniform(seeds, 2)
        moves = np.where(pair[:, 0] < play.opening_share, (pair[:, 1] * play.opening_moves).astype(np.int64), 0)
        state = game.init(len(pending), draws.fold_in(seeds, 0))  # a game draws from its seed what it likes
        for move in range(int(moves.max(initial=0))):
            weights = move_weights(game, state)
            ready = (moves > move) & weights.any(axis=1)
            action = draws.choose(draws.fold_in(seeds, 1 + move), np.where(ready[:, None], weights, 1.0))
            state[ready] = game.step(state[ready], action[ready])
        state = settle(state, rows[pending])
        over = game.terminal(state)
        begun[pending[~over]] = state[~over]
        pending = pending[over]
        if not len(pending):
            return begun
    raise ValueError(
        f"opening_moves ({play.opening_moves}) must leave games to play: {_TRIED} openings in a row ended theirs"
    )
