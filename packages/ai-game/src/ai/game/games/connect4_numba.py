"""Compiled twin of `ai.game.games.connect4`: the same functions, row by row, into arrays that the caller owns."""

import numpy as np

from ai.game.fast import jit
from ai.game.search.tree import Leaf, Tree

ONE = np.uint64(1)


@jit(inline="always")
def won(stones):  # type: ignore[no-untyped-def]
    """Returns whether one player's stones hold four in a row."""
    for shift in (1, 6, 7, 8):
        pairs = stones & (stones >> np.uint64(shift))
        if pairs & (pairs >> np.uint64(2 * shift)):
            return True
    return False


@jit()
def step(state, action, out):  # type: ignore[no-untyped-def]
    """Plays one stone a row; returns the first row whose action is illegal, else -1."""
    full = np.uint64(0)
    for column in range(7):
        full |= np.uint64(63) << np.uint64(7 * column)
    for b in range(state.shape[0]):
        out[b] = state[b]
        if state[b]["over"] != 0:
            out[b]["reward"] = 0
            continue
        stones = state[b]["stones"]
        shift = np.uint64(7 * action[b])
        if (stones >> (shift + np.uint64(5))) & ONE:
            return b
        stones |= stones + (ONE << shift)
        own = state[b]["own"] | (stones ^ state[b]["stones"])
        win = won(own)
        out[b]["own"] = stones ^ own
        out[b]["stones"] = stones
        out[b]["player"] = 1 - state[b]["player"]
        out[b]["over"] = 1 if win or stones == full else 0
        out[b]["reward"] = 1 if win else 0
    return -1


@jit()
def observe(state, out):  # type: ignore[no-untyped-def]
    """Writes the two planes of each row, top row first."""
    for b in range(state.shape[0]):
        own, stones = state[b]["own"], state[b]["stones"]
        for column in range(7):
            for height in range(6):
                k = np.uint64(7 * column + height)
                mine = (own >> k) & ONE
                out[b, 0, 5 - height, column] = mine
                out[b, 1, 5 - height, column] = ((stones >> k) & ONE) ^ mine


@jit()
def legal(state, out):  # type: ignore[no-untyped-def]
    """Writes the columns with room, of the rows that are not over."""
    for b in range(state.shape[0]):
        live = state[b]["over"] == 0
        for column in range(7):
            out[b, column] = live and (state[b]["stones"] >> np.uint64(7 * column + 5)) & ONE == 0


@jit()
def step_in_tree(states, tree, rows, leaf, seen, live):  # type: ignore[no-untyped-def]
    """Plays the fresh edges; returns how many lead on, listed in `live` and shown in `seen`."""
    # arrays are taken out before the loop, see `walk_numba`
    tree, leaf = Tree(*tree), Leaf(*leaf)
    own_of, stones_of, player = states["own"], states["stones"], states["player"]
    over_of, reward_of = states["over"], states["reward"]
    reward, discount, terminal, legal = tree.reward, tree.discount, tree.terminal, tree.legal
    leaf_parent, leaf_action, leaf_node, leaf_fresh = leaf.parent, leaf.action, leaf.node, leaf.fresh
    full = np.uint64(0)
    for column in range(7):
        full |= np.uint64(63) << np.uint64(7 * column)
    count = 0
    for r in range(rows.shape[0]):
        if not leaf_fresh[r]:
            continue
        b, parent, action, node = rows[r], leaf_parent[r], leaf_action[r], leaf_node[r]
        before = stones_of[b, parent]
        stones = before | (before + (ONE << np.uint64(7 * action)))
        own = own_of[b, parent] | (stones ^ before)
        win = won(own)
        over = win or stones == full
        own ^= stones
        own_of[b, node] = own
        stones_of[b, node] = stones
        player[b, node] = 1 - player[b, parent]
        over_of[b, node] = 1 if over else 0
        reward_of[b, node] = 1 if win else 0
        reward[b, parent, action] = 1.0 if win else 0.0
        discount[b, parent, action] = 0.0 if over else -1.0
        terminal[b, node] = over
        for column in range(7):
            legal[b, node, column] = not over and (stones >> np.uint64(7 * column + 5)) & ONE == 0
        if not over:
            for column in range(7):
                for height in range(6):
                    k = np.uint64(7 * column + height)
                    mine = (own >> k) & ONE
                    seen[count, 0, 5 - height, column] = mine
                    seen[count, 1, 5 - height, column] = ((stones >> k) & ONE) ^ mine
            live[count] = r
            count += 1
    return count
