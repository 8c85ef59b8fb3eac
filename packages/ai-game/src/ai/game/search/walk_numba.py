"""Compiled twin of `ai.game.search.walk`: the same statistics and scores, game after game, sums in the same order.

Arrays are taken out of their tuples before any loop, and helpers are handed the arrays but hand them to no other
helper: numba counts a reference each time, which inside the loops took four fifths of a walk. Where it counts, loops
over actions choose values, not branches, since which actions were visited is hard to predict. Callers hand over plain
tuples: numba takes twice as long to recognise named ones.
"""

import numpy as np

from ai.game.fast import jit
from ai.game.search.rules.gumbel import TINY, GumbelParams
from ai.game.search.rules.puct import EPSILON, LOSS, LOWEST, PuctParams
from ai.game.search.tree import GOLDEN, TURNS, Leaf, Shares, Tree


@jit(error_model="numpy")
def evaluate(tree, rows, node, logits, value):  # type: ignore[no-untyped-def]
    """Writes the evaluation of one node a row; returns whether every number is finite."""
    tree = Tree(*tree)
    legal, prior, root_logit, node_value = tree.legal, tree.prior, tree.root_logit, tree.value
    num_actions = legal.shape[2]
    for r in range(rows.shape[0]):
        if not np.isfinite(value[r]):
            return False
        for a in range(num_actions):
            if not np.isfinite(logits[r, a]) and legal[rows[r], node[r], a]:
                return False
    for r in range(rows.shape[0]):
        b, n = rows[r], node[r]
        highest = -np.inf
        for a in range(num_actions):
            if legal[b, n, a] and logits[r, a] > highest:
                highest = np.float64(logits[r, a])
        weight_sum = 0.0
        for a in range(num_actions):
            weight = np.exp(np.float64(logits[r, a]) - highest) if legal[b, n, a] else 0.0
            prior[b, n, a] = weight
            weight_sum += weight
        if weight_sum == 0:  # nothing is legal
            weight_sum = 1.0
        for a in range(num_actions):
            prior[b, n, a] /= weight_sum
        if n == 0:
            log_sum = np.log(weight_sum)
            for a in range(num_actions):
                root_logit[b, a] = np.float64(logits[r, a]) - highest - log_sum if legal[b, n, a] else -np.inf
        node_value[b, n] = value[r]
    return True


@jit(error_model="numpy", forceinline=True)
def _puct_action(visits, total, prior, legal, proof, value, b, n, weights, normalize, first_play, prove, scores):  # type: ignore[no-untyped-def]
    """Returns the action of the highest score; `scores` is room to work in."""
    num_actions = visits.shape[2]
    visit_sum, total_sum, prior_sum = 0.0, 0.0, 0.0
    lowest, highest = np.inf, -np.inf
    for a in range(num_actions):
        visited = visits[b, n, a] > 0
        mean = total[b, n, a] / max(visits[b, n, a], 1.0)
        if prove:
            mean = mean if np.isnan(proof[b, n, a]) else proof[b, n, a]
        scores[a] = mean
        visit_sum += visits[b, n, a]
        total_sum += total[b, n, a]
        prior_sum += prior[b, n, a] if visited else 0.0
        lowest = min(lowest, mean if visited else np.inf)
        highest = max(highest, mean if visited else -np.inf)
    node_value = (value[b, n] + total_sum) / (1.0 + visit_sum)
    if normalize:
        low = min(node_value, lowest)
        spread = max(max(node_value, highest) - low, EPSILON)
        first = 0.0
    else:
        low, spread = 0.0, 1.0
        first = max(node_value - first_play * np.sqrt(prior_sum), min(node_value, lowest, LOSS))
    weight = weights[np.int64(visit_sum)] * spread
    best, best_score = np.int64(0), -np.inf
    for a in range(num_actions):
        mean = scores[a] - low if visits[b, n, a] > 0 else first
        score = mean + weight * prior[b, n, a] / (visits[b, n, a] + 1.0)
        if prove:
            score = LOWEST * spread + score if proof[b, n, a] <= -1 else score
            score = np.inf if proof[b, n, a] >= 1 else score
        better = legal[b, n, a] and score > best_score
        best = np.int64(a) if better else best
        best_score = score if better else best_score
    return best


