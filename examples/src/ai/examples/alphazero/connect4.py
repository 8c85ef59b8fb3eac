"""Connect Four held against the solver, and against OpenSpiel's search by rollouts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ai.examples.alphazero.ladder import Evaluate, best_snapshot, elo_curve
from ai.examples.saved import load_averaged
from ai.game import (
    ConnectFour,
    ConnectFourSolver,
    NetEvaluator,
    Player,
    Puct,
    Search,
    SymmetricEvaluator,
    decisive_positions,
    greedy_player,
    match,
    search_player,
)
from ai.game.protocol import State
from ai.lab import Trial

RULE = Puct(c_init=1.6, normalize=False, prove=True)


@dataclass(frozen=True)
class Solved:
    """Positions with the outcome of each move, `states [P]` and `scores [P, 7]` as of `decisive_positions`."""

    states: State
    scores: NDArray[np.float64]

    def __post_init__(self) -> None:
        observed = ConnectFour().observe(self.states)
        object.__setattr__(self, "_keys", np.unique(np.concatenate([_keys(observed), _keys(observed[..., ::-1])])))

    def right(self, evaluator: NetEvaluator | SymmetricEvaluator, simulations: int) -> float:
        """Returns the share of positions where the move keeps the best outcome; 0 simulations ask the network alone."""
        game = ConnectFour()
        if simulations:
            return self.right_of(search_player(Search(game, evaluator, simulations=simulations, rule=RULE)))
        return self.right_of(greedy_player(game, evaluator))

    def right_of(self, player: Player) -> float:
        """Returns the share of positions where a player's move keeps the best outcome."""
        action = player(self.states, np.arange(len(self.states), dtype=np.uint64))
        chosen = self.scores[np.arange(len(action)), action]
        return float((chosen == self.scores.max(axis=1)).mean())

    def values(self, evaluator: NetEvaluator) -> dict[str, float]:
        """Returns the mean value that the network gives to wins, draws and losses of the mover."""
        _, value = evaluator(torch.from_numpy(ConnectFour().observe(self.states)))
        outcome, found = self.scores.max(axis=1), np.asarray(value)
        return {
            name: float(found[outcome == which].mean())
            for name, which in (("wins", 1), ("draws", 0), ("losses", -1))
            if (outcome == which).any()
        }

    def withheld(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Returns a batch without these positions and their mirror images, so that training never sees them."""
        known = np.isin(_keys(batch["obs"].cpu().numpy()), self._keys)  # type: ignore[attr-defined]
        if not known.any():
            return batch
        unknown = torch.from_numpy(~known)
        return {name: rows[unknown.to(rows.device)] for name, rows in batch.items()}


def _keys(observation: NDArray[np.float32]) -> NDArray[np.bytes_]:
    """Returns the stones of each observation, `[B, 2, 6, 7]`, as one sortable value."""
    bits = np.packbits(observation.reshape(len(observation), -1) > 0, axis=1)
    return np.ascontiguousarray(bits).view(f"S{bits.shape[1]}")[:, 0]


@cache
def solved_positions(count: int, plies: tuple[int, int] = (12, 25), *, seed: int = 0) -> Solved:
    """Returns `count` random positions that a wrong move spoils and that no move wins at once; about ten a second."""
    return Solved(*decisive_positions(ConnectFourSolver(), count, plies=plies, quiet=True, seed=seed))


def open_spiel_player(rollouts: int) -> Player:
    """Returns OpenSpiel's MCTSBot: its C++ search, uct_c 1.4, solving, one rollout a leaf.

    Raises:
        ImportError: OpenSpiel is not installed.
    """
    try:
        import pyspiel  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise ImportError(
            "matches against MCTSBot need OpenSpiel: install open_spiel, or ai-examples with its extra match"
        ) from error
    rules = pyspiel.load_game("connect_four")

    def play(state: State, seeds: NDArray[np.uint64]) -> NDArray[np.int64]:
        action = np.zeros(len(state), np.int64)
        for row, seed in enumerate((seeds % np.uint64(1 << 31)).tolist()):
            rollout = pyspiel.RandomRolloutEvaluator(1, seed)
            bot = pyspiel.MCTSBot(rules, rollout, 1.4, rollouts, 100, True, seed, False)
            action[row] = bot.step(_in_open_spiel(rules, state, row))
        return action

    return play


def _in_open_spiel(rules: Any, state: State, row: int) -> Any:
    position = rules.new_initial_state()
    for column in move_order(state[row : row + 1]):
        position.apply_action(column)
    return position


def move_order(state: State) -> list[int]:
    """Returns columns that lead to one position, `[1]`; a board does not tell the order of its stones.

    Raises:
        ValueError: no play leads there.
    """
    game = ConnectFour()
    own, stones, player = (int(state[name][0]) for name in ("own", "stones", "player"))
    first = own if player == 0 else stones ^ own
    owners = [[0 if first >> 7 * c + h & 1 else 1 for h in range(6) if stones >> 7 * c + h & 1] for c in range(7)]
    dead: set[tuple[int, ...]] = set()

    def search(reached: State, heights: tuple[int, ...]) -> list[int] | None:
        mover = sum(heights) % 2
        if sum(heights) == sum(map(len, owners)):
            return []
        if heights in dead or game.terminal(reached)[0]:
            return None
        for column, height in enumerate(heights):
            if height < len(owners[column]) and owners[column][height] == mover:
                higher = (*heights[:column], height + 1, *heights[column + 1 :])
                rest = search(game.step(reached, np.array([column])), higher)
                if rest is not None:
                    return [column, *rest]
        dead.add(heights)
        return None

    line = search(game.init(1), (0,) * 7)
    if line is None:
        raise ValueError("state must hold a position of play, no order of moves leads to this one")
    return line


def matches(
    trial_path: str,
    network: Callable[[], Any],
    evaluate: Evaluate,
    games: Mapping[int, int],
    *,
    solved: Solved | None = None,
    elo_games: int = 20,
) -> dict[str, float]:
    """Plays a trial's best snapshot with 100 simulations against MCTSBot, and its snapshots against each other.

    Args:
        trial_path: A trial with snapshots.
        network: Makes the network.
        evaluate: From a network to its evaluator.
        games: How many, by the rollouts of the bot; 0 plays none.
        solved: Positions to ask the bot too, so that one sees how hard they are.
        elo_games: Between each two snapshots.

    Returns:
        `points_R` for each number of rollouts R, the share of points, a draw counting half; `losses_R`; the bot's own
        `bot_right_R` on the solved positions; and `elo_gain`, from the first to the last snapshot. The curve is drawn
        to `elo.png` in the trial's folder.
    """
    game, trial = ConnectFour(), Trial(trial_path)
    best = network()
    load_averaged(best, trial, best_snapshot(trial))
    found: dict[str, float] = {}
    for rollouts, count in games.items():
        if count:
            player = search_player(Search(game, evaluate(best), simulations=100, rule=RULE))
            bot = open_spiel_player(rollouts)
            score = match(game, player, bot, count, seed=rollouts)
            found |= {f"points_{rollouts}": score.points, f"losses_{rollouts}": score.losses}
            if solved is not None:
                found[f"bot_right_{rollouts}"] = solved.right_of(bot)
    return found | {"elo_gain": elo_curve(trial, game, network, evaluate, RULE, games=elo_games)}
