"""What a search is given to choose by: where walks go, and what is made of what they found.

`Puct` and `Gumbel` are rules. `ScoredRule` makes one of a score for one edge, compiled into the walk where numba is.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ai.game import draws, fast
from ai.game.arguments import check_amount
from ai.game.protocol import Game
from ai.game.search.tree import Tree

Scores = Callable[[Tree, NDArray[np.int64], NDArray[np.int64], bool], NDArray[np.float64]]


class Way(NamedTuple):
    """How the walks of one search go.

    Attributes:
        params: what the kernel is handed of it: numbers and arrays.
        kernel: `(tree, rows, params, leaf, luck, max_depth)`, compiled; None where numba is not, or for a
            rule that has none: then walks go by `scores`.
        scores: (tree, rows `[R]`, node `[R]`, whether these are roots) -> scores `[R, A]`, by numpy: the highest legal
            one is followed.
    """

    params: tuple[Any, ...]
    kernel: Any
    scores: Scores


@dataclass
class Roots:
    """What a rule is told when a search begins; the roots are evaluated.

    Args:
        tree: whose roots they are; a rule may change their `prior`.
        simulations: the most that any row is searched.
        budget: `[B]` of each row.
        seeds: `[B]` of the noise.
        noisy: `[B]` which rows want noise.
        drawn: `[B, A]` numbers in place of those that would be drawn, or None.
        memory: kept by the search from one call to the next, for what is costly to make.
    """

    tree: Tree
    simulations: int
    budget: NDArray[np.int64]
    seeds: NDArray[np.uint64]
    noisy: NDArray[np.bool_]
    drawn: NDArray[np.float64] | None = None
    memory: dict[Any, Any] = field(default_factory=dict)


class Rule:
    """How a search chooses; extend it, or rather `ScoredRule`.

    Attributes:
        keeps_trees: whether `Search.advance` may carry a tree over a move.
        prove: whether what the rules make certain is carried up the tree.
    """

    keeps_trees: ClassVar[bool] = True
    prove: bool = False

    def check(self, game: Game | None) -> None:
        """Refuses, by a ValueError, what the rule cannot search; None stands for a learned model."""

    def begin(self, roots: Roots) -> Way:
        """Puts the noise in place, and returns how walks go."""
        raise NotImplementedError(f"{type(self).__name__} must have begin(roots) -> Way")

    def decide(self, tree: Tree, way: Way) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Returns each root's move `[B]` and its policy to learn from `[B, A]`: the most visited, and visit shares."""
        visits, total = tree.visits[:, 0].astype(np.float64), tree.total[:, 0]
        # among equal visits the higher value, then the lower number
        mean = total / np.maximum(visits, 1.0)
        action = np.where(visits == visits.max(axis=1, keepdims=True), mean, -np.inf).argmax(axis=1)
        return action, visits / visits.sum(axis=1, keepdims=True)


