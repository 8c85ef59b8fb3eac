"""Arguments at the public door: one sentence for what is none, before anything is made."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from operator import index
from typing import Any

from ai.data.arguments import told


def check_whole(least: int, *, or_none: bool = False, **named: Any) -> None:
    """Raises for what is no whole number (`TypeError`), or one below `least` (`ValueError`).

    >>> check_whole(1, seeds=3)
    """
    for name, value in named.items():
        if value is None and or_none:
            continue
        rule = f"{name} must be a whole number from {least}{' or None' * or_none}, got {_told(value)}"
        if not is_whole(value):
            raise TypeError(rule)
        if value < least:
            raise ValueError(rule)


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


def check_seconds(most: float = math.inf, **named: Any) -> None:
    """Raises for what is neither None nor a number (`TypeError`), or not positive, or above `most` (`ValueError`).

    >>> check_seconds(timeout_s=None)
    """
    for name, value in named.items():
        if value is None:
            continue
        bound = "" if most == math.inf else f" and at most {most:g}"
        rule = f"{name} must be a positive number of seconds{bound} or None, got {_told(value)}"
        if isinstance(value, bool) or not hasattr(value, "__float__"):
            raise TypeError(rule)
        if not 0 < value <= most:
            raise ValueError(rule)


def _told(value: Any) -> str:
    return told(value) if isinstance(value, int) else repr(value)


def check_switch(**named: Any) -> None:
    """Raises `TypeError` for what is neither True nor False, such as 'no', which counts as true.

    >>> check_switch(clean=True)
    """
    for name, value in named.items():
        if value is not True and value is not False:
            raise TypeError(f"{name} must be True or False, got {value!r}")


def check_text(*, or_none: bool = False, **named: Any) -> None:
    """Raises `TypeError` for what is no text.

    >>> check_text(note="the one for the paper")
    """
    for name, value in named.items():
        if not isinstance(value, str) and not (or_none and value is None):
            raise TypeError(f"{name} must be text{' or None' * or_none}, got {value!r}")


def check_texts(**named: Any) -> None:
    """Raises `TypeError` for what is no list of texts, such as one text, whose letters would count.

    >>> check_texts(metrics=["loss"])
    """
    for name, value in named.items():
        is_list = isinstance(value, Collection) and not isinstance(value, str | bytes)  # no generator: it is used up
        if not is_list or not all(isinstance(one, str) for one in value):
            raise TypeError(f"{name} must be a list of texts, got {value!r}")


def check_directions(**named: Any) -> Mapping[str, str]:
    """Returns a mapping of names to `'min'` or `'max'`; raises `TypeError` or `ValueError` for what is none.

    >>> check_directions(best={"val_loss": "min"})
    {'val_loss': 'min'}
    """
    ((name, value),) = named.items()
    if not isinstance(value, Mapping) or not all(isinstance(one, str) for one in value):
        raise TypeError(f"{name} must be a dict of 'min' or 'max' by name, got {value!r}")
    for key, direction in value.items():
        if direction not in ("min", "max"):
            raise ValueError(f"{name} of {key!r} must be 'min' or 'max', got {direction!r}")
    return value


def check_callable(*, or_none: bool = False, **named: Any) -> None:
    """Raises `TypeError` for what cannot be called, or is a class where one of its instances is meant.

    >>> check_callable(fn=abs)
    """
    for name, value in named.items():
        if value is None and or_none:
            continue
        if isinstance(value, type):
            raise TypeError(f"{name} must be an instance: {value.__name__}(...), not the class {value.__name__}")
        if not callable(value):
            raise TypeError(f"{name} must be callable{' or None' * or_none}, got {value!r}")


def as_callables(name: str, value: Any) -> tuple[Any, ...]:
    """Returns the callables that are given, whatever they come in.

    Raises:
        TypeError: they are none.

    >>> as_callables("callbacks", [len])
    (<built-in function len>,)
    """
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise TypeError(f"{name} must be a list of callables, got {value!r}")
    found = tuple(value)
    check_callable(**{f"{name}[{index}]": one for index, one in enumerate(found)})
    return found


def as_exceptions(name: str, value: Any) -> tuple[type[BaseException], ...]:
    """Returns the classes of exceptions that are given, one or several, as Optuna takes them.

    Raises:
        TypeError: they are none.

    >>> as_exceptions("catch", ValueError)
    (<class 'ValueError'>,)
    """
    found = tuple(value) if isinstance(value, Iterable) and not isinstance(value, str) else (value,)
    if not all(isinstance(one, type) and issubclass(one, BaseException) for one in found):
        raise TypeError(f"{name} must be a tuple of exceptions, such as (ValueError,), got {value!r}")
    return found


def as_choices(what: str, value: Any) -> Sequence[Any]:
    """Returns a list to choose from; an array's or a series' values are plain then.

    Raises:
        TypeError: it is none: a set, say, which has no order.

    >>> as_choices("lr", (0.1, 0.2))
    (0.1, 0.2)
    """
    found = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(found, str | bytes | bytearray) or not isinstance(found, Sequence):
        raise TypeError(f"{what} must be a list, got {value!r}")
    return found
