"""Compiled twin of `ai.game.walk`: the same statistics and scores, one game after the other, sums in the same order."""

import numpy as np
from numba import njit

EPSILON = 1e-8
TINY = float(np.finfo(np.float64).tiny)
LOWEST = -1e9


@njit(cache=True)
def evaluate(tree, rows, node, logits, value):  # type: ignore[no-untyped-def]
    """Writes the evaluation of one node a row; returns whether every number is finite."""
    num_actions = tree.legal.shape[2]
    for r in range(rows.shape[0]):
        if not np.isfinite(value[r]):
            return False
        for a in range(num_actions):
            if not np.isfinite(logits[r, a]):
                return False
    for r in range(rows.shape[0]):
        b, n = rows[r], node[r]
        highest = -np.inf
        for a in range(num_actions):
            if tree.legal[b, n, a] and logits[r, a] > highest:
                highest = np.float64(logits[r, a])
        weight_sum = 0.0
        for a in range(num_actions):
            weight = np.exp(np.float64(logits[r, a]) - highest) if tree.legal[b, n, a] else 0.0
            tree.prior[b, n, a] = weight
            weight_sum += weight
        log_sum = np.log(weight_sum) if weight_sum > 0 else 0.0
        for a in range(num_actions):
            if weight_sum > 0:
                tree.prior[b, n, a] /= weight_sum
            tree.logit[b, n, a] = np.float64(logits[r, a]) - highest - log_sum if tree.legal[b, n, a] else -np.inf
        tree.value[b, n] = value[r]
    return True


@njit(cache=True, inline="always")
def _puct_action(tree, b, n, params):  # type: ignore[no-untyped-def]
    visits, total, prior, legal = tree.visits[b, n], tree.total[b, n], tree.prior[b, n], tree.legal[b, n]
    proof = tree.proof[b, n]
    num_actions = visits.shape[0]
    visit_sum, total_sum, prior_sum = 0.0, 0.0, 0.0
    lowest, highest = np.inf, -np.inf
    for a in range(num_actions):
        if visits[a] > 0:
            visit_sum += visits[a]
            total_sum += total[a]
            prior_sum += prior[a]
            if params.normalize:
                mean = proof[a] if params.prove and not np.isnan(proof[a]) else total[a] / visits[a]
                lowest, highest = min(lowest, mean), max(highest, mean)
    node_value = (tree.value[b, n] + total_sum) / (1.0 + visit_sum)
    low, spread = 0.0, 1.0
    if params.normalize:
        low = min(node_value, lowest)
        spread = max(max(node_value, highest) - low, EPSILON)
        first = low
    else:
        first = node_value - params.first_play * np.sqrt(prior_sum)
    weight = params.weight[np.int64(visit_sum)]
    best, best_score = -1, -np.inf
    for a in range(num_actions):
        if legal[a]:
            mean = total[a] / visits[a] if visits[a] > 0 else first
            if params.prove and not np.isnan(proof[a]):
                if proof[a] >= 1:
                    return a
                mean = proof[a]
            if params.normalize:
                mean = (mean - low) / spread
            score = mean + weight * prior[a] / (visits[a] + 1.0)
            if params.prove and proof[a] <= -1:
                score += LOWEST
            if best < 0 or score > best_score:
                best, best_score = a, score
    return best


@njit(cache=True, inline="always")
def _completed(tree, b, n, params, out):  # type: ignore[no-untyped-def]
    visits, total, prior = tree.visits[b, n], tree.total[b, n], tree.prior[b, n]
    num_actions = visits.shape[0]
    visit_sum, prior_sum, weighted, most = 0.0, 0.0, 0.0, 0.0
    low, high = np.inf, -np.inf
    for a in range(num_actions):
        if visits[a] > 0:
            visit_sum += visits[a]
            most = max(most, visits[a])
            share = max(prior[a], TINY)
            out[a] = total[a] / visits[a]
            low, high = min(low, out[a]), max(high, out[a])
            prior_sum += share
            weighted += share * out[a]
    if prior_sum > 0:
        weighted /= prior_sum
    mixed = (tree.value[b, n] + visit_sum * weighted) / (visit_sum + 1.0)
    for a in range(num_actions):
        if visits[a] == 0:
            out[a] = mixed
            low, high = min(low, mixed), max(high, mixed)
    scale = (params.visit_offset + most) * params.value_scale
    spread = max(high - low, EPSILON)
    for a in range(num_actions):
        out[a] = scale * ((out[a] - low) / spread)
    return visit_sum


@njit(cache=True, inline="always")
def _improved(tree, b, n, params, out):  # type: ignore[no-untyped-def]
    """Writes the improved policy, before it is divided by the sum that is returned beside the node's visits."""
    visits, prior = tree.visits[b, n], tree.prior[b, n]
    visit_sum = _completed(tree, b, n, params, out)
    highest = -np.inf
    for a in range(prior.shape[0]):
        highest = max(highest, out[a])
    weight_sum, untried = 0.0, -1.0
    for a in range(prior.shape[0]):
        if visits[a] > 0:
            out[a] = prior[a] * np.exp(out[a] - highest)
        else:  # they share one value
            if untried < 0:
                untried = np.exp(out[a] - highest)
            out[a] = prior[a] * untried
        weight_sum += out[a]
    return weight_sum, visit_sum