@jit(error_model="numpy", forceinline=True)
def _completed(visits, total, prior, value, b, n, scale, offset, values):  # type: ignore[no-untyped-def]
    """Writes each action's mean value, the mixed value where untried.

    Returns:
        The lowest of them, the highest that has a prior, the factor that brings them to units of logits, and the
        node's visits.
    """
    num_actions = visits.shape[2]
    visit_sum, prior_sum, weighted, most = 0.0, 0.0, 0.0, 0.0
    for a in range(num_actions):
        mean = total[b, n, a] / max(visits[b, n, a], 1.0)
        share = max(prior[b, n, a], TINY) if visits[b, n, a] > 0 else 0.0
        values[a] = mean
        visit_sum += visits[b, n, a]
        prior_sum += share
        weighted += share * mean
        most = max(most, visits[b, n, a])
    mixed = (value[b, n] + visit_sum * (weighted / max(prior_sum, TINY))) / (visit_sum + 1.0)
    low, high, top = np.inf, -np.inf, -np.inf
    for a in range(num_actions):
        completed = values[a] if visits[b, n, a] > 0 else mixed
        values[a] = completed
        low, high = min(low, completed), max(high, completed)
        top = max(top, completed if prior[b, n, a] > 0 else -np.inf)
    factor = (offset + most) * scale / max(high - low, EPSILON)
    return low, top, factor, visit_sum


@jit(error_model="numpy", forceinline=True)
def _improved(visits, prior, b, n, top, factor, values):  # type: ignore[no-untyped-def]
    """Turns completed values into the improved policy, still to be divided by the sum that is returned."""
    weight_sum, untried = 0.0, -1.0
    for a in range(visits.shape[2]):
        if visits[b, n, a] > 0:
            weight = 1.0 if values[a] >= top else np.exp(factor * (values[a] - top))
        else:  # they share one value
            if untried < 0:
                untried = 1.0 if values[a] >= top else np.exp(factor * (values[a] - top))
            weight = untried
        values[a] = prior[b, n, a] * weight
        weight_sum += values[a]
    return weight_sum


@jit(error_model="numpy", forceinline=True)
def _interior_action(visits, legal, b, n, share, policy):  # type: ignore[no-untyped-def]
    """Returns the action whose visits are furthest below `share` times the policy."""
    best, best_score = np.int64(0), -np.inf
    for a in range(visits.shape[2]):
        score = policy[a] * share - visits[b, n, a]
        better = legal[b, n, a] and score > best_score
        best = np.int64(a) if better else best
        best_score = score if better else best_score
    return best


@jit(error_model="numpy", forceinline=True)
def _root_action(visits, legal, root_logit, gumbel, b, turn, low, factor, values):  # type: ignore[no-untyped-def]
    """Returns the root's action of the highest score among those visited `turn` times."""
    highest = -np.inf
    for a in range(visits.shape[2]):
        if legal[b, 0, a]:
            highest = max(highest, root_logit[b, a])
    best, best_score = np.int64(-1), -np.inf
    for a in range(visits.shape[2]):
        if legal[b, 0, a]:
            score = -np.inf
            if visits[b, 0, a] == turn:
                score = max(LOWEST, gumbel[b, a] + (root_logit[b, a] - highest) + factor * (values[a] - low))
            if best < 0 or score > best_score:
                best, best_score = np.int64(a), score
    return best


