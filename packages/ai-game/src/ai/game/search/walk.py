"""The steps of a search that walk the tree, in numpy; `walk_numba` is the same, compiled, and runs where numba is.

`select` descends from each root to the edge where the tree ends; once that edge was followed and the new node
evaluated, `settle` writes the evaluation down and carries the value there to the root.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ai.game import fast
from ai.game.search.rules.rule import Way
from ai.game.search.tree import GOLDEN, TURNS, UNVISITED, Leaf, Shares, Tree

UNLIMITED = 1 << 40  # deeper than any tree
NO_SCORE = "a rule must score legal moves by numbers, got NaN"
LOWEST_SCORE = float(np.finfo(np.float64).min)  # still above what is illegal


def select(
    tree: Tree, rows: NDArray[np.int64], way: Way, leaf: Leaf, *, luck: bool = True, max_depth: int = UNLIMITED
) -> None:
    """Walks each of `rows` from its root along the highest scores to an edge without a node, or where play ends.

    A walk also ends at an edge whose worth is proven, and at a node `max_depth` moves away. A new node is claimed for
    the edge; what lies there is for others to write. The ends are written to `leaf`. Without `luck` no node is
    chance's, and none is asked.

    Raises:
        ValueError: a legal move's score is NaN.
    """
    if fast.available() and way.kernel is not None:
        way.kernel(tuple(tree), rows, way.params, tuple(leaf), luck, max_depth)
        return
    node = np.zeros(len(rows), np.int64)
    walking = np.arange(len(rows))
    depth, proves = 0, tree.proof.shape[2] > 0
    while len(walking):
        games, here = rows[walking], node[walking]
        scores = way.scores(tree, games, here, depth == 0)
        if luck and (lucky := tree.chance[games, here]).any():
            scores = np.where(lucky[:, None], chance_scores(tree, games, here), scores)
        if np.isnan(scores[tree.legal[games, here]]).any():
            raise ValueError(NO_SCORE)
        action = np.where(tree.legal[games, here], np.maximum(scores, LOWEST_SCORE), -np.inf).argmax(axis=1)
        child = tree.child[games, here, action].astype(np.int64)
        depth += 1
        settled = np.full(len(child), depth >= max_depth)
        if proves:
            settled |= ~np.isnan(tree.proof[games, here, action])
        fresh = child == UNVISITED
        if fresh.any():
            new = games[fresh]
            child[fresh] = tree.size[new]
            tree.child[new, here[fresh], action[fresh]] = child[fresh]
            tree.parent[new, child[fresh]] = here[fresh]
            tree.parent_action[new, child[fresh]] = action[fresh]
            tree.terminal[new, child[fresh]] = tree.chance[new, child[fresh]] = False
            tree.value[new, child[fresh]] = 0.0
            tree.child[new, child[fresh]] = UNVISITED
            tree.visits[new, child[fresh]] = 0
            tree.total[new, child[fresh]] = 0
            tree.proof[new, child[fresh]] = np.nan
            tree.size[new] += 1
        ended = fresh | settled | tree.terminal[games, child]
        stop = walking[ended]
        leaf.parent[stop], leaf.action[stop], leaf.node[stop] = here[ended], action[ended], child[ended]
        leaf.fresh[stop] = fresh[ended]
        node[walking] = child
        walking = walking[~ended]


def chance_scores(tree: Tree, rows: NDArray[np.int64], node: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns how far each outcome of luck is behind its share of the visits, `[R, A]`.

    Whoever takes the furthest keeps every outcome within one of its share, where draws would stray by the root of the
    visits; and a search stays a function of its position. Outcomes that are behind alike, such as the faces of a die,
    take turns by the golden ratio, from the middle one on, which spreads any number of them over all: from the lowest
    up, few visits would see low ones alone.
    """
    visits, legal = tree.visits[rows, node], tree.legal[rows, node]
    from_the_middle = legal.cumsum(axis=1) - (legal.sum(axis=1, keepdims=True) + 1) // 2
    turn = from_the_middle * GOLDEN - np.floor(from_the_middle * GOLDEN)
    behind = tree.prior[rows, node] * (visits.sum(axis=1, keepdims=True) + 1.0) - visits
    scores: NDArray[np.float64] = behind - TURNS * turn
    return scores


def evaluate(
    tree: Tree,
    rows: NDArray[np.int64],
    node: NDArray[np.int64],
    logits: NDArray[np.floating],
    value: NDArray[np.floating],
) -> bool:
    """Writes the evaluation of one node a row; the prior is the softmax of `logits[R, A]` over the legal actions.

    Returns:
        Whether every number is finite, logits of illegal actions apart; if not, nothing is written.
    """
    if (compiled := fast.kernels(__name__)) is not None:
        return bool(compiled.evaluate(tuple(tree), rows, node, logits, value))
    legal = tree.legal[rows, node]
    if not (np.isfinite(logits[legal]).all() and np.isfinite(value).all()):
        return False
    masked = np.where(legal, logits.astype(np.float64), -np.inf)
    highest = np.where(legal.any(axis=1), masked.max(axis=1), 0.0)[:, None]
    weights = np.exp(masked - highest)
    weight_sum = np.zeros(len(rows))
    for a in range(legal.shape[1]):  # in the compiled kernel's order, so that the two agree to the last bit
        weight_sum += weights[:, a]
    weight_sum = np.where(weight_sum > 0, weight_sum, 1.0)[:, None]
    at_root = node == 0
    tree.root_logit[rows[at_root]] = (masked - highest - np.log(weight_sum))[at_root]
    tree.prior[rows, node] = weights / weight_sum
    tree.value[rows, node] = value
    return True


