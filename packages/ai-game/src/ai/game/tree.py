"""The search tree: arrays over `[game, node, action]`, and the two steps that walk them.

Every rule of search here reads the same statistics of an edge: how often it was taken, the sum of the returns seen
through it (from the view of the player who takes it), and the prior. `select` descends from each root to the edge
where the tree ends; `backup` carries the value of the node there to the root. This module is the numpy form, which is
also the reference; `tree_numba` is the same, compiled.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ai.game.gumbel import GumbelParams, gumbel_interior_scores, gumbel_root_scores
from ai.game.puct import PuctParams, puct_scores

UNVISITED = -1


class Tree(NamedTuple):
    """`B` trees of up to `N` nodes with `A` actions each; node 0 is the root.

    Attributes:
        child: `[B, N, A]` the node that an edge leads to, or -1.
        visits: `[B, N, A]` how often the edge was taken.
        total: `[B, N, A]` the sum of its returns, from the view of the node's player.
        logit: `[B, N, A]` log prior, -inf where illegal.
        prior: `[B, N, A]` 0 where illegal.
        legal: `[B, N, A]`
        reward: `[B, N, A]` what the edge pays the node's player.
        discount: `[B, N, A]` what the child's value is worth here: negative if the other player moves there, 0 at
            an end.
        value: `[B, N]` the evaluator's value.
        terminal: `[B, N]`
        parent: `[B, N]` and `parent_action`: the edge that leads here; -1 at the root.
        size: `[B]` nodes in use.
    """

    child: NDArray[np.int32]
    visits: NDArray[np.float64]
    total: NDArray[np.float64]
    logit: NDArray[np.float64]
    prior: NDArray[np.float64]
    legal: NDArray[np.bool_]
    reward: NDArray[np.float64]
    discount: NDArray[np.float64]
    value: NDArray[np.float64]
    terminal: NDArray[np.bool_]
    parent: NDArray[np.int32]
    parent_action: NDArray[np.int32]
    size: NDArray[np.int64]


class Leaf(NamedTuple):
    """Where each walk ended, `[R]` for the rows walked: an edge, the node it leads to, and whether that node is new."""

    parent: NDArray[np.int64]
    action: NDArray[np.int64]
    node: NDArray[np.int64]
    fresh: NDArray[np.bool_]


def new_leaf(rows: int) -> Leaf:
    """Returns room for the ends of `rows` walks."""
    return Leaf(np.zeros(rows, np.int64), np.zeros(rows, np.int64), np.zeros(rows, np.int64), np.zeros(rows, bool))


def new_tree(batch: int, num_nodes: int, num_actions: int) -> Tree:
    """Returns empty trees."""
    edge, node = (batch, num_nodes, num_actions), (batch, num_nodes)
    return Tree(
        child=np.full(edge, UNVISITED, np.int32),
        visits=np.zeros(edge),
        total=np.zeros(edge),
        logit=np.zeros(edge),
        prior=np.zeros(edge),
        legal=np.zeros(edge, bool),
        reward=np.zeros(edge),
        discount=np.zeros(edge),
        value=np.zeros(node),
        terminal=np.zeros(node, bool),
        parent=np.full(node, -1, np.int32),
        parent_action=np.full(node, -1, np.int32),
        size=np.zeros(batch, np.int64),
    )


def fill_node(
    tree: Tree,
    rows: NDArray[np.int64],
    node: NDArray[np.int64],
    logits: NDArray[np.float64],
    legal: NDArray[np.bool_],
    value: NDArray[np.float64],
    terminal: NDArray[np.bool_],
) -> None:
    """Writes the evaluation of one node a row; the prior is the softmax of `logits[R, A]` over the legal actions."""
    masked = np.where(legal, logits, -np.inf)
    highest = np.where(legal.any(axis=1), masked.max(axis=1), 0.0)[:, None]
    weights = np.exp(masked - highest)
    weight_sum = np.zeros(len(rows))
    for a in range(legal.shape[1]):  # in the compiled kernel's order, so that the two agree to the last bit
        weight_sum += weights[:, a]
    weight_sum = np.where(weight_sum > 0, weight_sum, 1.0)[:, None]
    tree.logit[rows, node] = masked - highest - np.log(weight_sum)
    tree.prior[rows, node] = weights / weight_sum
    tree.legal[rows, node] = legal
    tree.value[rows, node] = value
    tree.terminal[rows, node] = terminal
    tree.child[rows, node] = UNVISITED
    tree.visits[rows, node] = 0
    tree.total[rows, node] = 0


def select(tree: Tree, rows: NDArray[np.int64], rule: PuctParams | GumbelParams) -> Leaf:
    """Walks each of `rows` from its root along the highest scores to an edge without a node, or to an end of the game.

    A new node is claimed for the edge; `backup` fills it.
    """
    node = np.zeros(len(rows), np.int64)
    leaf = new_leaf(len(rows))
    walking = np.arange(len(rows))
    at_root = True
    while len(walking):
        games, here = rows[walking], node[walking]
        if isinstance(rule, PuctParams):
            scores = puct_scores(tree, games, here, rule)
        elif at_root:
            scores = gumbel_root_scores(tree, games, rule)
        else:
            scores = gumbel_interior_scores(tree, games, here, rule)
        action = np.where(tree.legal[games, here], scores, -np.inf).argmax(axis=1)
        child = tree.child[games, here, action].astype(np.int64)
        fresh = child == UNVISITED
        if fresh.any():
            new = games[fresh]
            child[fresh] = tree.size[new]
            tree.child[new, here[fresh], action[fresh]] = child[fresh]
            tree.parent[new, child[fresh]] = here[fresh]
            tree.parent_action[new, child[fresh]] = action[fresh]
            tree.size[new] += 1
        ended = fresh | tree.terminal[games, child]
        stop = walking[ended]
        leaf.parent[stop], leaf.action[stop], leaf.node[stop] = here[ended], action[ended], child[ended]
        leaf.fresh[stop] = fresh[ended]
        node[walking] = child
        walking = walking[~ended]
        at_root = False
    return leaf


def backup(tree: Tree, rows: NDArray[np.int64], leaf: Leaf) -> None:
    """Adds one visit and one return to every edge between the root and the leaf of each of `rows`."""
    node = leaf.node.copy()
    value = np.where(tree.terminal[rows, node], 0.0, tree.value[rows, node])
    climbing = np.arange(len(rows))
    while len(climbing):
        games, here = rows[climbing], node[climbing]
        above, action = tree.parent[games, here].astype(np.int64), tree.parent_action[games, here].astype(np.int64)
        returned = tree.reward[games, above, action] + tree.discount[games, above, action] * value[climbing]
        tree.visits[games, above, action] += 1
        tree.total[games, above, action] += returned
        value[climbing] = returned
        node[climbing] = above
        climbing = climbing[above != 0]
