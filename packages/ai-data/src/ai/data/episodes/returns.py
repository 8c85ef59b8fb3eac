"""Value targets: n-step, λ-, full and V-trace returns, for one player and for two who take turns.

Letters: s a start row, r a row after it, T the row after an episode's last step, R rows of packed episodes. A reward is
seen by the player who moved, a value by the player to move; where that is not the player at s, the sign turns (two
players, zero sum).
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ai.data.arguments import check_real


def n_step_returns(rewards: Tensor, factor: Tensor, value: Tensor) -> Tensor:
    """Returns the rewards of n steps plus the value where they stop; nothing beyond a true end, whatever is said there.

    Args:
        rewards: of `n_step_rewards`, any shape.
        factor: of the same.
        value: at the rows where the steps stop.

    Source: Sutton and Barto, 2018, Reinforcement Learning, equation 7.1.

    >>> n_step_returns(torch.ones(2), torch.tensor([0.5, 0.0]), torch.tensor([4.0, torch.nan]))
    tensor([3., 1.])
    """
    return rewards + torch.where(factor == 0, 0, factor * value.to(torch.float32))


def n_step_rewards(
    columns: Mapping[str, Tensor], rows: Tensor, steps_left: Tensor, n_step: int, gamma: float, capacity: int
) -> tuple[Tensor, Tensor]:
    """Returns the two parts of an n-step return: the rewards, and what a value where they stop is multiplied by.

    Both float32, of the shape of `rows`. The factor is γⁿ, less where an episode is shorter, 0 beyond a true end, and
    negative where the value there is the other player's.

    Args:
        columns: the ring's; needs `reward` and `discount`, uses `to_play` where there.
        rows: ring rows of the starts, any shape.
        steps_left: steps from each start to its episode's T, same shape; 0 at T itself.
        n_step: at least 1.
        gamma: factor a step, besides the `discount` of the episode.
        capacity: rows of the ring.
    """
    reward, discount = columns["reward"].numpy(), columns["discount"].numpy()
    to_play = None if "to_play" not in columns else columns["to_play"].numpy()
    start, n_left = rows.numpy(), steps_left.numpy()
    left = np.minimum(n_left, n_step)
    # One step after the other, so that a row's sum is the same to the bit whatever rows are summed beside it.
    total, later = np.zeros(start.shape, np.float32), np.zeros(start.shape, np.float32)
    factor = np.ones(start.shape)  # in double precision, and rounded where it is used
    for ahead in range(int(left.max(initial=0))):
        running, at = ahead < left, (start + np.minimum(ahead, left)) % capacity
        gained = np.where(running, reward[at], 0).astype(np.float32, copy=False)
        if to_play is not None:
            gained *= np.where(to_play[at] == to_play[start], np.float32(1), np.float32(-1))
        if ahead:
            later += factor.astype(np.float32) * gained
        else:
            total = gained
        factor *= np.where(running, np.float32(gamma) * discount[at].astype(np.float32, copy=False), np.float32(1))
    factor[(n_left == 0) & (discount[(start - 1) % capacity] == 0)] = 0  # T itself, after a true end
    if to_play is not None:
        factor *= np.where(to_play[(start + left) % capacity] == to_play[start], np.float32(1), np.float32(-1))
    return torch.from_numpy(total + later), torch.from_numpy(factor.astype(np.float32))


def lambda_returns(
    columns: Mapping[str, np.ndarray], lengths: np.ndarray, gamma: float, lam: float = 1.0
) -> np.ndarray:
    """Returns r + γd((1-λ)V' + λG') of every row: `[R]` float32, with the value at T where an episode was cut off.

    Less the values they are the advantages of GAE; with λ = 1 they are full returns, with λ = 0 one-step targets.

    Args:
        columns: packed episodes; needs `reward` and `discount`, `value` unless λ is 1, uses `to_play` where there.
        lengths: T + 1 of each.
        gamma: as of `n_step_rewards`.
        lam: λ, in [0, 1].

    Raises:
        ValueError: λ is outside [0, 1], there are no values for a λ below 1, or `lengths` are not those of the columns.

    Source: Sutton and Barto, 2018, Reinforcement Learning, equation 12.20; Schulman et al., 2016, High-dimensional
    continuous control using generalized advantage estimation, equation 16.

    >>> steps = {"reward": np.array([1.0, 1.0, 0.0]), "discount": np.array([1.0, 1.0, 0.0])}
    >>> lambda_returns({**steps, "value": np.array([5.0, 6.0, 7.0])}, np.array([3]), gamma=0.5, lam=0.5)
    array([3.625, 4.5  , 7.   ], dtype=float32)
    """
    _check_discounts(gamma, lam)
    lengths = _checked(columns, lengths)
    if lam < 1 and "value" not in columns:
        raise ValueError(f"lam ({lam}) below 1 needs episodes with a value, got the keys {sorted(columns)}")
    last_rows = _last_rows(columns, lengths, ("reward", "discount"))
    value, reward, discount = columns.get("value"), columns["reward"], columns["discount"]
    sign = _signs(columns)
    result = np.zeros(int(lengths.sum()), np.float32)
    result[last_rows] = 0 if value is None else _values_at_ends(value, discount, last_rows, lengths)
    for back in range(1, int(lengths.max())):  # all episodes together, from their ends
        at = last_rows[lengths > back] - back
        after = result[at + 1]
        if value is not None and lam < 1:
            after = (1 - lam) * value[at + 1] + lam * after
        after = np.where(discount[at] == 0, 0, after)  # whatever was said beyond a true end, NaN too
        result[at] = reward[at] + gamma * discount[at] * (after if sign is None else sign[at] * after)
    return result


def full_returns(columns: Mapping[str, np.ndarray], lengths: np.ndarray, gamma: float) -> np.ndarray:
    """Returns the discounted rewards to each episode's end: `lambda_returns` with λ = 1."""
    return lambda_returns(columns, lengths, gamma)