@njit(cache=True, inline="always")
def _gumbel_interior_action(tree, b, n, params, raised):  # type: ignore[no-untyped-def]
    visits, legal = tree.visits[b, n], tree.legal[b, n]
    weight_sum, visit_sum = _improved(tree, b, n, params, raised)
    best, best_score = -1, -np.inf
    for a in range(visits.shape[0]):
        if legal[a]:
            score = raised[a] / weight_sum - visits[a] / (1.0 + visit_sum)
            if best < 0 or score > best_score:
                best, best_score = a, score
    return best


@njit(cache=True, inline="always")
def _considered_action(tree, b, turn, params, values):  # type: ignore[no-untyped-def]
    """Returns the action of the highest score among those visited `turn` times."""
    visits, logit, legal = tree.visits[b, 0], tree.logit[b, 0], tree.legal[b, 0]
    _completed(tree, b, 0, params, values)
    highest = -np.inf
    for a in range(visits.shape[0]):
        if legal[a]:
            highest = max(highest, logit[a])
    best, best_score = -1, -np.inf
    for a in range(visits.shape[0]):
        if legal[a]:
            score = -np.inf
            if visits[a] == turn:
                score = max(LOWEST, params.gumbel[b, a] + (logit[a] - highest) + values[a])
            if best < 0 or score > best_score:
                best, best_score = a, score
    return best


@njit(cache=True, inline="always")
def _gumbel_root_action(tree, b, params, values):  # type: ignore[no-untyped-def]
    simulation, considered = 0.0, 0
    for a in range(tree.visits.shape[2]):
        simulation += tree.visits[b, 0, a]
        considered += tree.legal[b, 0, a]
    considered = min(considered, params.max_considered)
    turn = params.sequence[params.budget[b], considered, min(np.int64(simulation), params.sequence.shape[2] - 1)]
    return _considered_action(tree, b, turn, params, values)


@njit(cache=True)
def decide_gumbel(tree, params, action, policy):  # type: ignore[no-untyped-def]
    """Writes each root's move and improved policy."""
    scratch = np.empty(tree.child.shape[2])
    for b in range(action.shape[0]):
        action[b] = _considered_action(tree, b, tree.visits[b, 0].max(), params, scratch)
        weight_sum, _ = _improved(tree, b, 0, params, policy[b])
        for a in range(policy.shape[1]):
            policy[b, a] /= weight_sum


@njit(cache=True, inline="always")
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
        tree.terminal[b, child] = False
        tree.value[b, child] = 0.0
        for a in range(tree.child.shape[2]):
            tree.child[b, child, a] = -1
            tree.visits[b, child, a] = 0
            tree.total[b, child, a] = 0
            tree.proof[b, child, a] = np.nan
    elif np.isnan(tree.proof[b, n, action]) and not tree.terminal[b, child]:
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


@njit(cache=True, inline="always")
def _certain_value(tree, b, n):  # type: ignore[no-untyped-def]
    """Returns what a node is worth for certain: a proven win, or the best of moves that are all proven; or NaN."""
    best, open_moves = -np.inf, False
    for a in range(tree.child.shape[2]):
        if tree.legal[b, n, a]:
            proof = tree.proof[b, n, a]
            if np.isnan(proof):
                open_moves = True
            else:
                best = max(best, proof)
    return np.nan if open_moves and best < 1 else best


@njit(cache=True)
def settle(tree, rows, leaf, live, logits, value, prove=False):  # type: ignore[no-untyped-def]
    """Evaluates the new nodes of `rows[live]` and carries every leaf's value to its root."""
    if not evaluate(tree, rows[live], leaf.node[live], logits, value):
        return False
    for r in range(rows.shape[0]):
        b, n = rows[r], leaf.node[r]
        returned = tree.value[b, n]
        ended = tree.terminal[b, n] and tree.discount[b, tree.parent[b, n], tree.parent_action[b, n]] == 0
        certain = 0.0 if ended else np.nan
        while n > 0:
            above, action = tree.parent[b, n], tree.parent_action[b, n]
            returned = tree.reward[b, above, action] + tree.discount[b, above, action] * returned
            if prove:
                proof = tree.proof[b, above, action]
                if np.isnan(proof):
                    proof = tree.reward[b, above, action] + tree.discount[b, above, action] * certain
                    tree.proof[b, above, action] = proof
                certain = np.nan
                if not np.isnan(proof):
                    returned = proof
                    certain = _certain_value(tree, b, np.int64(above))
            tree.visits[b, above, action] += 1
            tree.total[b, above, action] += returned
            n = np.int64(above)
    return True
