"""Numbers at the public door: one sentence for what is none, where the comparison after it would say anything."""

import difflib
import functools
import os
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from operator import index
from typing import Any, TypeVar

import numpy as np

_MOST_WORKERS = 1 << 16


def check_whole(*, or_none: bool = False, **named: Any) -> None:
    """Raises for a number that is not whole, such as 32.0, '32' or a tensor (`TypeError`), or not one of 64 bits.

    None passes with `or_none`. Seeds of torch go beyond signed numbers, so unsigned ones pass.

    >>> check_whole(batch_size=10)
    >>> check_whole(or_none=True, n_workers=None)
    """
    for name, value in named.items():
        if or_none and value is None:
            continue
        if not _is_whole(value):
            raise TypeError(f"{name} must be a whole number{' or None' * or_none}, got {value!r}")
        if not -(1 << 63) <= value < 1 << 64:
            raise ValueError(f"{name} must be a number of 64 bits, got {told(value)}")


def check_at_least(least: int, *, or_none: bool = False, **named: Any) -> None:
    """Raises for what is no whole number (`TypeError`) or a smaller one (`ValueError`); None passes with `or_none`.

    >>> check_at_least(1, batch_size=10)
    """
    check_whole(or_none=or_none, **named)
    for name, value in named.items():
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, got {told(value)}")


def told(number: Any) -> str:
    """Returns a number in digits; one of thousands of them, which Python does not write, by a power of 2.

    >>> told(-7), told(-(10**5000))
    ('-7', 'about -2**16609')
    """
    try:
        return f"{number}"
    except ValueError:
        return f"about {'-' if number < 0 else ''}2**{int(number).bit_length() - 1}"


def check_n_workers(n_workers: int | None, *, or_none: bool = False) -> None:
    """Raises for what is no number of workers, or more than a machine or cluster can have; None passes with `or_none`.

    >>> check_n_workers(8)
    """
    check_whole(or_none=or_none, n_workers=n_workers)
    if n_workers is not None and not 0 <= n_workers <= _MOST_WORKERS:
        least = "at least 0" if n_workers < 0 else f"at most {_MOST_WORKERS}"
        raise ValueError(f"n_workers must be {least}, got {told(n_workers)}")


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
        try:
            float(value or 0)
        except OverflowError:
            raise ValueError(f"{name} must be a number that a float holds, got {told(value)}") from None


def check_flag(*, or_none: bool = False, **named: Any) -> None:
    """Raises `TypeError` for what is neither True nor False, such as 'no' or 1; None passes with `or_none`.

    >>> check_flag(train=True)
    """
    for name, value in named.items():
        if not (or_none and value is None) and not isinstance(value, bool | np.bool_):
            raise TypeError(f"{name} must be True{', False or None' if or_none else ' or False'}, got {value!r}")


def check_callable(**named: Any) -> None:
    """Raises `TypeError` for what cannot be called.

    >>> check_callable(function=print)
    """
    for name, value in named.items():
        if not callable(value):
            raise TypeError(f"{name} must be callable, got {value!r}")


def check_instance(**named: Any) -> None:
    """Raises `TypeError` for a class where one of its instances is meant."""
    for name, value in named.items():
        if isinstance(value, type):
            raise TypeError(f"{name} must be an instance: {value.__name__}(...), not the class {value.__name__}")


def check_path(*, or_none: bool = False, **named: Any) -> None:
    """Raises `TypeError` for what is no path; None passes with `or_none`.

    >>> check_path(folder="pictures")
    """
    for name, value in named.items():
        if not (or_none and value is None) and not isinstance(value, str | os.PathLike):
            raise TypeError(f"{name} must be a path{' or None' * or_none}, got {value!r}")


def check_tensor(**named: Any) -> None:
    """Raises `TypeError` for what is no tensor of torch.

    >>> import torch
    >>> check_tensor(index=torch.arange(3))
    """
    import torch

    for name, value in named.items():
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")


def check_state(state: Any, kind: str, keys: Iterable[str]) -> None:
    """Raises where `state` is no dict of these keys at least.

    >>> check_state({"batch": 3}, "DataLoader", {"batch"})
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"state must be the state_dict of a {kind}, got {type(state).__name__}")
    if missing := sorted(set(keys) - state.keys()):
        raise ValueError(f"state must be the state_dict of a {kind}, the keys {missing} are not in it")


F = TypeVar("F", bound=Callable[..., Any])


def elsewhere(**ours: str) -> Callable[[F], F]:
    """Has a function refuse an argument that it lacks by naming its own: the one that others call so, or one like it.

    Args:
        **ours: what other libraries call an argument -> ours.

    >>> @elsewhere(activation="actv")
    ... def layer(n, actv=None):
    ...     pass
    >>> layer(1, activation="relu")
    Traceback (most recent call last):
    TypeError: layer has no argument 'activation'; what others call so is actv; its arguments are n, actv
    """

    def decorate(function: F) -> F:
        code = function.__code__
        known = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]

        @functools.wraps(function)
        def call(*args: Any, **given: Any) -> Any:
            for name in given:
                if name not in known:
                    like = difflib.get_close_matches(name, known, 1)
                    hint = f"what others call so is {ours[name]}; " if name in ours else ""
                    hint = hint or "".join(f"perhaps {one} is meant; " for one in like)
                    own = ", ".join(one for one in known if one != "self")
                    what = function.__qualname__.removesuffix(".__init__")
                    raise TypeError(f"{what} has no argument {name!r}; {hint}its arguments are {own}")
            return function(*args, **given)

        return call  # type: ignore[return-value]

    return decorate


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
