"""Connect Four under perfect play: alpha-beta with a transposition table, compiled.

Source: Pons 2015, "Solving Connect 4: how to build a perfect AI" (bitboard threats, moves that do not lose at once,
ordering by threats made, odd table size); the position key is Tromp's. Only the outcome is searched for, not its
distance.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ai.game import fast
from ai.game.arguments import check_count, check_has
from ai.game.games.connect4 import WIDTH, ConnectFour
from ai.game.protocol import State, check_states
from ai.game.solvers.exhaustive import ILLEGAL

_TRIED = 1000


class ConnectFourSolver:
    """Tells what each move leads to: 1 a win for the mover, 0 a draw, -1 a loss.

    From about 14 stones on a position takes well under a second; the empty board takes long.

    Args:
        table_bits: the transposition table holds 2 ** table_bits positions of 9 bytes.

    Raises:
        ImportError: numba is not installed.

    >>> game = ConnectFour()
    >>> ConnectFourSolver(table_bits=16).score(game.positions(["0303031516364545"])).tolist()
    [[1.0, -1.0, -1.0, -1.0, -1.0, 1.0, -1.0]]
    """

    def __init__(self, *, table_bits: int = 22) -> None:
        check_count(10, table_bits=table_bits)
        if table_bits > 32:
            raise ValueError(f"table_bits must be at most 32, got {table_bits}")
        kernels = fast.kernels(__name__)
        if kernels is None:
            raise ImportError("ConnectFourSolver needs numba: install it with pip install 'packages/ai-game[fast]'")
        self._kernels, self._game = kernels, ConnectFour()
        size = (1 << table_bits) + 1  # odd, so that key and slot together name a position
        self._keys = np.zeros(size, np.uint64)
        self._bounds = np.zeros(size, np.int8)

    def score(self, state: State) -> NDArray[np.float64]:
        """Returns the outcome of each move for the mover, `[B, 7]`; -9 where a column is full.

        Raises:
            ValueError: a game is over, or of other rules.
        """
        check_states(self._game, state)
        over = state["over"] != 0
        if over.any():
            raise ValueError(f"state must hold games that are not over, row {int(over.argmax())} is")
        scores = np.full((len(state), WIDTH), ILLEGAL)
        own, stones = np.ascontiguousarray(state["own"]), np.ascontiguousarray(state["stones"])
        self._kernels.score(own, stones, self._keys, self._bounds, scores)
        return scores

    def best(self, state: State) -> NDArray[np.bool_]:
        """Returns which moves keep the best outcome, `[B, 7]`."""
        scores = self.score(state)
        best: NDArray[np.bool_] = scores == scores.max(axis=1, keepdims=True)
        return best


def decisive_positions(
    solver: ConnectFourSolver, count: int, *, plies: tuple[int, int] = (12, 25), quiet: bool = False, seed: int = 0
) -> tuple[State, NDArray[np.float64]]:
    """Returns `count` different random positions whose moves do not all lead to one outcome, and those outcomes.

    Args:
        solver: the judge.
        count: how many.
        plies: least and greatest number of stones.
        quiet: leave out those where the mover can win at once, about half of all.
        seed: of the random play.

    Raises:
        TypeError: `solver` has no `score`, or `plies` are no two whole numbers.
        ValueError: `count` is below 1; `plies` are not in order, or hold no positions, as near an end; or among a
            thousand random games in a row there was none that is new.
    """
    check_has(("score",), "a ConnectFourSolver()", solver=solver)
    check_count(1, count=count)
    check_count(0, seed=seed)
    if not isinstance(plies, (tuple, list)) or len(plies) != 2:
        raise TypeError(f"plies must be the least and the greatest number of stones, got {plies!r}")
    check_count(0, plies=plies[0])
    check_count(plies[0], plies=plies[1])
    game, rng = ConnectFour(), np.random.default_rng(seed)
    seen: set[tuple[int, int]] = set()
    states: list[State] = []
    scores: list[NDArray[np.float64]] = []
    tried = 0
    while len(states) < count:
        if tried == _TRIED:
            raise ValueError(
                f"plies {tuple(plies)} must have {count} positions to decide: {_TRIED} random games in a row led to no "
                f"other than {len(states)}"
            )
        tried += 1
        state = game.init(1)
        for _ in range(int(rng.integers(plies[0], plies[1] + 1))):
            legal = np.flatnonzero(game.legal(state)[0])
            if len(legal) == 0:
                break
            state = game.step(state, rng.choice(legal, 1))
        key = (int(state["own"][0]), int(state["stones"][0]))
        if game.terminal(state)[0] or key in seen or (quiet and _wins_at_once(game, state)):
            continue
        score = solver.score(state)
        allowed = score[score > ILLEGAL]
        if allowed.min() == allowed.max():
            continue
        seen.add(key)
        tried = 0
        states.append(state)
        scores.append(score)
    return np.concatenate(states), np.concatenate(scores)


def _wins_at_once(game: ConnectFour, state: State) -> bool:
    moves = np.flatnonzero(game.legal(state)[0])
    return bool((game.reward(game.step(np.repeat(state, len(moves)), moves)) > 0).any())
