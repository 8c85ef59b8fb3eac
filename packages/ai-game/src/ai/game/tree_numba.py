"""Compiled twin of `ai.game.tree`: the same statistics and scores, one game after the other, sums in the same order."""

import numpy as np
from numba import njit

EPSILON = 1e-8
TINY = float(np.finfo(np.float64).tiny)
LOWEST = -1e9


@njit(cache=True)
def fill_node(tree, rows, node, logits, legal, value, terminal):  # type: ignore[no-untyped-def]
    """Writes the evaluation of one node a row."""
    num_actions = legal.shape[1]
    for r in range(rows.shape[0]):
        b, n = rows[r], node[r]
        highest = -np.inf
        for a in range(num_actions):
            if legal[r, a] and logits[r, a] > highest:
                highest = np.float64(logits[r, a])
        weight_sum = 0.0
        for a in range(num_actions):
            weight = np.exp(np.float64(logits[r, a]) - highest) if legal[r, a] else 0.0
            tree.prior[b, n, a] = weight
            weight_sum += weight
        log_sum = np.log(weight_sum) if weight_sum > 0 else 0.0
        for a in range(num_actions):
            if weight_sum > 0:
                tree.prior[b, n, a] /= weight_sum
            tree.logit[b, n, a] = np.float64(logits[r, a]) - highest - log_sum if legal[r, a] else -np.inf
            tree.legal[b, n, a] = legal[r, a]
            tree.child[b, n, a] = -1
            tree.visits[b, n, a] = 0
            tree.total[b, n, a] = 0
        tree.value[b, n] = value[r]
        tree.terminal[b, n] = terminal[r]


@njit(cache=True)
def _puct_action(tree, b, n, params):  # type: ignore[no-untyped-def]
    num_actions = tree.child.shape[2]
    visit_sum, total_sum, prior_sum = 0.0, 0.0, 0.0
    lowest, highest = np.inf, -np.inf
    for a in range(num_actions):
        visits = tree.visits[b, n, a]
        visit_sum += visits
        total_sum += tree.total[b, n, a]
        if visits > 0:
            prior_sum += tree.prior[b, n, a]
            mean = tree.total[b, n, a] / visits
            lowest, highest = min(lowest, mean), max(highest, mean)
    count = 1.0 + visit_sum
    node_value = (tree.value[b, n] + total_sum) / count
    low, spread = 0.0, 1.0
    if params.normalize:
        low = min(node_value, lowest)
        spread = max(max(node_value, highest) - low, EPSILON)
        first = low
    else:
        first = node_value - params.first_play * np.sqrt(prior_sum)
    weight = np.sqrt(count) * (params.c_init + np.log((count + params.c_base + 1.0) / params.c_base))
    best, best_score = -1, -np.inf
    for a in range(num_actions):
        if tree.legal[b, n, a]:
            visits = tree.visits[b, n, a]
            mean = tree.total[b, n, a] / visits if visits > 0 else first
            score = (mean - low) / spread + weight * tree.prior[b, n, a] / (visits + 1.0)
            if best < 0 or score > best_score:
                best, best_score = a, score
    return best


@njit(cache=True)
def _completed(tree, b, n, params, out):  # type: ignore[no-untyped-def]
    num_actions = tree.child.shape[2]
    visit_sum, prior_sum, weighted, most = 0.0, 0.0, 0.0, 0.0
    for a in range(num_actions):
        visits = tree.visits[b, n, a]
        visit_sum += visits
        most = max(most, visits)
        if visits > 0:
            prior = max(tree.prior[b, n, a], TINY)
            prior_sum += prior
            weighted += prior * (tree.total[b, n, a] / visits)
    if prior_sum > 0:
        weighted /= prior_sum
    mixed = (tree.value[b, n] + visit_sum * weighted) / (visit_sum + 1.0)
    low, high = np.inf, -np.inf
    for a in range(num_actions):
        visits = tree.visits[b, n, a]
        out[a] = tree.total[b, n, a] / visits if visits > 0 else mixed
        low, high = min(low, out[a]), max(high, out[a])
    scale = (params.visit_offset + most) * params.value_scale
    spread = max(high - low, EPSILON)
    for a in range(num_actions):
        out[a] = scale * ((out[a] - low) / spread)


