"""Value targets: n-step and full returns, for one player and for two who take turns.

Letters: s a start row, r a row after it, T the row after an episode's last step. A reward is seen by the player who
moved, a value by the player to move; where that is not the player at s, the sign turns (two players, zero sum).
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor


def n_step_returns(
    columns: Mapping[str, Tensor], rows: Tensor, steps_left: Tensor, n_step: int, gamma: float, capacity: int
) -> Tensor:
    """Returns the discounted rewards of up to `n_step` steps plus the value where they stop: float32, shape of `rows`.

    Args:
        columns: the ring's; needs `reward` and `discount`, uses `value` and `to_play` where there.
        rows: ring rows of the starts, any shape.
        steps_left: steps from each start to its episode's T, same shape; 0 at T itself.
        n_step: at least 1.
        gamma: factor a step, besides the `discount` of the episode.
        capacity: rows of the ring.

    Source: Sutton and Barto, 2018, Reinforcement Learning, equation 7.1.
    """
    total = torch.zeros(rows.shape)
    factor = torch.ones(rows.shape)
    to_play = columns.get("to_play")
    own = None if to_play is None else to_play[rows]

    def seen_by_start(value: Tensor, at: Tensor) -> Tensor:
        if to_play is None or own is None:
            return value
        return torch.where(to_play[at] == own, value, -value)

    for k in range(n_step):
        running = steps_left > k
        if not bool(running.any()):
            break
        at = (rows + k) % capacity
        reward = seen_by_start(columns["reward"][at].to(torch.float32), at)
        total += torch.where(running, factor * reward, 0)
        factor = torch.where(running, factor * gamma * columns["discount"][at], factor)
    if "value" in columns:
        at = (rows + steps_left.clamp(max=n_step)) % capacity
        total += factor * seen_by_start(columns["value"][at].to(torch.float32), at)
    return total


def full_returns(columns: Mapping[str, np.ndarray], lengths: np.ndarray, gamma: float) -> np.ndarray:
    """Returns the discounted rewards to each episode's end: `[R]` float32, with the value at T where it was cut off.

    Args:
        columns: packed episodes; needs `reward` and `discount`, uses `value` and `to_play` where there.
        lengths: T + 1 of each.
        gamma: as of `n_step_returns`.
    """
    last_rows = np.cumsum(lengths) - 1
    value = columns.get("value")
    to_play = columns.get("to_play")
    result = np.zeros(int(lengths.sum()), np.float32)
    result[last_rows] = 0 if value is None else value[last_rows]
    for back in range(1, int(lengths.max())):  # all episodes together, from their ends
        at = last_rows[lengths > back] - back
        after = result[at + 1]
        if to_play is not None:
            after = np.where(to_play[at] == to_play[at + 1], after, -after)
        result[at] = columns["reward"][at] + gamma * columns["discount"][at] * after
    return result
