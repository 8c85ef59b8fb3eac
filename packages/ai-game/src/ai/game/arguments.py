"""Numbers and switches at the public door: what is none, not finite or out of bounds is named in one sentence."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import Tensor

from ai.model.arguments import check_real, check_whole, told


def check_count(least: int, **named: Any) -> None:
    """Raises for what is no whole number (`TypeError`), or one below `least` (`ValueError`).

    >>> check_count(1, games=64, simulations=32)
    """
    for name, value in named.items():
        if value is None:
            raise TypeError(f"{name} must be a whole number, got None")
        check_whole(**{name: value})
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {told(value)}")


def check_flag(**named: Any) -> None:
    """Raises `TypeError` for what is neither True nor False, such as 'no', which counts as true.

    >>> check_flag(prove=True)
    """
    for name, value in named.items():
        if not isinstance(value, (bool, np.bool_)):
            raise TypeError(f"{name} must be True or False, got {value!r}")


def check_amount(
    least: float | None = 0.0, most: float | None = None, *, above: bool = False, finite: bool = True, **named: Any
) -> None:
    """Raises for what is no number (`TypeError`), or NaN, infinite or out of bounds (`ValueError`).

    Args:
        least: lower bound; None for no bound.
        most: upper bound; None for no bound.
        above: whether the lower bound itself is out of bounds.
        finite: whether infinity is out of bounds.
        **named: the numbers.

    >>> check_amount(0, 1, full_share=0.5)
    """
    for name, value in named.items():
        if value is None:
            raise TypeError(f"{name} must be a number, got None")
        if isinstance(value, Tensor):
            if value.numel() != 1:
                raise TypeError(f"{name} must be a number, got a tensor of shape {tuple(value.shape)}")
            value = value.item()
        check_real(**{name: value})
        low = least is not None and (value <= least if above else value < least)
        if low or (most is not None and value > most):
            raise ValueError(f"{name} must be {_bounds(least, most, above)}, got {told(value)}")
        if finite and abs(value) == float("inf"):
            raise ValueError(f"{name} must be finite, got {value}")


def check_has(members: Iterable[str], what: str, **named: Any) -> None:
    """Raises `TypeError` for a class, or what lacks one of `members`, which is named.

    >>> check_has(["upper"], "a word, such as 'net'", name="net")
    """
    for name, value in named.items():
        if isinstance(value, type):
            raise TypeError(f"{name} must be {what}, got the class {value.__name__}")
        lacking = next((member for member in members if not hasattr(value, member)), None)
        if lacking is not None:
            plain = value is None or isinstance(value, (str, int, float))
            given = repr(value) if plain else f"{type(value).__name__}, which lacks {lacking}"
            raise TypeError(f"{name} must be {what}, got {given}")


def _bounds(least: float | None, most: float | None, above: bool) -> str:
    if least is not None and most is not None:
        return f"in {'(' if above else '['}{least:g}, {most:g}]"
    if least is None:
        return f"at most {most:g}"
    return ("positive" if least == 0 else f"above {least:g}") if above else f"at least {least:g}"