@njit(cache=True)
def _gumbel_interior_action(tree, b, n, params, raised):  # type: ignore[no-untyped-def]
    num_actions = tree.child.shape[2]
    _completed(tree, b, n, params, raised)
    highest, visit_sum = -np.inf, 0.0
    for a in range(num_actions):
        raised[a] += tree.logit[b, n, a]
        highest = max(highest, raised[a])
        visit_sum += tree.visits[b, n, a]
    weight_sum = 0.0
    for a in range(num_actions):
        raised[a] = np.exp(raised[a] - highest)
        weight_sum += raised[a]
    best, best_score = -1, -np.inf
    for a in range(num_actions):
        if tree.legal[b, n, a]:
            score = raised[a] / weight_sum - tree.visits[b, n, a] / (1.0 + visit_sum)
            if best < 0 or score > best_score:
                best, best_score = a, score
    return best


@njit(cache=True)
def _gumbel_root_action(tree, b, params, values):  # type: ignore[no-untyped-def]
    num_actions = tree.child.shape[2]
    _completed(tree, b, 0, params, values)
    simulation, considered, highest = 0.0, 0, -np.inf
    for a in range(num_actions):
        simulation += tree.visits[b, 0, a]
        if tree.legal[b, 0, a]:
            considered += 1
            highest = max(highest, tree.logit[b, 0, a])
    considered = min(considered, params.max_considered)
    turn = params.sequence[considered, min(np.int64(simulation), params.sequence.shape[1] - 1)]
    best, best_score = -1, -np.inf
    for a in range(num_actions):
        if tree.legal[b, 0, a]:
            score = -np.inf
            if tree.visits[b, 0, a] == turn:
                score = max(LOWEST, params.gumbel[b, a] + (tree.logit[b, 0, a] - highest) + values[a])
            if best < 0 or score > best_score:
                best, best_score = a, score
    return best


@njit(cache=True)
def _descend(tree, b, n, action, leaf, r):  # type: ignore[no-untyped-def]
    """Follows one edge; returns the node to go on from, or -1 where the walk ends."""
    child = tree.child[b, n, action]
    fresh = child < 0
    if fresh:
        child = tree.size[b]
        tree.size[b] += 1
        tree.child[b, n, action] = child
        tree.parent[b, child] = n
        tree.parent_action[b, child] = action
    elif not tree.terminal[b, child]:
        return np.int64(child)
    leaf.parent[r], leaf.action[r], leaf.node[r], leaf.fresh[r] = n, action, child, fresh
    return np.int64(-1)


@njit(cache=True)
def select_puct(tree, rows, params, leaf):  # type: ignore[no-untyped-def]
    """Walks every row by PUCT."""
    for r in range(rows.shape[0]):
        b, n = rows[r], np.int64(0)
        while n >= 0:
            n = _descend(tree, b, n, _puct_action(tree, b, n, params), leaf, r)


@njit(cache=True)
def select_gumbel(tree, rows, params, leaf):  # type: ignore[no-untyped-def]
    """Walks every row by sequential halving at the root and the improved policy below."""
    scratch = np.empty(tree.child.shape[2])
    for r in range(rows.shape[0]):
        b = rows[r]
        n = _descend(tree, b, np.int64(0), _gumbel_root_action(tree, b, params, scratch), leaf, r)
        while n >= 0:
            n = _descend(tree, b, n, _gumbel_interior_action(tree, b, n, params, scratch), leaf, r)


@njit(cache=True)
def backup(tree, rows, leaf):  # type: ignore[no-untyped-def]
    """Carries every leaf's value to its root."""
    for r in range(rows.shape[0]):
        b, n = rows[r], leaf.node[r]
        value = 0.0 if tree.terminal[b, n] else tree.value[b, n]
        while n > 0:
            above, action = tree.parent[b, n], tree.parent_action[b, n]
            value = tree.reward[b, above, action] + tree.discount[b, above, action] * value
            tree.visits[b, above, action] += 1
            tree.total[b, above, action] += value
            n = np.int64(above)
