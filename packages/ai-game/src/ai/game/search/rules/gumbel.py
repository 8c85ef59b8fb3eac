"""Gumbel search: the root tries a few actions drawn without replacement and halves them.

Source: Danihelka, Guez, Schrittwieser, Silver 2022, "Policy improvement by planning with Gumbel": section 3 and
algorithm 2 (root), section 5 (interior), appendix D (completed values by the mixed value).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ai.game import draws, fast
from ai.game.arguments import check_amount, check_count
from ai.game.search.rules.puct import EPSILON, LOWEST
from ai.game.search.rules.rule import Roots, Rule, Way
from ai.game.search.tree import Tree

TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True)
class Gumbel(Rule):
    """Search by sequential halving at the root; the move is the last one standing.

    Below the root it follows the policy that the values improve, and trusts the evaluator: where this calls a position
    lost for sure that is not, an action tried once can look better than all untried ones for ever, in mctx as here.
    So more simulations by a `RolloutEvaluator` of few rollouts need not find more; its own `rule` does.

    Args:
        max_considered: how many actions the root tries at most.
        scale: of the Gumbel noise at the root, where noise is on.
        value_scale: how much values weigh against the prior's logits.
        visit_offset: visits at which that weight has doubled.
    """

    max_considered: int = 16
    scale: float = 1.0
    value_scale: float = 0.1
    visit_offset: float = 50.0

    def __post_init__(self) -> None:
        check_count(1, max_considered=self.max_considered)
        check_amount(0, scale=self.scale, visit_offset=self.visit_offset)
        check_amount(0, above=True, value_scale=self.value_scale)

    keeps_trees: ClassVar[bool] = False  # halving starts from a fresh root

    def begin(self, roots: Roots) -> Way:
        """Draws the noise, and looks the tables of halving up."""
        batch, num_actions = roots.tree.root_logit.shape
        drawn, budget = roots.drawn, roots.budget
        if not roots.noisy.any():
            drawn = np.zeros((batch, num_actions))
        elif drawn is None:
            drawn = draws.gumbel(roots.seeds, num_actions) * self.scale * roots.noisy[:, None]
        considered = min(self.max_considered, num_actions)
        if budget.min() == budget.max():
            key, which = (int(budget[0]),), np.zeros(batch, np.int64)
        else:
            budgets, which = np.unique(budget, return_inverse=True)
            key = tuple(budgets.tolist())
        if key not in roots.memory:
            if len(roots.memory) >= 64:  # budgets that are new in every call
                roots.memory.clear()
            roots.memory[key] = halving_tables(considered, key)
        return gumbel_way(
            GumbelParams(self.value_scale, self.visit_offset, drawn, roots.memory[key], which, considered)
        )

    def decide(self, tree: Tree, way: Way) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Returns each root's move `[B]`, the last one standing, and its improved policy `[B, A]`."""
        action, policy = np.zeros(len(tree.size), np.int64), np.zeros(tree.root_logit.shape)
        if (compiled := fast.kernels("ai.game.search.walk")) is not None:
            compiled.decide_gumbel(tuple(tree), way.params, action, policy)
            return action, policy
        params, rows = GumbelParams(*way.params), np.arange(len(action))
        policy = improved_policy(tree, rows, np.zeros(len(rows), np.int64), params)
        return considered_scores(tree, rows, tree.visits[:, 0].max(axis=1), params).argmax(axis=1), policy


class GumbelParams(NamedTuple):
    """What the scores need of a `Gumbel`, as the kernels take it.

    Attributes:
        value_scale: as of `Gumbel`.
        visit_offset: as of `Gumbel`.
        gumbel: `[B, A]` the root's draws.
        sequence: `[K, max_considered + 1, S]` the visit count that simulation s gives a further visit, for each of K
            budgets, by how many actions are considered.
        budget: `[B]` which of the K is the row's.
        max_considered: as of `Gumbel`.
    """

    value_scale: float
    visit_offset: float
    gumbel: NDArray[np.float64]
    sequence: NDArray[np.int64]
    budget: NDArray[np.int64]
    max_considered: int


def gumbel_way(params: GumbelParams) -> Way:
    """Returns how walks go by sequential halving at the root and the improved policy below."""
    compiled = fast.kernels("ai.game.search.walk")

    def scores(tree: Tree, rows: NDArray[np.int64], node: NDArray[np.int64], at_root: bool) -> NDArray[np.float64]:
        if at_root:
            return gumbel_root_scores(tree, rows, params)
        return gumbel_interior_scores(tree, rows, node, params)

    return Way(tuple(params), None if compiled is None else compiled.select_gumbel, scores)


