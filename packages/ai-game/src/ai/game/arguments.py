"""Numbers, switches, masks and makers at the public door: what is none or out of bounds is named in one sentence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
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


def as_mask(told: Any) -> NDArray[np.bool_]:
    """Returns a mask as truths.

    Raises:
        ValueError: it has other numbers than 0 and 1: as the numbers of legal actions, or -inf for what is illegal,
            which as truths would say the contrary.

    >>> as_mask([1, 0, 1])
    array([ True, False,  True])
    """
    mask = np.asarray(told)
    if mask.dtype == bool:
        return mask
    truths: NDArray[np.bool_] = mask == 1
    if not (truths | (mask == 0)).all():
        raise ValueError(f"a mask must be 1 where an action is legal and 0 where not, got {mask.tolist()}")
    return truths


def legal_of(info: Mapping[str, Any], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Returns which actions may be taken.

    Args:
        info: what an environment says besides.
        shape: of the mask.

    Raises:
        ValueError: an environment does not say so, or otherwise than by a mask of that shape.
    """
    if "action_mask" not in info:
        raise ValueError(f"mask=True needs an environment with info['action_mask'] at every step, got {sorted(info)}")
    told = np.asarray(info["action_mask"])
    if told.dtype == object and told.ndim == 1 and len(told):  # rows that are lists
        told = np.stack([np.asarray(row) for row in told])
    if told.shape != shape:  # another might spread over all actions in silence
        raise ValueError(f"info['action_mask'] must have shape {shape}, got {told.shape}")
    return as_mask(told)


def check_made(environment: Any, options: Mapping[str, Any]) -> None:
    """Does nothing if this is a name, or a function that makes something and needs no options.

    Raises:
        TypeError: it is neither.
        ValueError: there are options, which a function would not be given.
    """
    if not isinstance(environment, str) and not callable(environment):
        raise TypeError(
            f"environment must be a registered name or a function that makes one, got {type(environment).__name__}"
        )
    if options and not isinstance(environment, str):
        raise ValueError(f"options ({sorted(options)}) must be given to gymnasium by the function that makes it")


def check_instance_of_gymnasium(made: Any) -> None:
    """Raises `TypeError` for what is no environment of Gymnasium, such as a game, whoever made it."""
    check_has(
        ("action_space", "observation_space", "reset", "step"),
        "a registered name or a function that makes an environment of Gymnasium",
        environment=made,
    )


def _bounds(least: float | None, most: float | None, above: bool) -> str:
    if least is not None and most is not None:
        return f"in {'(' if above else '['}{least:g}, {most:g}]"
    if least is None:
        return f"at most {most:g}"
    return ("positive" if least == 0 else f"above {least:g}") if above else f"at least {least:g}"
