"""Random numbers that are a function of (seed, stream, index), so that no row's luck depends on its neighbours.

Source: Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators", the mixer of SplitMix64;
Marsaglia, Tsang 2000, "A simple method for generating gamma variables".
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from ai.game.protocol import Game, Seed, State, chances, outcome_for, state_bytes

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


def row_seeds(seed: Seed, batch: int) -> NDArray[np.uint64]:
    """Returns one seed a row, `[batch]`: an int is spread over the rows, an array is taken as it is.

    Raises:
        ValueError: an array that is not of shape `[batch]`, or a negative int.
    """
    if isinstance(seed, (int, np.integer)):
        if seed < 0:
            raise ValueError(f"seed must be at least 0, got {seed}")
        return fold_in(np.full(batch, int(seed) & _MASK, np.uint64), np.arange(batch))
    seeds = np.asarray(seed)
    if seeds.shape != (batch,):
        raise ValueError(f"seed must be an int or hold one seed a game, shape ({batch},), got {seeds.shape}")
    if seeds.dtype.kind not in "iu":
        raise TypeError(f"seed must hold whole numbers, got {seeds.dtype}")
    return seeds.astype(np.uint64)


def fold_in(seed: NDArray[np.uint64], *data: int | NDArray[np.int64]) -> NDArray[np.uint64]:
    """Returns new seeds from `seed[B]` and numbers, or one number a row: distinct data give unrelated seeds."""
    seeds = np.asarray(seed, np.uint64)
    for number in data:
        numbers = np.atleast_1d(number).astype(np.uint64)  # arrays wrap around in silence, numbers do not
        seeds = _mix(seeds + _mix(numbers + np.uint64(_GOLDEN)))
    return seeds


def digest(state: State) -> NDArray[np.uint64]:
    """Returns a number for each state, `[B]`, that equal states share: seeds of luck that belongs to a position."""
    rows = state_bytes(state)
    padded = np.zeros((len(rows), -(-rows.shape[1] // 8) * 8), np.uint8)
    padded[:, : rows.shape[1]] = rows
    words = padded.view(np.int64)
    seeds = np.zeros(len(rows), np.uint64)
    for k in range(words.shape[1]):
        seeds = fold_in(seeds, words[:, k])
    return seeds


def uniform(seed: NDArray[np.uint64], count: int) -> NDArray[np.float64]:
    """Returns `[B, count]` draws from the open interval (0, 1)."""
    counters = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(_GOLDEN)
    bits = _mix(np.asarray(seed, np.uint64)[:, None] + counters)
    return ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def gumbel(seed: NDArray[np.uint64], count: int) -> NDArray[np.float64]:
    """Returns `[B, count]` draws from the standard Gumbel distribution."""
    return -np.log(-np.log(uniform(seed, count)))


def normal(seed: NDArray[np.uint64], count: int) -> NDArray[np.float64]:
    """Returns `[B, count]` draws from the standard normal distribution (Box and Muller)."""
    pair = uniform(seed, 2 * count)
    return np.sqrt(-2.0 * np.log(pair[:, :count])) * np.cos(2.0 * np.pi * pair[:, count:])


def gamma(seed: NDArray[np.uint64], shape: float, count: int) -> NDArray[np.float64]:
    """Returns `[B, count]` draws from the gamma distribution of this shape and scale 1.

    Raises:
        ValueError: `shape` is not positive.
    """
    if not shape > 0:
        raise ValueError(f"shape must be positive, got {shape}")
    if shape == 1:
        return -np.log(uniform(seed, count))
    boosted = shape + 1.0 if shape < 1 else shape
    offset = boosted - 1.0 / 3.0
    scale = 1.0 / np.sqrt(9.0 * offset)
    out = np.zeros((len(seed), count))
    pending = np.ones(out.shape, bool)
    attempt = 0
    while pending.any():
        x = normal(fold_in(seed, 2 * attempt), count)
        u = uniform(fold_in(seed, 2 * attempt + 1), count)
        v = (1.0 + scale * x) ** 3
        with np.errstate(invalid="ignore", divide="ignore"):
            accepted = (v > 0) & (np.log(u) < 0.5 * x * x + offset - offset * v + offset * np.log(v)) & pending
        out[accepted] = offset * v[accepted]
        pending &= ~accepted
        attempt += 1
    if shape < 1:
        out *= uniform(fold_in(seed, -1), count) ** (1.0 / shape)
    return out


def choose(seed: NDArray[np.uint64], weights: NDArray[np.float64]) -> NDArray[np.int64]:
    """Returns one index a row, drawn in proportion to `weights[B, A]` (not negative, some positive)."""
    cumulated = np.cumsum(weights, axis=1)
    threshold = uniform(seed, 1) * cumulated[:, -1:]
    drawn = (cumulated <= threshold).sum(axis=1)
    # rounding may leave the threshold at the very top: fall back to the last action with any weight
    last = weights.shape[1] - 1 - (weights[:, ::-1] > 0).argmax(axis=1)
    chosen: NDArray[np.int64] = np.minimum(drawn, last).astype(np.int64)
    return chosen


def tempered(policy: NDArray[np.floating], temperature: float | NDArray[np.float64]) -> NDArray[np.float64]:
    """Returns `policy[B, A]` to the power 1 / temperature, up to a factor for each row, as weights to draw by.

    What the policy leaves out has no weight at any temperature; at an infinite one all else weighs the same.

    >>> tempered(np.array([[0.5, 0.25, 0.0]]), 0.5), tempered(np.array([[0.5, 0.25, 0.0]]), np.inf)
    (array([[1.  , 0.25, 0.  ]]), array([[1., 1., 0.]]))
    """
    share = np.where(policy > 0, policy, 0.0) / policy.max(axis=1, keepdims=True)
    return np.where(share > 0, share ** (1.0 / np.asarray(temperature)), 0.0)


def after_luck(
    game: Game, state: State, luck: Callable[[NDArray[np.bool_]], NDArray[np.uint64]]
) -> tuple[State, NDArray[np.float64]]:
    """Returns the states `[B]` where a player moves or all is over, and what luck paid player 0 on the way, `[B]`.

    Args:
        game: the rules.
        state: where luck may move.
        luck: which rows luck moves in, `[B]` -> a seed for each of these, another at every call.
    """
    paid = np.zeros(len(state))
    while (chance := chances(game, state)) is not None and (lucky := np.asarray(chance.any(axis=1))).any():
        before = state[lucky]
        after = game.step(before, choose(luck(lucky), chance[lucky]))
        paid[lucky] += outcome_for(0, game.reward(after), game.to_play(before))
        state = state.copy()
        state[lucky] = after
    return state, paid


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
