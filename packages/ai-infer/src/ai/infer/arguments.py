"""Options at the public doors, beside the numbers that `ai.model.arguments` looks at: seconds, switches, functions."""

import math
import operator
from numbers import Real
from typing import Any

from ai.model.arguments import told


class UsageError(SystemExit):
    """What is written on a command line cannot be meant: the command says so, and exits with 2, as argparse does."""


def check_seconds(*, zero: bool = False, none: bool = True, endless: bool = True, **named: Any) -> None:
    """Raises for what is no time to wait, such as '3' (`TypeError`), NaN or -1 (`ValueError`).

    Args:
        zero: whether 0 is one.
        none: whether None is one.
        endless: whether infinity is one.
        **named: the options by name.

    >>> check_seconds(timeout_s=0.5, stall_timeout_s=None)
    """
    rule = ("0 or more" if zero else "positive") + (" or None" if none else "") + ("" if endless else " and finite")
    for name, value in named.items():
        if value is None and none:
            continue
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError(f"{name} must be a number of seconds, not {value!r}")
        try:
            seconds = float(value)
        except OverflowError:
            raise ValueError(f"{name} must be {rule}, and a float must hold it, not {told(value)}") from None
        if not (seconds >= 0 if zero else seconds > 0) or (math.isinf(seconds) and not endless):
            raise ValueError(f"{name} must be {rule}, not {told(value)}")


def whole(value: Any) -> int | None:
    """Returns a whole number, NumPy's as well, as Python's own; None for what is none, such as True or 3.0.

    >>> whole(3), whole(3.0)
    (3, None)
    """
    try:
        return None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        return None


def check_counts(**named: Any) -> None:
    """Raises for what is no number from 1 on, such as '3' or None (`TypeError`), or 0 (`ValueError`).

    >>> check_counts(max_pending=64)
    """
    for name, value in named.items():
        count = whole(value)
        if count is None:
            raise TypeError(f"{name} must be a whole number, not {value!r}")
        if count < 1:
            raise ValueError(f"{name} must be 1 or more, not {told(value)}")


def check_switches(**named: Any) -> None:
    """Raises `TypeError` for what is neither True nor False, such as 'no', which Python counts as true.

    >>> check_switches(restart=True)
    """
    for name, value in named.items():
        if not isinstance(value, bool):
            raise TypeError(f"{name} must be True or False, not {value!r}")


def check_functions(**named: Any) -> None:
    """Raises `TypeError` for what cannot be called; None passes.

    >>> check_functions(pad=None, build=list)
    """
    for name, value in named.items():
        if value is not None and not callable(value):
            raise TypeError(f"{name} must be a function, not {value!r}")
