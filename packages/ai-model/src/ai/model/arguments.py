"""Numbers and paths at the public door: one sentence for what is none, where the code after it would say anything."""

import difflib
import functools
import os
from collections.abc import Callable
from numbers import Real
from operator import index
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn


def check_whole(*, or_none: object = False, **named: Any) -> None:
    """Raises `TypeError` for a number that is not whole, such as 32.0, '32' or None; None passes with `or_none`.

    >>> check_whole(n1=10, n2=20)
    >>> check_whole(or_none=True, n_workers=None)
    """
    for name, value in named.items():
        if value is None and or_none:
            continue
        if not is_whole(value):
            raise TypeError(f"{name} must be a whole number{_or_none(or_none)}, got {value!r}")


def is_whole(value: Any) -> bool:
    """Returns whether something is a whole number, which an array of several is not, though it has `__index__`.

    >>> is_whole(3), is_whole(3.0), is_whole(True)
    (True, False, False)
    """
    try:
        index(value)
    except TypeError:
        return False
    return not isinstance(value, bool)


def check_at_least(least: int, *, or_none: object = False, **named: Any) -> None:
    """Raises for what is no whole number (`TypeError`) or a smaller one (`ValueError`); None passes with `or_none`.

    >>> check_at_least(1, n1=10, n2=20)
    """
    check_whole(or_none=or_none, **named)
    for name, value in named.items():
        if value is not None and value < least:
            raise ValueError(f"{name} ({told(value)}) must be at least {least}")


def told(number: Any) -> str:
    """Returns a number in digits; one of thousands of them, which Python does not write, by a power of 2.

    >>> told(-7), told(-(10**5000))
    ('-7', 'about -2**16609')
    """
    try:
        return f"{number}"
    except ValueError:
        return f"about {'-' if number < 0 else ''}2**{int(number).bit_length() - 1}"


def check_real(*, or_none: object = False, **named: Any) -> None:
    """Raises for what is no real number, such as '1e-3' or None (`TypeError`), or NaN (`ValueError`); tensors pass.

    None passes with `or_none`.

    >>> check_real(lr=1e-3)
    >>> check_real(or_none=True, clip_norm=None)
    """
    for name, value in named.items():
        if value is None and or_none:
            continue
        if not isinstance(value, (Real, Tensor)):
            raise TypeError(f"{name} must be a number{_or_none(or_none)}, got {value!r}")
        if isinstance(value, Real) and value != value:
            raise ValueError(f"{name} must be a number{_or_none(or_none)}, got {value!r}")


def _or_none(allowed: object) -> str:  # an object, so that a type checker lets a dict of numbers follow
    return " or None" if allowed else ""


def check_instance(**named: Any) -> None:
    """Raises `TypeError` for a class where one of its instances is meant.

    >>> check_instance(hook=None, data=[1])
    """
    for name, value in named.items():
        if isinstance(value, type):
            raise TypeError(f"{name} must be an instance: {value.__name__}(...), not the class {value.__name__}")


def check_module(**named: Any) -> None:
    """Raises `TypeError` for what is no `torch.nn.Module`, such as its class.

    >>> check_module(model=nn.Linear(1, 1))
    """
    check_instance(**named)
    for name, value in named.items():
        if not isinstance(value, nn.Module):
            raise TypeError(f"{name} must be a torch.nn.Module, not {type(value).__name__}")


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


def as_path(path: Any, name: str = "path", what: str = "file") -> Path:
    """Returns a path that a user gave as the argument `name`; a leading `~` is their home, as in a shell.

    What it returns may be given to it again: `./~`, a folder of that name, stays what it is.

    Raises:
        TypeError: It is no path.
        ValueError: It is an empty string.
    """
    if not isinstance(path, (str, os.PathLike)) or isinstance(os.fspath(path), bytes):
        raise TypeError(f"{name} must be text or a path of a {what}, got {path!r}")
    if os.fspath(path) == "":
        raise ValueError(f"{name} must name a {what}, got an empty string")
    expanded = Path(os.path.expanduser(path))
    return expanded.absolute() if str(expanded).startswith("~") else expanded
