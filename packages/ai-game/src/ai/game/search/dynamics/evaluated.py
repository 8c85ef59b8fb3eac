"""What an evaluator says of nodes, looked at before it is written into a tree."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ai.game.search.device import fetched
from ai.game.search.evaluator import Evaluation


class Evaluated(NamedTuple):
    """What an evaluator says of `K` nodes; `live[K]` tells which of the rows they belong to."""

    live: NDArray[np.int64]
    logits: NDArray[np.floating]
    value: NDArray[np.floating]


def checked(
    outcome: Evaluation, batch: int, num_actions: int, players: int = 1
) -> tuple[NDArray[np.floating], NDArray[np.floating]]:
    """Returns an evaluator's answer as contiguous arrays of floats.

    Raises:
        ValueError: its shapes are not `[batch, num_actions]` and `[batch]`, or `[batch, players]` of more than two.
    """
    if not isinstance(outcome, (tuple, list)) or len(outcome) != 2:
        raise TypeError(f"evaluator must return (logits, value), got {type(outcome).__name__}")
    answers = fetched(*outcome) if isinstance(outcome[0], Tensor) else outcome
    logits, value = as_array(answers[0]), as_array(answers[1])
    if logits.shape != (batch, num_actions):
        raise ValueError(f"evaluator must return logits of shape ({batch}, {num_actions}), got {logits.shape}")
    if players > 2:
        if value.shape != (batch, players):
            raise ValueError(f"evaluator must return a value a player, shape ({batch}, {players}), got {value.shape}")
        if not np.isfinite(value).all():
            raise ValueError("evaluator must return finite values of all players, got NaN or infinity")
        return logits, value
    return logits, checked_value(value, batch)


def checked_value(outcome: Any, batch: int) -> NDArray[np.floating]:
    """Returns an evaluator's values as a contiguous array of floats.

    Raises:
        ValueError: they are not one a row.
    """
    value = as_array(outcome)
    if value.size != batch:
        raise ValueError(f"evaluator must return one value a row, shape ({batch},), got {value.shape}")
    return value.reshape(batch)


def as_array(x: Any) -> NDArray[np.floating]:
    """Returns numbers of torch or numpy as a contiguous array of floats."""
    if isinstance(x, Tensor):
        x = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        array = x.numpy(force=True)
    else:
        array = np.asarray(x)
    if array.dtype.kind not in "fiub":
        raise TypeError(f"evaluator must return real numbers, got {array.dtype}")
    # the compiled kernels exist for these two
    return np.ascontiguousarray(array, np.float32 if array.dtype == np.float32 else np.float64)