def halving_sequence(num_considered: int, simulations: int) -> NDArray[np.int64]:
    """Returns, for each simulation, how often the action that it tries has been tried before, `[S]`.

    >>> halving_sequence(4, 8).tolist()
    [0, 0, 0, 0, 1, 1, 2, 2]
    """
    if num_considered <= 1:
        return np.arange(simulations)
    rounds = math.ceil(math.log2(num_considered))
    visits = [0] * num_considered
    sequence: list[int] = []
    considered = num_considered
    while len(sequence) < simulations:
        for _ in range(max(1, simulations // (rounds * considered))):
            sequence += visits[:considered]
            visits[:considered] = [count + 1 for count in visits[:considered]]
        considered = max(2, considered // 2)
    return np.array(sequence[:simulations])


def halving_tables(max_considered: int, budgets: Iterable[int]) -> NDArray[np.int64]:
    """Returns `halving_sequence` of each of K budgets, for 0 to `max_considered` actions, `[K, max_considered + 1, S]`.

    S is the largest budget; what lies beyond a smaller one is never reached, and 0.
    """
    chosen = list(budgets)
    tables = np.zeros((len(chosen), max_considered + 1, max(chosen)), np.int64)
    for table, budget in zip(tables, chosen, strict=True):
        for considered, sequence in enumerate(table):
            sequence[:budget] = halving_sequence(considered, budget)
    return tables


class Completed(NamedTuple):
    """The values of `R` nodes' actions, as `completed_values` makes them.

    Attributes:
        values: `[R, A]` mean returns, the mixed value where untried.
        low: `[R, 1]` the lowest of them.
        top: `[R, 1]` the highest that has a prior.
        factor: `[R, 1]` what brings them to units of logits.
        visit_sum: `[R]` visits of all actions.
    """

    values: NDArray[np.float64]
    low: NDArray[np.float64]
    top: NDArray[np.float64]
    factor: NDArray[np.float64]
    visit_sum: NDArray[np.float64]


def completed_values(tree: Tree, rows: NDArray[np.int64], node: NDArray[np.int64], params: GumbelParams) -> Completed:
    """Returns each action's mean value, the mixed value where untried, and what brings them to units of logits."""
    visits, total = tree.visits[rows, node].astype(np.float64), tree.total[rows, node]
    visited = visits > 0
    share = np.where(visited, np.maximum(tree.prior[rows, node], TINY), 0.0)
    mean = total / np.maximum(visits, 1.0)
    visit_sum, prior_sum, weighted = (np.zeros(len(rows)) for _ in range(3))
    for a in range(visits.shape[1]):  # in the compiled kernel's order
        visit_sum += visits[:, a]
        prior_sum += share[:, a]
        weighted += share[:, a] * mean[:, a]
    mixed = (tree.value[rows, node] + visit_sum * (weighted / np.maximum(prior_sum, TINY))) / (visit_sum + 1.0)
    values = np.where(visited, mean, mixed[:, None])
    low, high = values.min(axis=1, keepdims=True), values.max(axis=1, keepdims=True)
    weight = (params.visit_offset + visits.max(axis=1, keepdims=True)) * params.value_scale
    top = np.where(tree.prior[rows, node] > 0, values, -np.inf).max(axis=1, keepdims=True)
    return Completed(values, low, top, weight / np.maximum(high - low, EPSILON), visit_sum)


def gumbel_interior_scores(
    tree: Tree, rows: NDArray[np.int64], node: NDArray[np.int64], params: GumbelParams
) -> NDArray[np.float64]:
    """Returns scores whose greedy choice makes the visits follow the improved policy, `[R, A]`.

    They are the paper's times (visits of the node + 1).
    """
    completed = completed_values(tree, rows, node, params)
    weights, weight_sum = _improved(tree, rows, node, completed)
    share = (1.0 + completed.visit_sum) / weight_sum
    scores: NDArray[np.float64] = weights * share[:, None] - tree.visits[rows, node]
    return scores


def gumbel_root_scores(tree: Tree, rows: NDArray[np.int64], params: GumbelParams) -> NDArray[np.float64]:
    """Returns the scores of sequential halving: -inf for actions whose turn it is not, `[R, A]`."""
    root = np.zeros(len(rows), np.int64)
    visits = tree.visits[rows, root]
    considered = np.minimum(params.max_considered, tree.legal[rows, root].sum(axis=1))
    simulation = np.minimum(visits.sum(axis=1).astype(np.int64), params.sequence.shape[2] - 1)
    turn = params.sequence[params.budget[rows], considered, simulation]
    return considered_scores(tree, rows, turn.astype(np.float64), params)


def considered_scores(
    tree: Tree, rows: NDArray[np.int64], turn: NDArray[np.floating], params: GumbelParams
) -> NDArray[np.float64]:
    """Returns Gumbel + logit + value of the root actions visited `turn[R]` times, -inf of all others, `[R, A]`."""
    root = np.zeros(len(rows), np.int64)
    logit = tree.root_logit[rows]
    logit = logit - logit.max(axis=1, keepdims=True)
    completed = completed_values(tree, rows, root, params)
    value = completed.factor * (completed.values - completed.low)
    score = np.maximum(LOWEST, params.gumbel[rows] + logit + value)
    its_turn = (tree.visits[rows, root] == turn[:, None]) & tree.legal[rows, root]
    return np.where(its_turn, score, -np.inf)


def improved_policy(
    tree: Tree, rows: NDArray[np.int64], node: NDArray[np.int64], params: GumbelParams
) -> NDArray[np.float64]:
    """Returns the softmax of logits + completed values, `[R, A]`, 0 where illegal."""
    weights, weight_sum = _improved(tree, rows, node, completed_values(tree, rows, node, params))
    policy: NDArray[np.float64] = weights / weight_sum[:, None]
    return policy


def _improved(
    tree: Tree, rows: NDArray[np.int64], node: NDArray[np.int64], completed: Completed
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns the improved policy before it is divided by its sum, `[R, A]`, and that sum, `[R]`."""
    weights = tree.prior[rows, node] * np.exp(completed.factor * np.minimum(completed.values - completed.top, 0.0))
    weight_sum = np.zeros(len(rows))
    for a in range(weights.shape[1]):
        weight_sum += weights[:, a]
    return weights, weight_sum
