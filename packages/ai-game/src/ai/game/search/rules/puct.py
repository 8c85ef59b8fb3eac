"""PUCT: prior-guided upper confidence bounds, with values brought to [0, 1] by their range at the node.

With `prove`, what the rules make certain counts as such: a move that wins is made, a move that loses is tried no more
unless all do, and a position whose moves all lose is lost.

Source: Silver et al. 2018, "A general reinforcement learning algorithm…" (the score); Schrittwieser et al. 2020,
"Mastering Atari, Go, chess and shogi by planning with a learned model", appendix B (c_base, normalisation). The
range is taken over a node and its children, as in mctx's `qtransform_by_parent_and_siblings`. Proofs: Winands,
Björnsson, Saito 2008, "Monte-Carlo tree search solver".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ai.game import fast
from ai.game.arguments import check_amount, check_flag
from ai.game.protocol import ChanceGame, Game
from ai.game.search.rules.rule import Roots, Rule, Way, check_noise, mix_dirichlet
from ai.game.search.tree import Tree

EPSILON = 1e-8
LOWEST = -1e9
LOSS = -1.0


@dataclass(frozen=True)
class Puct(Rule):
    """Search by PUCT; the move is drawn from, or is the most of, the visit counts.

    Args:
        c_init: weight of exploration.
        c_base: visits at which its logarithmic growth sets in.
        normalize: bring values at a node to [0, 1]. Off for board games with outcomes of -1 and 1 saves visits in
            positions where every reply loses alike.
        first_play: without `normalize`, an unvisited action counts as the node's mean value less this times the root of
            the prior that was visited; but as no less than a loss, -1, or than the worst that was found there. Else a
            lost move with nearly all of the prior would keep all visits.
        dirichlet_alpha: concentration of the root noise; about 10 / legal actions.
        dirichlet_fraction: share of the noise in the root prior, where noise is on.
        prove: carry certain outcomes up the tree; for games of two players that end with a win, a draw or a loss, paid
            as 1, 0 and -1.
    """

    c_init: float = 1.25
    c_base: float = 19652.0
    normalize: bool = True
    first_play: float = 0.25
    dirichlet_alpha: float = 1.0
    dirichlet_fraction: float = 0.25
    prove: bool = False

    def __post_init__(self) -> None:
        check_amount(0, above=True, c_init=self.c_init, c_base=self.c_base)
        check_amount(0, first_play=self.first_play)
        check_flag(normalize=self.normalize, prove=self.prove)
        check_noise(self.dirichlet_alpha, self.dirichlet_fraction)

    def check(self, game: Game | None) -> None:
        """Refuses proofs where outcomes are not certain."""
        if self.prove and (game is None or game.num_players != 2 or game.discount != 1 or isinstance(game, ChanceGame)):
            raise ValueError(
                "rule.prove must be False without the rules of an undiscounted game of two players and no luck, "
                "got True"
            )

    def begin(self, roots: Roots) -> Way:
        """Mixes the noise into the priors, and looks the weights up."""
        mix_dirichlet(roots, self.dirichlet_alpha, self.dirichlet_fraction)
        most = int(roots.tree.visits[:, 0].sum(axis=1).max()) + roots.simulations
        params: PuctParams | None = roots.memory.get("puct")
        if params is None or len(params.weight) <= most:
            params = roots.memory["puct"] = puct_params(self, most)
        return puct_way(params)


class PuctParams(NamedTuple):
    """What the score needs of a `Puct`, as the kernels take it.

    Attributes:
        weight: `[V]` of the prior, by the visits of a node's edges.
        normalize: as of `Puct`.
        first_play: as of `Puct`.
        prove: as of `Puct`.
    """

    weight: NDArray[np.float64]
    normalize: bool
    first_play: float
    prove: bool


def puct_params(rule: Puct, most_visits: int) -> PuctParams:
    """Returns the constants of `rule` for nodes of up to `most_visits` visits."""
    count = 1.0 + np.arange(most_visits + 1)
    weight = np.sqrt(count) * (rule.c_init + np.log((count + rule.c_base + 1.0) / rule.c_base))
    return PuctParams(weight, rule.normalize, rule.first_play, rule.prove)


def puct_way(params: PuctParams) -> Way:
    """Returns how walks go by PUCT."""
    compiled = fast.kernels("ai.game.search.walk")
    return Way(
        tuple(params),
        None if compiled is None else compiled.select_puct,
        lambda tree, rows, node, at_root: puct_scores(tree, rows, node, params),
    )


def puct_scores(
    tree: Tree, rows: NDArray[np.int64], node: NDArray[np.int64], params: PuctParams
) -> NDArray[np.float64]:
    """Returns the score of each action, `[R, A]`; infinite for a proven win, and below all others for a proven loss.

    With `normalize`, scores are the source's times the range that it brings to [0, 1], less the lowest value: the order
    is the same.
    """
    visits, total = tree.visits[rows, node].astype(np.float64), tree.total[rows, node]
    prior = tree.prior[rows, node]
    visited = visits > 0
    mean = np.where(visited, total / np.where(visited, visits, 1.0), 0.0)
    if params.prove:
        proof = tree.proof[rows, node].astype(np.float64)
        mean = np.where(np.isnan(proof), mean, proof)
    visit_sum, total_sum, prior_sum = (np.zeros(len(rows)) for _ in range(3))
    for a in range(visits.shape[1]):  # in the compiled kernel's order
        visit_sum += visits[:, a]
        total_sum += total[:, a]
        prior_sum += np.where(visited[:, a], prior[:, a], 0.0)
    weight = params.weight[visit_sum.astype(np.int64)]
    node_value = (tree.value[rows, node] + total_sum) / (1.0 + visit_sum)
    if params.normalize:
        low = np.minimum(node_value, np.where(visited, mean, np.inf).min(axis=1))
        high = np.maximum(node_value, np.where(visited, mean, -np.inf).max(axis=1))
        value = np.where(visited, mean - low[:, None], 0.0)
        spread = np.maximum(high - low, EPSILON)
    else:
        spread = np.ones(len(rows))
        worst = np.minimum(np.minimum(node_value, LOSS), np.where(visited, mean, np.inf).min(axis=1))
        first = np.maximum(node_value - params.first_play * np.sqrt(prior_sum), worst)
        value = np.where(visited, mean, first[:, None])
    scores: NDArray[np.float64] = value + (weight * spread)[:, None] * prior / (visits + 1.0)
    if params.prove:
        scores = np.where(proof <= -1, LOWEST * spread[:, None] + scores, np.where(proof >= 1, np.inf, scores))
    return scores
