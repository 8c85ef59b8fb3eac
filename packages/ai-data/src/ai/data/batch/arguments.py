"""Numbers at the public door: one sentence for what is none, where the comparison after it would say anything."""

from numbers import Real
from typing import Any


def check_whole(*, or_none: bool = False, **named: Any) -> None:
    """Raises `TypeError` for a number that is not whole, such as 32.0 or '32'; None passes with `or_none`.

    >>> check_whole(batch_size=10)
    >>> check_whole(or_none=True, n_workers=None)
    """
    for name, value in named.items():
        none = or_none and value is None
        if not none and (isinstance(value, bool) or not hasattr(value, "__index__")):
            raise TypeError(f"{name} must be a whole number{' or None' * or_none}, got {value!r}")


def check_real(*, or_none: bool = False, **named: Any) -> None:
    """Raises for what is no real number, such as '0.5' (`TypeError`) or NaN (`ValueError`); None passes with `or_none`.

    >>> check_real(p=0.5)
    >>> check_real(or_none=True, timeout_s=None)
    """
    for name, value in named.items():
        if not (or_none and value is None) and not isinstance(value, Real):
            raise TypeError(f"{name} must be a number{' or None' * or_none}, got {value!r}")
        if isinstance(value, Real) and value != value:
            raise ValueError(f"{name} must be a number{' or None' * or_none}, got {value!r}")


def check_rank(rank: int, world: int) -> None:
    """Raises for a rank that is none of `world`.

    >>> check_rank(0, 1)
    """
    check_whole(rank=rank, world=world)
    if world < 1 or not 0 <= rank < world:
        raise ValueError(f"rank ({rank}) must lie in [0, world) with world ({world}) at least 1")
