"""The search tree: arrays over `[game, node, action]`.

Every rule of search here reads the same statistics of an edge: how often it was taken, the sum of the returns seen
through it (from the view of the player who takes it), and the prior.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

UNVISITED = -1
GOLDEN = 0.6180339887498949  # (√5 - 1) / 2, by which outcomes of luck take turns
TURNS = 1e-9  # what a turn counts beside a share of the visits


class Tree(NamedTuple):
    """`B` trees of up to `N` nodes with `A` actions each; node 0 is the root.

    Attributes:
        child: `[B, N, A]` the node that an edge leads to, or -1; in 16 bits where they hold every number.
        visits: `[B, N, A]` how often the edge was taken.
        total: `[B, N, A]` the sum of its returns, from the view of the node's player.
        prior: `[B, N, A]` 0 where illegal.
        root_logit: `[B, A]` log prior at the root, -inf where illegal.
        legal: `[B, N, A]`
        reward: `[B, N]` what the edge that leads here paid the player who took it.
        discount: `[B, N]` what this node's value is worth to that player: negative if the other one moves here, 0 at an
            end.
        value: `[B, N]` the evaluator's value; 0 at an end.
        proof: `[B, N, A]` what the edge is worth for certain, to the node's player; NaN while that is open. Without
            actions, `[B, N, 0]`, where the search proves nothing.
        terminal: `[B, N]` whether nothing is played from here: at an end, and where a limit of moves cut a game off.
        chance: `[B, N]` whether luck moves here, by the probabilities in `prior`.
        parent: `[B, N]` and `parent_action`: the edge that leads here; -1 at the root.
        size: `[B]` nodes in use.
    """

    child: NDArray[np.signedinteger]
    visits: NDArray[np.float32]
    total: NDArray[np.float64]
    prior: NDArray[np.float64]
    root_logit: NDArray[np.float64]
    legal: NDArray[np.bool_]
    reward: NDArray[np.float64]
    discount: NDArray[np.float64]
    value: NDArray[np.float64]
    proof: NDArray[np.float32]
    terminal: NDArray[np.bool_]
    chance: NDArray[np.bool_]
    parent: NDArray[np.signedinteger]
    parent_action: NDArray[np.signedinteger]
    size: NDArray[np.int64]


class Shares(NamedTuple):
    """What trees of a game for `P` players, more than two, hold besides: each expects and earns for itself.

    Attributes:
        value: `[B, N, P]` what the evaluator gives each player; 0 at an end.
        reward: `[B, N, P]` what the edge that leads here paid each.
        mover: `[B, N]` who moves here, whose share the edges count.
    """

    value: NDArray[np.float64]
    reward: NDArray[np.float64]
    mover: NDArray[np.int64]


class Leaf(NamedTuple):
    """Where each walk ended, `[R]` for the rows walked: an edge, the node it leads to, and whether that node is new."""

    parent: NDArray[np.int64]
    action: NDArray[np.int64]
    node: NDArray[np.int64]
    fresh: NDArray[np.bool_]


def new_leaf(rows: int) -> Leaf:
    """Returns room for the ends of `rows` walks."""
    return Leaf(np.zeros(rows, np.int64), np.zeros(rows, np.int64), np.zeros(rows, np.int64), np.zeros(rows, bool))


def new_shares(batch: int, num_nodes: int, players: int) -> Shares:
    """Returns the shares of empty trees."""
    each = (batch, num_nodes, players)
    return Shares(np.zeros(each), np.zeros(each), np.zeros(each[:2], np.int64))


def new_tree(batch: int, num_nodes: int, num_actions: int, *, proves: bool = True) -> Tree:
    """Returns empty trees, whose `proof` has no room where nothing is proven."""
    edge, node = (batch, num_nodes, num_actions), (batch, num_nodes)
    number = np.int16 if max(num_nodes, num_actions) <= np.iinfo(np.int16).max else np.int32
    return Tree(
        child=np.full(edge, UNVISITED, number),
        visits=np.zeros(edge, np.float32),
        total=np.zeros(edge),
        prior=np.zeros(edge),
        root_logit=np.zeros((batch, num_actions)),
        legal=np.zeros(edge, bool),
        reward=np.zeros(node),
        discount=np.zeros(node),
        value=np.zeros(node),
        proof=np.full((batch, num_nodes, num_actions if proves else 0), np.nan, np.float32),
        terminal=np.zeros(node, bool),
        chance=np.zeros(node, bool),
        parent=np.full(node, -1, number),
        parent_action=np.full(node, -1, number),
        size=np.zeros(batch, np.int64),
    )


def move_subtrees(tree: Tree, kept: NDArray[np.bool_], to: Tree) -> Tree:
    """Writes the nodes of `tree` that are `kept [B, N]` to the first places of `to`, in their order; returns `to`.

    The first of each row becomes its root. `to` may be `tree` itself. Edges that lead to nodes left out are as new.
    """
    row, old = np.nonzero(kept)
    new = (kept.cumsum(axis=1) - 1)[row, old]
    number = np.full(kept.shape, UNVISITED, np.int64)
    number[row, old] = new
    child, parent = tree.child[row, old].astype(np.int64), tree.parent[row, old].astype(np.int64)
    child = np.where(child >= 0, number[row[:, None], child], UNVISITED)
    fields = {name: getattr(tree, name)[row, old] for name in Tree._fields if name not in ("size", "root_logit")}
    lost = child < 0
    for name, nothing in (("visits", 0), ("total", 0), *([("proof", np.nan)] if tree.proof.shape[2] else [])):
        fields[name][lost] = nothing
    fields |= {"child": child, "parent": np.where(new > 0, number[row, parent], UNVISITED)}
    for name, values in fields.items():
        getattr(to, name)[row, new] = values
    to.size[:] = kept.sum(axis=1)
    return to
