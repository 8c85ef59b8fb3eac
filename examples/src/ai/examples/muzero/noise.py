"""What a search of luck adds to values that are not exact: a model that is Hog's own rules, its values with noise.

`hatch run reproduce hog-noise`: all 625 positions, each searched with 8 to 300 simulations, beside the number of dice
whose afterstate is worth the most by values as noisy, without any search. The policy tells nothing.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ai.game import Hog, HogSolver, Puct, Search

NOISES = (0.0, 0.1, 0.2)
SIMULATIONS = (8, 32, 100, 300)
IMPOSSIBLE = -1e9  # the logit of a sum that no throw has


class NoisyRules:
    """A `StochasticModel` of Hog by its odds, whose values are the solver's and normal noise, drawn once a position.

    Embeddings `[B, 4]` are own points, the other's, the dice that lie, and whether the game is over.

    Args:
        solver: knows the values.
        noise: its standard deviation.
        seed: of the noise.
    """

    def __init__(self, solver: HogSolver, noise: float, seed: int) -> None:
        drawn, worth = np.random.default_rng(seed), solver.values
        self.game, self.num_codes = solver.game, solver.game.num_actions
        self.after = (worth + noise * drawn.standard_normal(worth.shape)).clip(-1, 1)
        self.before = (worth.max(axis=2) + noise * drawn.standard_normal(worth.shape[:2])).clip(-1, 1)

    def initial(self, observation: Any) -> tuple[Any, Any, Any]:
        """Returns embeddings, logits that tell nothing, and values."""
        seen = np.asarray(observation)[:, : -self.game.dice]
        own, other = seen.reshape(len(seen), 2, -1).argmax(axis=2).T
        embedding = np.stack([own, other, 0 * own, 0 * own], axis=1)
        return embedding, np.zeros((len(seen), self.game.dice)), self.before[own, other]

    def afterstate(self, embedding: Any, action: Any) -> tuple[Any, Any, Any]:
        """Returns afterstates, the odds of what the dice show, and values; past an end all comes to nothing."""
        own, other, _, over = embedding.T
        possible = self.game.odds[action + 1]
        odds = np.log(possible, where=possible > 0, out=np.full(possible.shape, IMPOSSIBLE))
        lying = self.after[own % self.game.goal, other % self.game.goal, action]
        return np.stack([own, other, action + 1, over], axis=1), odds, np.where(over, 0.0, lying)

    def recurrent(self, embedding: Any, action: Any) -> tuple[Any, Any, Any, Any, Any]:
        """Returns embeddings once the dice lie, rewards, discounts, logits that tell nothing, and values."""
        own, other, _, over = embedding.T
        total = own + action
        won = (total >= self.game.goal) & (over == 0)
        over = over | won
        following = np.stack([np.where(over, 0, other), np.where(over, 0, total), 0 * own, over], axis=1)
        value = np.where(over, 0.0, self.before[following[:, 0], following[:, 1]])
        return following, won * 1.0, np.where(over, 0.0, -1.0), np.zeros((len(own), self.game.dice)), value


def reproduce(*, seed: int = 0, draws: int = 16) -> dict[str, float]:
    """Returns points of 50 against the best player, and the chance to win that a move gives away, in percent.

    Args:
        seed: of the first noise.
        draws: how often noise is drawn; the numbers are means.
    """
    solver = HogSolver(Hog(goal=25, dice=5))
    seen, worth = solver.game.observe(solver.positions()), solver.values.reshape(-1, solver.game.dice)
    found: dict[str, float] = {}
    for noise in NOISES:
        models = [NoisyRules(solver, noise, seed + draw) for draw in range(draws if noise else 1)]
        for simulations in (0, *SIMULATIONS):
            results = [_measured(solver, worth, chosen(model, seen, simulations)) for model in models]
            points, given = (float(mean) for mean in np.mean(results, axis=0))
            name = f"noise {noise}, {simulations or 'no'} simulations"
            found[f"{name}: points"], found[f"{name}: given away"] = points, given
            print(f"{name:28}{points:8.2f}{given:8.2f}", flush=True)
    return found


def chosen(model: NoisyRules, seen: NDArray[np.float32], simulations: int) -> NDArray[np.int64]:
    """Returns the number of dice, less one, at each position."""
    dice = model.game.dice
    if not simulations:
        best: NDArray[np.int64] = model.after.reshape(-1, dice).argmax(axis=1)
        return best
    search = Search.learned(model, dice, simulations=simulations, rule=Puct(normalize=False))
    return search(seen).action


def _measured(solver: HogSolver, worth: NDArray[np.float64], action: NDArray[np.int64]) -> tuple[float, float]:
    given = worth.max(axis=1) - worth[np.arange(len(worth)), action]
    return 100 * solver.points(lambda _: action), 50 * float(given.mean())
