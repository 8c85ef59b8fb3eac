"""Compiled twin of `ai.game.tictactoe`: the same functions, row by row, into arrays that the caller owns."""

import numpy as np
from numba import njit

LINES = np.array([0o7, 0o70, 0o700, 0o111, 0o222, 0o444, 0o421, 0o124])


@njit(cache=True)
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


@njit(cache=True)
def observe(state, out):  # type: ignore[no-untyped-def]
    """Writes the two planes of each row."""
    for b in range(state.shape[0]):
        own, stones = np.int64(state[b]["own"]), np.int64(state[b]["stones"])
        for k in range(9):
            out[b, 0, k // 3, k % 3] = own >> k & 1
            out[b, 1, k // 3, k % 3] = (stones ^ own) >> k & 1


@njit(cache=True)
def legal(state, out):  # type: ignore[no-untyped-def]
    """Writes the free cells of the rows that are not over."""
    for b in range(state.shape[0]):
        live = state[b]["over"] == 0
        for k in range(9):
            out[b, k] = live and np.int64(state[b]["stones"]) >> k & 1 == 0
