"""What a search found, as its trees tell at their roots."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ai.game.search import walk
from ai.game.search.rules.rule import Rule, Way
from ai.game.search.tree import Tree


@dataclass(frozen=True)
class Found:
    """What a search of `B` positions found.

    Args:
        action: `[B]` the move to make: PUCT's most visited, or a proven win; Gumbel's last one standing.
        policy: `[B, A]` the improved policy to learn from: visit shares for PUCT, where proven losses have none and
            proven wins all; Gumbel's softmax.
        visits: `[B, A]` how often each move was tried.
        values: `[B, A]` mean return of each move for the mover, or what is proven; 0 where untried.
        value: `[B]` mean return at the root, the evaluator's own value included; what is proven where it is. Each
            simulation counts alike, as in mctx's `summary().value`: where Gumbel's halving tries poor moves too, it
            lies below what its `policy` earns.
        prior: `[B, A]` the evaluator's policy over legal moves, without noise.
        raw_value: `[B]` the evaluator's value.
        actions: `[B, A, …]` the actions that were sampled, `A` of them, which the others number; None where actions
            are numbers themselves.
    """

    action: NDArray[np.int64]
    policy: NDArray[np.float64]
    visits: NDArray[np.float64]
    values: NDArray[np.float64]
    value: NDArray[np.float64]
    prior: NDArray[np.float64]
    raw_value: NDArray[np.float64]
    actions: NDArray[Any] | None = None

    def chosen(self, action: NDArray[np.int64] | None = None) -> NDArray[Any]:
        """Returns the moves that `action[B]` numbers, `[B, …]`; None for the moves to make."""
        numbers = self.action if action is None else action
        return numbers if self.actions is None else self.actions[np.arange(len(numbers)), numbers]


def found(
    tree: Tree, rule: Rule, way: Way, prior: NDArray[np.float64], num_actions: int, offered: NDArray[Any] | None
) -> Found:
    """Returns what searched trees tell.

    Args:
        tree: of `B` games.
        rule: by which they were searched.
        way: how their walks went.
        prior: `[B, width]` at the roots, without noise.
        num_actions: A, at most the width of the trees.
        offered: as `Found.actions`.
    """
    visits, total = tree.visits[:, 0].astype(np.float64), tree.total[:, 0]
    raw = tree.value[:, 0].copy()
    if rule.prove:
        return _found_proven(tree, visits, prior, raw)
    value = (raw + total.sum(axis=1)) / (1.0 + visits.sum(axis=1))
    action, policy = rule.decide(tree, way)
    mean = total / np.maximum(visits, 1.0)
    # at a root a player moves: the places that codes of luck need besides are closed there
    policy, visits, mean, prior = (of[:, :num_actions] for of in (policy, visits, mean, prior))
    return Found(action, policy, visits, mean, value, prior, raw, offered)


def _found_proven(
    tree: Tree, visits: NDArray[np.float64], prior: NDArray[np.float64], raw: NDArray[np.float64]
) -> Found:
    """Returns what was found where some of it is certain."""
    rows = np.arange(len(raw))
    proof, legal, total = tree.proof[:, 0].astype(np.float64), tree.legal[:, 0], tree.total[:, 0]
    mean = np.where(np.isnan(proof), total / np.maximum(visits, 1.0), proof)
    # a sure win, else what is not lost for sure, else anything
    wins: NDArray[np.bool_] = np.greater_equal(proof, 1)
    hopeful = legal & ~np.less_equal(proof, -1)
    sensible = np.where(
        wins.any(axis=1, keepdims=True), wins, np.where(hopeful.any(axis=1, keepdims=True), hopeful, legal)
    )
    counted = np.where(wins, 1.0, np.where(sensible, visits, 0.0))
    # where every simulation went into moves that lose, those that are left are as good as the prior says
    counted = np.where(counted.any(axis=1, keepdims=True), counted, np.where(sensible, prior + 1e-12, 0.0))
    policy = counted / counted.sum(axis=1, keepdims=True)
    action = np.where(counted == counted.max(axis=1, keepdims=True), mean, -np.inf).argmax(axis=1)
    known = walk.certain_value(tree, rows, np.zeros(len(raw), np.int64))
    tried = np.where(sensible, visits, 0.0)
    value = (raw + (tried * mean).sum(axis=1)) / (1.0 + tried.sum(axis=1))
    return Found(action, policy, visits, mean, np.where(np.isnan(known), value, known), prior, raw)