def vtrace_returns(
    columns: Mapping[str, np.ndarray],
    lengths: np.ndarray,
    ratio: np.ndarray,
    gamma: float,
    *,
    lam: float = 1.0,
    rho_max: float = 1.0,
    c_max: float = 1.0,
) -> np.ndarray:
    """Returns the values of a policy from episodes that another one acted in: `[R]` float32.

    Args:
        columns: packed episodes; needs `reward`, `discount` and `value`, uses `to_play` where there.
        lengths: T + 1 of each.
        ratio: `[R]` the policy's probability of each action over that of the one that acted; unused at T.
        gamma: as of `n_step_rewards`.
        lam: λ, which shortens the traces.
        rho_max: bounds the ratio that a step's own error counts with, and so which policy the values are of.
        c_max: bounds the ratio that later errors are carried back with.

    Raises:
        ValueError: λ is outside [0, 1], a column is missing, or `lengths` are not those of the columns.

    Source: Espeholt et al., 2018, IMPALA, equation 1 and remark 2.

    >>> steps = {"reward": np.array([1.0, 0.0]), "discount": np.array([1.0, 0.0]), "value": np.array([0.0, 2.0])}
    >>> vtrace_returns(steps, np.array([2]), ratio=np.array([0.5, 0.0]), gamma=1.0)
    array([1.5, 2. ], dtype=float32)
    """
    _check_discounts(gamma, lam)
    check_real(rho_max=rho_max, c_max=c_max)
    for name, bound in (("rho_max", rho_max), ("c_max", c_max)):
        if bound < 0:
            raise ValueError(f"{name} must be at least 0, got {bound}")
    lengths = _checked(columns, lengths)
    ratio = np.asarray(ratio)
    if ratio.dtype.kind not in "iuf":
        raise TypeError(f"ratio must be one number a row, got {ratio.dtype} of shape {ratio.shape}")
    last_rows = _last_rows({**columns, "ratio": ratio}, lengths, ("reward", "discount", "value", "ratio"))
    value, reward, discount = columns["value"], columns["reward"], columns["discount"]
    sign = _signs(columns)
    rho, c = np.minimum(ratio, rho_max), lam * np.minimum(ratio, c_max)
    result = np.zeros(int(lengths.sum()), np.float32)
    result[last_rows] = _values_at_ends(value, discount, last_rows, lengths)
    for back in range(1, int(lengths.max())):
        at = last_rows[lengths > back] - back
        factor = gamma * discount[at] * (1 if sign is None else sign[at])
        beyond, later = (np.where(discount[at] == 0, 0, column[at + 1]) for column in (value, result))
        error = rho[at] * (reward[at] + factor * beyond - value[at])
        result[at] = value[at] + error + factor * c[at] * (later - beyond)
    return result


def _check_discounts(gamma: float, lam: float) -> None:
    check_real(gamma=gamma, lam=lam)
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma must lie in [0, 1], got {gamma}")
    if not 0 <= lam <= 1:
        raise ValueError(f"lam must lie in [0, 1], got {lam}")


def _checked(columns: Mapping[str, np.ndarray], lengths: np.ndarray) -> np.ndarray:
    """Returns the lengths as an array, having seen that these are numbers, and the columns a dict."""
    if not isinstance(columns, Mapping):
        raise TypeError(f"columns must be a dict of packed episodes, got {type(columns).__name__}")
    lengths = np.asarray(lengths)
    if lengths.ndim != 1 or (lengths.dtype.kind not in "iu" and lengths.size):
        raise TypeError(f"lengths must be one row of whole numbers, got {lengths.dtype} of shape {lengths.shape}")
    return lengths


def _last_rows(columns: Mapping[str, np.ndarray], lengths: np.ndarray, needed: tuple[str, ...]) -> np.ndarray:
    """Returns where each episode's moment after its last step lies, having seen that every column holds just these."""
    if missing := [key for key in needed if key not in columns]:
        raise ValueError(f"columns must hold {missing}, got {sorted(columns)}")
    if len(lengths) == 0 or int(lengths.min()) < 1:
        raise ValueError(f"lengths must be T + 1 of at least one episode, got {lengths}")
    n_rows = int(lengths.sum())
    for key in (*needed, "value", "to_play"):
        if key in columns and columns[key].shape != (n_rows,):
            raise ValueError(
                f"{key} must have shape ({n_rows},), the sum of lengths, which are T + 1 of each episode, got "
                f"{tuple(columns[key].shape)}"
            )
    return np.cumsum(lengths) - 1


def _values_at_ends(value: np.ndarray, discount: np.ndarray, last_rows: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns the values of the moments after the last steps, 0 after a true end, whatever was said there."""
    ended = (lengths > 1) & (discount[last_rows - 1] == 0)
    return np.where(ended, 0, value[last_rows])


def _signs(columns: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Returns, for each row but the last, -1 where another player moves next; None for one player."""
    to_play = columns.get("to_play")
    return None if to_play is None else np.where(to_play[:-1] == to_play[1:], 1.0, -1.0).astype(np.float32)
