"""What a loss needs of its batch and weights: that it is there, a number a row where that belongs, and finite."""

import math
from collections.abc import Iterable, Mapping

from torch import Tensor


def check_holds(batch: Mapping[str, Tensor], keys: Iterable[str], otherwise: str) -> None:
    """Does nothing where a batch has all the keys.

    Args:
        batch: any.
        keys: that a loss reads.
        otherwise: how a batch comes to hold them.

    Raises:
        ValueError: some are missing.
    """
    if missing := [key for key in keys if key not in batch]:
        raise ValueError(f"the batch must hold {missing}, got {sorted(batch)}: {otherwise}")


def check_rows(batch: Mapping[str, Tensor], keys: Iterable[str], shape: tuple[int, ...]) -> None:
    """Does nothing where those keys that a batch has are numbers a row; others would spread over every row in silence.

    Raises:
        ValueError: one has another shape.
    """
    for key in keys:
        if key in batch and batch[key].shape != shape:
            raise ValueError(f"{key} must have shape {tuple(shape)}, got {tuple(batch[key].shape)}")


def check_weights(**weights: float | None) -> None:
    """Does nothing where what a loss multiplies by are finite numbers, or None: infinity makes NaN of a 0.

    Raises:
        ValueError: one is infinite.
    """
    for name, weight in weights.items():
        if weight is not None and math.isinf(weight):
            raise ValueError(f"{name} must be finite, got {weight}")


def check_draw(batch: Mapping[str, Tensor]) -> None:
    """Does nothing where a batch holds what a value beyond is put together from.

    Raises:
        ValueError: something is missing.
    """
    otherwise = "give ReplayBuffer a finite n_step, and episodes no value"
    check_holds(batch, ("obs", "action", "n_step_reward", "next_obs", "next_discount"), otherwise)
