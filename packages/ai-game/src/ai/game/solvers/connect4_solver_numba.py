"""Compiled search of `connect4_solver`. Bits are those of `ai.game.games.connect4`: `7 * column + height`."""

import numpy as np

from ai.game.fast import jit

U = np.uint64
BOTTOM = U(sum(1 << 7 * c for c in range(7)))
BOARD = U(sum(((1 << 6) - 1) << 7 * c for c in range(7)))
COLUMNS = np.array([63 << 7 * c for c in range(7)], np.uint64)
ORDER = np.array([3, 2, 4, 1, 5, 0, 6])


@jit(inline="always")
def _winning_cells(own, stones):  # type: ignore[no-untyped-def]
    """Returns the free cells that would complete four for the owner of `own`, reachable yet or not."""
    cells = (own << U(1)) & (own << U(2)) & (own << U(3))
    for s in (6, 7, 8):
        one, two, three = U(s), U(2 * s), U(3 * s)
        pair = (own << one) & (own << two)
        cells |= pair & (own << three)
        cells |= pair & (own >> one)
        pair = (own >> one) & (own >> two)
        cells |= pair & (own << one)
        cells |= pair & (own >> three)
    return cells & (BOARD ^ stones)


@jit(inline="always")
def _bits(x):  # type: ignore[no-untyped-def]
    count = 0
    while x:
        x &= x - U(1)
        count += 1
    return count


@jit()
def _open(d, own, stones, alpha, beta, moves, count, keys, bounds):  # type: ignore[no-untyped-def]
    """Looks at the node at depth `d`; returns (whether its outcome is known, the outcome), or lists its moves."""
    possible = (stones[d] + BOTTOM) & BOARD
    other = own[d] ^ stones[d]
    threats = _winning_cells(other, stones[d])
    forced = possible & threats
    if forced:
        if forced & (forced - U(1)):
            return True, -1
        possible = forced
    possible &= ~(threats >> U(1))  # not below a cell where the other would win
    if possible == U(0):
        return True, -1  # every move loses at once
    if _bits(stones[d]) >= 40:
        return True, 0
    key = own[d] + stones[d] + BOTTOM
    slot = np.int64(key % U(keys.shape[0]))
    if keys[slot] == key:
        bound = np.int64(bounds[slot])
        if bound >= 10:  # 12 + a lower bound
            alpha[d] = max(alpha[d], bound - 12)
        else:  # 3 + an upper bound
            beta[d] = min(beta[d], bound - 3)
        if alpha[d] >= beta[d]:
            return True, alpha[d]
    ranks = np.empty(7, np.int64)
    n = 0
    for i in range(7):
        move = possible & COLUMNS[ORDER[i]]
        if move:
            rank = _bits(_winning_cells(own[d] | move, stones[d] | move))
            j = n
            while j > 0 and ranks[j - 1] < rank:
                moves[d, j], ranks[j] = moves[d, j - 1], ranks[j - 1]
                j -= 1
            moves[d, j], ranks[j] = move, rank
            n += 1
    count[d] = n
    return False, 0


@jit()
def _outcome(first_own, first_stones, keys, bounds):  # type: ignore[no-untyped-def]
    """Returns the outcome in {-1, 0, 1} for the mover, who cannot win at once.

    Alpha-beta with its own stack: recursive functions do not survive numba's cache.
    """
    own, stones = np.zeros(43, np.uint64), np.zeros(43, np.uint64)
    alpha, beta = np.zeros(43, np.int64), np.zeros(43, np.int64)
    moves, count, index = np.zeros((43, 7), np.uint64), np.zeros(43, np.int64), np.zeros(43, np.int64)
    own[0], stones[0], alpha[0], beta[0] = first_own, first_stones, -1, 1
    d, value, returning = 0, np.int64(0), False
    while True:
        if not returning:
            known, value = _open(d, own, stones, alpha, beta, moves, count, keys, bounds)
            returning = known
            index[d] = 0
        if returning:
            if d == 0:
                return value
            d -= 1
            value = -value
            if value >= beta[d]:
                _store(own[d], stones[d], value + 12, keys, bounds)
                continue
            alpha[d] = max(alpha[d], value)
            index[d] += 1
        if index[d] == count[d]:
            value, returning = alpha[d], True
            _store(own[d], stones[d], value + 3, keys, bounds)
            continue
        own[d + 1] = own[d] ^ stones[d]
        stones[d + 1] = stones[d] | moves[d, index[d]]
        alpha[d + 1], beta[d + 1] = -beta[d], -alpha[d]
        d, returning = d + 1, False


@jit(inline="always")
def _store(own, stones, bound, keys, bounds):  # type: ignore[no-untyped-def]
    key = own + stones + BOTTOM
    slot = np.int64(key % U(keys.shape[0]))
    keys[slot], bounds[slot] = key, bound


@jit()
def score(own, stones, keys, bounds, scores):  # type: ignore[no-untyped-def]
    """Writes the outcome of each legal move of each row."""
    for b in range(own.shape[0]):
        possible = (stones[b] + BOTTOM) & BOARD
        wins = _winning_cells(own[b], stones[b])
        for column in range(7):
            move = possible & COLUMNS[column]
            if move == U(0):
                continue
            other, after = own[b] ^ stones[b], stones[b] | move
            if move & wins:
                scores[b, column] = 1
            elif after == BOARD:
                scores[b, column] = 0
            elif ((after + BOTTOM) & BOARD) & _winning_cells(other, after):
                scores[b, column] = -1
            else:
                scores[b, column] = -_outcome(other, after, keys, bounds)
