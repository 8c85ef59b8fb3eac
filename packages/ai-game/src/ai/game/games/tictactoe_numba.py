"""Compiled twin of `ai.game.games.tictactoe`: the same functions, row by row, into arrays that the caller owns."""

import numpy as np

from ai.game.fast import jit
from ai.game.search.tree import Leaf, Tree

LINES = np.array([0o7, 0o70, 0o700, 0o111, 0o222, 0o444, 0o421, 0o124])


@jit()
def step(state, action, out):  # type: ignore[no-untyped-def]
    """Plays one stone a row; returns the first row whose action is illegal, else -1."""
    for b in range(state.shape[0]):
        own, stones = np.int64(state[b]["own"]), np.int64(state[b]["stones"])
        out[b] = state[b]
        if state[b]["over"] != 0:
            out[b]["reward"] = 0
            out[b]["over"] = 1
            continue
        stone = np.int64(1) << action[b]
        if stones & stone:
            return b
        own |= stone
        stones |= stone
        won = False
        for line in LINES:
            if own & line == line:
                won = True
        out[b]["own"] = stones ^ own
        out[b]["stones"] = stones
        out[b]["player"] = 1 - state[b]["player"]
        out[b]["over"] = 1 if won or stones == 0o777 else 0
        out[b]["reward"] = 1 if won else 0
    return -1


@jit()
def observe(state, out):  # type: ignore[no-untyped-def]
    """Writes the two planes of each row."""
    for b in range(state.shape[0]):
        own, stones = np.int64(state[b]["own"]), np.int64(state[b]["stones"])
        for k in range(9):
            out[b, 0, k // 3, k % 3] = own >> k & 1
            out[b, 1, k // 3, k % 3] = (stones ^ own) >> k & 1


@jit()
def legal(state, out):  # type: ignore[no-untyped-def]
    """Writes the free cells of the rows that are not over."""
    for b in range(state.shape[0]):
        live = state[b]["over"] == 0
        for k in range(9):
            out[b, k] = live and np.int64(state[b]["stones"]) >> k & 1 == 0


@jit()
def step_in_tree(states, tree, rows, leaf, seen, live):  # type: ignore[no-untyped-def]
    """Plays the fresh edges; returns how many lead on, listed in `live` and shown in `seen`."""
    # arrays are taken out before the loop, see `walk_numba`
    tree, leaf = Tree(*tree), Leaf(*leaf)
    own_of, stones_of, player = states["own"], states["stones"], states["player"]
    over_of, reward_of = states["over"], states["reward"]
    reward, discount, terminal, legal = tree.reward, tree.discount, tree.terminal, tree.legal
    leaf_parent, leaf_action, leaf_node, leaf_fresh = leaf.parent, leaf.action, leaf.node, leaf.fresh
    count = 0
    for r in range(rows.shape[0]):
        if not leaf_fresh[r]:
            continue
        b, parent, action, node = rows[r], leaf_parent[r], leaf_action[r], leaf_node[r]
        stone = np.int64(1) << action
        own = np.int64(own_of[b, parent]) | stone
        stones = np.int64(stones_of[b, parent]) | stone
        won = False
        for line in LINES:
            if own & line == line:
                won = True
        over = won or stones == 0o777
        own ^= stones
        own_of[b, node] = own
        stones_of[b, node] = stones
        player[b, node] = 1 - player[b, parent]
        over_of[b, node] = 1 if over else 0
        reward_of[b, node] = 1 if won else 0
        reward[b, parent, action] = 1.0 if won else 0.0
        discount[b, parent, action] = 0.0 if over else -1.0
        terminal[b, node] = over
        for k in range(9):
            legal[b, node, k] = not over and stones >> k & 1 == 0
        if not over:
            for k in range(9):
                seen[count, 0, k // 3, k % 3] = own >> k & 1
                seen[count, 1, k // 3, k % 3] = (stones ^ own) >> k & 1
            live[count] = r
            count += 1
    return count