@jit(error_model="numpy")
def decide_gumbel(tree, params, action, policy):  # type: ignore[no-untyped-def]
    """Writes each root's move and improved policy."""
    tree, params = Tree(*tree), GumbelParams(*params)
    visits, total, prior, legal, value = tree.visits, tree.total, tree.prior, tree.legal, tree.value
    root_logit, gumbel, scale, offset = tree.root_logit, params.gumbel, params.value_scale, params.visit_offset
    scratch = np.empty(policy.shape[1])
    for b in range(action.shape[0]):
        low, top, factor, _ = _completed(visits, total, prior, value, b, 0, scale, offset, scratch)
        turn = visits[b, 0].max()
        action[b] = _root_action(visits, legal, root_logit, gumbel, b, turn, low, factor, scratch)
        weight_sum = _improved(visits, prior, b, 0, top, factor, scratch)
        for a in range(policy.shape[1]):
            policy[b, a] = scratch[a] / weight_sum


@jit(error_model="numpy", forceinline=True)
def _chance_action(visits, prior, legal, b, n):  # type: ignore[no-untyped-def]
    """Returns the outcome of luck that is furthest behind its share of the visits."""
    visit_sum, outcomes = 1.0, 0
    for a in range(visits.shape[2]):
        visit_sum += visits[b, n, a]
        outcomes += legal[b, n, a]
    best, best_score = np.int64(0), -np.inf
    count = 0
    for a in range(visits.shape[2]):
        count += legal[b, n, a]
        turn = (count - (outcomes + 1) // 2) * GOLDEN
        score = prior[b, n, a] * visit_sum - visits[b, n, a] - TURNS * (turn - np.floor(turn))
        if legal[b, n, a] and score > best_score:
            best, best_score = np.int64(a), score
    return best


@jit(error_model="numpy", forceinline=True)
def _below(child, terminal, b, n, a, further):  # type: ignore[no-untyped-def]
    """Returns the node below an edge, or -1 where a walk ends: it is new, at an end, or not to be gone further from."""
    below = np.int64(child[b, n, a])
    return below if below >= 0 and not terminal[b, below] and further else np.int64(-1)


@jit(error_model="numpy")
def select_puct(tree, rows, params, leaf, luck, max_depth):  # type: ignore[no-untyped-def]
    """Walks every row by PUCT."""
    tree, params, leaf = Tree(*tree), PuctParams(*params), Leaf(*leaf)
    visits, total, prior, legal, value = tree.visits, tree.total, tree.prior, tree.legal, tree.value
    proof, child, terminal, chance, weights = tree.proof, tree.child, tree.terminal, tree.chance, params.weight
    leaf_parent, leaf_action = leaf.parent, leaf.action
    normalize, first_play, prove = params.normalize, params.first_play, params.prove
    scratch = np.empty(visits.shape[2])
    for r in range(rows.shape[0]):
        b, n, depth = rows[r], np.int64(0), 0
        while True:
            if luck and chance[b, n]:
                a = _chance_action(visits, prior, legal, b, n)
            else:
                a = _puct_action(
                    visits, total, prior, legal, proof, value, b, n, weights, normalize, first_play, prove, scratch
                )
            depth += 1
            further = depth < max_depth and (not prove or np.isnan(proof[b, n, a]))
            below = _below(child, terminal, b, n, a, further)
            if below < 0:
                break
            n = below
        leaf_parent[r], leaf_action[r] = n, a
    _claim(tree, rows, leaf, luck)


@jit(error_model="numpy")
def select_gumbel(tree, rows, params, leaf, luck, max_depth):  # type: ignore[no-untyped-def]
    """Walks every row by sequential halving at the root and the improved policy below."""
    tree, params, leaf = Tree(*tree), GumbelParams(*params), Leaf(*leaf)
    visits, total, prior, legal, value = tree.visits, tree.total, tree.prior, tree.legal, tree.value
    child, terminal, leaf_parent, leaf_action = tree.child, tree.terminal, leaf.parent, leaf.action
    root_logit, gumbel, sequence, budget = tree.root_logit, params.gumbel, params.sequence, params.budget
    chance = tree.chance
    scale, offset, max_considered = params.value_scale, params.visit_offset, params.max_considered
    scratch = np.empty(visits.shape[2])
    for r in range(rows.shape[0]):
        b, n = rows[r], np.int64(0)
        simulation, considered = 0.0, 0
        for action in range(visits.shape[2]):
            simulation += visits[b, 0, action]
            considered += legal[b, 0, action]
        considered = min(considered, max_considered)
        turn = sequence[budget[b], considered, min(np.int64(simulation), sequence.shape[2] - 1)]
        low, _, factor, _ = _completed(visits, total, prior, value, b, 0, scale, offset, scratch)
        a = _root_action(visits, legal, root_logit, gumbel, b, turn, low, factor, scratch)
        depth = 0
        while True:
            depth += 1
            below = _below(child, terminal, b, n, a, depth < max_depth)
            if below < 0:
                break
            n = below
            if luck and chance[b, n]:
                a = _chance_action(visits, prior, legal, b, n)
                continue
            _, top, factor, visit_sum = _completed(visits, total, prior, value, b, n, scale, offset, scratch)
            weight_sum = _improved(visits, prior, b, n, top, factor, scratch)
            a = _interior_action(visits, legal, b, n, (1.0 + visit_sum) / weight_sum, scratch)
        leaf_parent[r], leaf_action[r] = n, a
    _claim(tree, rows, leaf, luck)


def select_scored(tree, rows, constants, leaf, luck, max_depth):  # type: ignore[no-untyped-def]
    """Walks every row along the highest `score_edge`, a name that `fast.bound` fills."""
    tree, leaf = Tree(*tree), Leaf(*leaf)
    visits, total, prior, legal, value = tree.visits, tree.total, tree.prior, tree.legal, tree.value
    child, terminal, chance, proof = tree.child, tree.terminal, tree.chance, tree.proof
    leaf_parent, leaf_action, proves = leaf.parent, leaf.action, tree.proof.shape[2] > 0
    for r in range(rows.shape[0]):
        b, n, depth = rows[r], np.int64(0), 0
        while True:
            if luck and chance[b, n]:
                a = _chance_action(visits, prior, legal, b, n)
            else:
                visit_sum, total_sum = 0.0, 0.0
                for action in range(visits.shape[2]):
                    visit_sum += visits[b, n, action]
                    total_sum += total[b, n, action]
                node_value = (value[b, n] + total_sum) / (1.0 + visit_sum)
                a, best = np.int64(-1), -np.inf
                for action in range(visits.shape[2]):
                    if legal[b, n, action]:
                        times = np.float64(visits[b, n, action])
                        mean = total[b, n, action] / max(times, 1.0)
                        score = score_edge(times, mean, prior[b, n, action], visit_sum, node_value, constants)  # type: ignore[name-defined]  # noqa: F821
                        if np.isnan(score):
                            raise ValueError("a rule must score legal moves by numbers, got NaN")
                        if a < 0 or score > best:
                            a, best = np.int64(action), score
            depth += 1
            further = depth < max_depth and (not proves or np.isnan(proof[b, n, a]))
            below = _below(child, terminal, b, n, a, further)
            if below < 0:
                break
            n = below
        leaf_parent[r], leaf_action[r] = n, a
    _claim(tree, rows, leaf, luck)


@jit(error_model="numpy")
def _claim(tree, rows, leaf, luck):  # type: ignore[no-untyped-def]
    """Finds the node at the end of each walk, a new one where there is none yet."""
    child, parent, parent_action, size = tree.child, tree.parent, tree.parent_action, tree.size
    visits, total, proof, value, terminal = tree.visits, tree.total, tree.proof, tree.value, tree.terminal
    chance = tree.chance
    leaf_parent, leaf_action, leaf_node, leaf_fresh = leaf.parent, leaf.action, leaf.node, leaf.fresh
    for r in range(rows.shape[0]):
        b, above, action = rows[r], leaf_parent[r], leaf_action[r]
        leaf_fresh[r] = child[b, above, action] < 0
        if leaf_fresh[r]:
            n = size[b]
            size[b] = n + 1
            child[b, above, action] = n
            parent[b, n], parent_action[b, n] = above, action
            terminal[b, n], value[b, n] = False, 0.0
            if luck:
                chance[b, n] = False
            for a in range(visits.shape[2]):
                child[b, n, a] = -1
                visits[b, n, a] = 0.0
                total[b, n, a] = 0.0
            for a in range(proof.shape[2]):
                proof[b, n, a] = np.nan
        leaf_node[r] = child[b, above, action]


@jit(error_model="numpy")
def _certain_value(legal, proof, b, n):  # type: ignore[no-untyped-def]
    """Returns what a node is worth for certain: a proven win, or the best of moves that are all proven; or NaN."""
    best, open_moves = -np.inf, False
    for a in range(legal.shape[2]):
        if legal[b, n, a]:
            if np.isnan(proof[b, n, a]):
                open_moves = True
            else:
                best = max(best, proof[b, n, a])
    return np.nan if open_moves and best < 1 else best


@jit(error_model="numpy")
def settle(tree, rows, leaf, live, logits, value, prove=False):  # type: ignore[no-untyped-def]
    """Evaluates the new nodes of `rows[live]` and carries every leaf's value to its root."""
    tree, leaf = Tree(*tree), Leaf(*leaf)
    if not evaluate(tree, rows[live], leaf.node[live], logits, value):
        return False
    parent, parent_action, reward, discount = tree.parent, tree.parent_action, tree.reward, tree.discount
    visits, total, legal, proof, terminal = tree.visits, tree.total, tree.legal, tree.proof, tree.terminal
    node_value, leaf_node = tree.value, leaf.node
    for r in range(rows.shape[0]):
        b, n = rows[r], leaf_node[r]
        returned = node_value[b, n]
        ended = terminal[b, n] and discount[b, n] == 0
        certain = 0.0 if ended else np.nan
        while n > 0:
            above, action = np.int64(parent[b, n]), np.int64(parent_action[b, n])
            returned = reward[b, n] + discount[b, n] * returned
            if prove:
                known = proof[b, above, action]
                if np.isnan(known):
                    known = np.float32(reward[b, n] + discount[b, n] * certain)
                    proof[b, above, action] = known
                certain = np.nan
                if not np.isnan(known):
                    returned = known
                    certain = _certain_value(legal, proof, b, above)
            visits[b, above, action] += 1
            total[b, above, action] += returned
            n = above
    return True


@jit(error_model="numpy")
def settle_shares(tree, rows, leaf, live, logits, value, shares):  # type: ignore[no-untyped-def]
    """Evaluates the new nodes of `rows[live]` and carries every leaf's values to its root, each edge the mover's."""
    tree, leaf, shares = Tree(*tree), Leaf(*leaf), Shares(*shares)
    if not evaluate(tree, rows[live], leaf.node[live], logits, value):
        return False
    parent, parent_action, discount, visits, total = (
        tree.parent,
        tree.parent_action,
        tree.discount,
        tree.visits,
        tree.total,
    )
    expected, reward, mover, leaf_node = shares.value, shares.reward, shares.mover, leaf.node
    returned = np.empty(expected.shape[2])
    for r in range(rows.shape[0]):
        b, n = rows[r], leaf_node[r]
        for p in range(returned.shape[0]):
            returned[p] = expected[b, n, p]
        while n > 0:
            above, action = np.int64(parent[b, n]), np.int64(parent_action[b, n])
            for p in range(returned.shape[0]):
                returned[p] = reward[b, n, p] + discount[b, n] * returned[p]
            visits[b, above, action] += 1
            total[b, above, action] += returned[mover[b, above]]
            n = above
    return True


@jit(error_model="numpy")
def subtree(parent, size, root, below):  # type: ignore[no-untyped-def]
    """Marks the nodes that are `root[B]` or below it."""
    for b in range(parent.shape[0]):
        if root[b] >= 0:
            below[b, root[b]] = True
            for n in range(root[b] + 1, size[b]):  # a parent comes before its children
                below[b, n] = below[b, parent[b, n]]
