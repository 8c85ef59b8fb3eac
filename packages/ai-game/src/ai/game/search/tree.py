"""The search tree: arrays over `[game, node, action]`.

Every rule of search here reads the same statistics of an edge: how often it was taken, the sum of the returns seen
through it (from the view of the player who takes it), and the prior.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

UNVISITED = -1


class Tree(NamedTuple):
    """`B` trees of up to `N` nodes with `A` actions each; node 0 is the root.

    Attributes:
        child: `[B, N, A]` the node that an edge leads to, or -1.
        visits: `[B, N, A]` how often the edge was taken.
        total: `[B, N, A]` the sum of its returns, from the view of the node's player.
        prior: `[B, N, A]` 0 where illegal.
        root_logit: `[B, A]` log prior at the root, -inf where illegal.
        legal: `[B, N, A]`
        reward: `[B, N, A]` what the edge pays the node's player.
        discount: `[B, N, A]` what the child's value is worth here: negative if the other player moves there, 0 at
            an end.
        value: `[B, N]` the evaluator's value; 0 at an end.
        proof: `[B, N, A]` what the edge is worth for certain, to the node's player; NaN while that is open.
        terminal: `[B, N]` whether nothing is played from here: at an end, and where a limit of moves cut a game off.
        chance: `[B, N]` whether luck moves here, by the probabilities in `prior`.
        parent: `[B, N]` and `parent_action`: the edge that leads here; -1 at the root.
        size: `[B]` nodes in use.
    """

    child: NDArray[np.int32]
    visits: NDArray[np.float64]
    total: NDArray[np.float64]
    prior: NDArray[np.float64]
    root_logit: NDArray[np.float64]
    legal: NDArray[np.bool_]
    reward: NDArray[np.float64]
    discount: NDArray[np.float64]
    value: NDArray[np.float64]
    proof: NDArray[np.float64]
    terminal: NDArray[np.bool_]
    chance: NDArray[np.bool_]
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
        prior=np.zeros(edge),
        root_logit=np.zeros((batch, num_actions)),
        legal=np.zeros(edge, bool),
        reward=np.zeros(edge),
        discount=np.zeros(edge),
        value=np.zeros(node),
        proof=np.full(edge, np.nan),
        terminal=np.zeros(node, bool),
        chance=np.zeros(node, bool),
        parent=np.full(node, -1, np.int32),
        parent_action=np.full(node, -1, np.int32),
        size=np.zeros(batch, np.int64),
    )