def certain_value(tree: Tree, rows: NDArray[np.int64], node: NDArray[np.int64]) -> NDArray[np.float64]:
    """Returns what nodes are worth for certain, `[R]`: a proven win, or the best of moves all proven; or NaN."""
    proof = tree.proof[rows, node]
    best = np.where(tree.legal[rows, node] & ~np.isnan(proof), proof, -np.inf).max(axis=1)
    all_proven = (~tree.legal[rows, node] | ~np.isnan(proof)).all(axis=1)
    return np.where((best >= 1) | all_proven, best, np.nan)


def settle(
    tree: Tree,
    rows: NDArray[np.int64],
    leaf: Leaf,
    live: NDArray[np.int64],
    logits: NDArray[np.floating],
    value: NDArray[np.floating],
    prove: bool = False,
) -> bool:
    """Evaluates the new nodes of `rows[live]` and adds one visit and one return to every edge above each row's leaf.

    With `prove`, ends of the game are certain, and so is what follows from them.

    Returns:
        Whether every number is finite; if not, nothing is written.
    """
    if (compiled := fast.kernels(__name__)) is not None:
        return bool(compiled.settle(tuple(tree), rows, tuple(leaf), live, logits, value, prove))
    if not evaluate(tree, rows[live], leaf.node[live], logits, value):
        return False
    node = leaf.node.copy()
    returned = tree.value[rows, node]
    certain = np.where(tree.terminal[rows, node] & (tree.discount[rows, node] == 0), 0.0, np.nan)
    climbing = np.arange(len(rows))
    while len(climbing):
        games, here = rows[climbing], node[climbing]
        above, action = tree.parent[games, here].astype(np.int64), tree.parent_action[games, here].astype(np.int64)
        edge = (games, above, action)
        reward, discount = tree.reward[games, here], tree.discount[games, here]
        returned[climbing] = reward + discount * returned[climbing]
        if prove:
            proof = tree.proof[edge]
            followed = (reward + discount * certain[climbing]).astype(np.float32)
            proof = tree.proof[edge] = np.where(np.isnan(proof), followed, proof)
            returned[climbing] = np.where(np.isnan(proof), returned[climbing], proof)
            certain[climbing] = np.where(np.isnan(proof), np.nan, certain_value(tree, games, above))
        tree.visits[edge] += 1
        tree.total[edge] += returned[climbing]
        node[climbing] = above
        climbing = climbing[above != 0]
    return True


def settle_shares(
    tree: Tree,
    rows: NDArray[np.int64],
    leaf: Leaf,
    live: NDArray[np.int64],
    logits: NDArray[np.floating],
    value: NDArray[np.floating],
    shares: Shares,
) -> bool:
    """Does what `settle` does for more than two players: each edge counts the return of who moves above it (max^n).

    Source: Luckhardt, Irani 1986, "An algorithmic solution of N-person games".
    """
    if (compiled := fast.kernels(__name__)) is not None:
        return bool(compiled.settle_shares(tuple(tree), rows, tuple(leaf), live, logits, value, tuple(shares)))
    if not evaluate(tree, rows[live], leaf.node[live], logits, value):
        return False
    node = leaf.node.copy()
    returned = shares.value[rows, node]
    climbing = np.arange(len(rows))
    while len(climbing):
        games, here = rows[climbing], node[climbing]
        above, action = tree.parent[games, here].astype(np.int64), tree.parent_action[games, here].astype(np.int64)
        returned[climbing] = shares.reward[games, here] + tree.discount[games, here][:, None] * returned[climbing]
        tree.visits[games, above, action] += 1
        tree.total[games, above, action] += returned[climbing, shares.mover[games, above]]
        node[climbing] = above
        climbing = climbing[above != 0]
    return True


def subtree(tree: Tree, root: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Returns which nodes are `root[B]` or below it, `[B, N]`; none where it is -1."""
    batch, num_nodes = tree.value.shape
    below = np.zeros((batch, num_nodes), bool)
    if (compiled := fast.kernels(__name__)) is not None:
        compiled.subtree(tree.parent, tree.size, root, below)
        return below
    rows = np.arange(batch)
    below[rows[root >= 0], root[root >= 0]] = True
    for n in range(1, int(tree.size.max())):  # a parent comes before its children
        below[:, n] |= below[rows, np.maximum(tree.parent[:, n], 0)] & (n < tree.size)
    return below
