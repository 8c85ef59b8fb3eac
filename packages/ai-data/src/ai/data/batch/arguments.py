"""Numbers at the public door: one sentence for what is none, where the comparison after it would say anything."""

from numbers import Real
from operator import index
from typing import Any

import numpy as np


def check_whole(*, or_none: bool = False, **named: Any) -> None:
    """Raises `TypeError` for a number that is not whole, such as 32.0, '32' or a tensor; None passes with `or_none`.

    >>> check_whole(batch_size=10)
    >>> check_whole(or_none=True, n_workers=None)
    """
    for name, value in named.items():
        if not (or_none and value is None) and not _is_whole(value):
            raise TypeError(f"{name} must be a whole number{' or None' * or_none}, got {value!r}")


def check_real(*, or_none: bool = False, **named: Any) -> None:
    """Raises for what is no real number, such as '0.5' (`TypeError`) or NaN (`ValueError`); None passes with `or_none`.

    >>> check_real(p=0.5)
    >>> check_real(or_none=True, timeout_s=None)
    """
    for name, value in named.items():
        if not (or_none and value is None) and (isinstance(value, bool) or not isinstance(value, Real)):
            raise TypeError(f"{name} must be a number{' or None' * or_none}, got {value!r}")
        if isinstance(value, Real) and value != value:
            raise ValueError(f"{name} must be a number{' or None' * or_none}, got {value!r}")


def check_flag(*, or_none: bool = False, **named: Any) -> None:
    """Raises `TypeError` for what is neither True nor False, such as 'no' or 1; None passes with `or_none`.

    >>> check_flag(train=True)
    """
    for name, value in named.items():
        if not (or_none and value is None) and not isinstance(value, bool | np.bool_):
            raise TypeError(f"{name} must be True{', False or None' if or_none else ' or False'}, got {value!r}")


def _is_whole(value: Any) -> bool:
    if isinstance(value, bool) or (hasattr(value, "ndim") and not isinstance(value, np.generic)):
        return False  # a tensor of one number would end up in states
    try:
        index(value)
    except TypeError:
        return False
    return True


def check_rank(rank: int, world: int) -> None:
    """Raises for a rank that is none of `world`.

    >>> check_rank(0, 1)
    """
    check_whole(rank=rank, world=world)
    if world < 1 or not 0 <= rank < world:
        raise ValueError(f"rank ({rank}) must lie in [0, world) with world ({world}) at least 1")