@dataclass(frozen=True)
class ScoredRule(Rule):
    """A rule that follows the edge of the highest score; give it `score_edge`, a static method, and its `constants`.

    Args:
        dirichlet_alpha: concentration of the root noise; about 10 / legal actions.
        dirichlet_fraction: share of the noise in the root prior, where noise is on.

    Example:
        >>> import math
        >>> from ai.game import RolloutEvaluator, Search, TicTacToe
        >>> class UCB1(ScoredRule):
        ...     '''Auer, Cesa-Bianchi, Fischer 2002, "Finite-time analysis of the multiarmed bandit problem".'''
        ...     constants = (1.4,)
        ...     @staticmethod
        ...     def score_edge(visits, mean, prior, node_visits, node_value, constants):
        ...         if visits == 0:
        ...             return 1e6 + prior
        ...         return mean + constants[0] * math.sqrt(math.log(node_visits + 1) / visits)
        >>> game = TicTacToe()
        >>> search = Search(game, RolloutEvaluator(game), simulations=64, rule=UCB1())
        >>> float(search(game.init(1)).visits.sum())
        64.0
    """

    dirichlet_alpha: float = 1.0
    dirichlet_fraction: float = 0.25

    constants: ClassVar[tuple[float, ...]] = ()

    def __post_init__(self) -> None:
        check_noise(self.dirichlet_alpha, self.dirichlet_fraction)

    @staticmethod
    def score_edge(
        visits: float, mean: float, prior: float, node_visits: float, node_value: float, constants: tuple[float, ...]
    ) -> float:
        """Returns how much an edge is worth to follow.

        Args:
            visits: how often it was.
            mean: of its returns, for who moves here; 0 where it was never followed.
            prior: of it.
            node_visits: of all edges here.
            node_value: mean of all returns here, the evaluator's own value included.
            constants: the rule's.
        """
        raise NotImplementedError

    def check(self, game: Game | None) -> None:
        """Refuses a rule without a score, or whose score is a method of an instance, which no kernel can hold."""
        written = inspect.getattr_static(type(self), "score_edge")
        if written is ScoredRule.__dict__["score_edge"] or not isinstance(written, staticmethod):
            raise TypeError(f"rule must have score_edge as a static method, {type(self).__name__} has not")

    def begin(self, roots: Roots) -> Way:
        """Mixes the noise into the priors."""
        mix_dirichlet(roots, self.dirichlet_alpha, self.dirichlet_fraction)
        if not isinstance(self.constants, (tuple, list)):
            raise TypeError(f"constants must be a tuple of numbers, such as (1.4,), got {self.constants!r}")
        named: dict[str, Any] = {f"constants[{k}]": number for k, number in enumerate(self.constants)}
        check_amount(None, finite=False, **named)
        constants = tuple(float(number) for number in self.constants)
        kernel = None
        if (compiled := fast.kernels("ai.game.search.walk")) is not None:
            key = "kernel", self.score_edge
            if key not in roots.memory:
                roots.memory[key] = fast.bound(compiled.select_scored, score_edge=self.score_edge)
            kernel = roots.memory[key]
        return Way(constants, kernel, lambda tree, rows, node, at_root: self._scores(tree, rows, node, constants))

    def _scores(
        self, tree: Tree, rows: NDArray[np.int64], node: NDArray[np.int64], constants: tuple[float, ...]
    ) -> NDArray[np.float64]:
        visits = tree.visits[rows, node].astype(np.float64)
        total, prior = tree.total[rows, node], tree.prior[rows, node]
        visit_sum, total_sum = (np.zeros(len(rows)) for _ in range(2))
        for a in range(visits.shape[1]):  # in the compiled kernel's order
            visit_sum += visits[:, a]
            total_sum += total[:, a]
        node_value = (tree.value[rows, node] + total_sum) / (1.0 + visit_sum)
        mean = total / np.maximum(visits, 1.0)
        scores = np.empty(visits.shape)
        score: Any = self.score_edge
        with np.errstate(all="ignore"):  # numpy's numbers divide by zero as the compiled ones do
            for r, a in np.ndindex(*visits.shape):
                here = visit_sum[r], node_value[r]
                scores[r, a] = score(visits[r, a], mean[r, a], prior[r, a], *here, constants)
        return scores


def check_noise(alpha: float, fraction: float) -> None:
    """Refuses, by a ValueError, what is no Dirichlet noise."""
    check_amount(0, above=True, dirichlet_alpha=alpha)
    check_amount(0, 1, dirichlet_fraction=fraction)


def mix_dirichlet(roots: Roots, alpha: float, fraction: float) -> None:
    """Mixes Dirichlet noise into the priors of the roots that want it."""
    if not roots.noisy.any():
        return
    tree, drawn = roots.tree, roots.drawn
    legal = tree.legal[:, 0]
    if drawn is None:
        gamma = np.where(legal, draws.gamma(roots.seeds, alpha, legal.shape[1]) + 1e-12, 0.0)
        drawn = gamma / gamma.sum(axis=1, keepdims=True)
    share = fraction * roots.noisy[:, None]
    mixed = np.where(legal, (1 - share) * tree.prior[:, 0] + share * drawn, 0.0)
    tree.prior[:, 0] = mixed / mixed.sum(axis=1, keepdims=True)
