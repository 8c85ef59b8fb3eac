"""Numbers at the public door: one sentence for what is none, where the comparison after it would say anything."""

from numbers import Real
from typing import Any


def check_whole(**named: Any) -> None:
    """Raises `TypeError` for a number that is not whole, such as 32.0 or '32'; None passes.

    >>> check_whole(batch_size=10, n_workers=None)
    """
    for name, value in named.items():
        if value is not None and (isinstance(value, bool) or not hasattr(value, "__index__")):
            raise TypeError(f"{name} must be a whole number, got {value!r}")


def check_real(**named: Any) -> None:
    """Raises `TypeError` for what is no real number, such as '0.5'; None passes.

    >>> check_real(timeout_s=0.5, seed=None)
    """
    for name, value in named.items():
        if value is not None and not isinstance(value, Real):
            raise TypeError(f"{name} must be a number, got {value!r}")
