"""A configuration as plain values: what YAML and JSON hold and a person reads."""

import argparse
import dataclasses
import datetime
import enum
import math
import types
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import numpy as np


def to_plain(value: object, where: str = "") -> Any:
    """Returns a configuration as plain dicts, lists, text and numbers: what YAML and JSON hold and a person reads.

    Dataclasses and namespaces become dicts, enums their names; paths, dates, devices and number types become text,
    small arrays and tensors lists.

    Args:
        value: The configuration.
        where: Its dotted name, for messages.

    Raises:
        TypeError: something in it has no such form; the message names its key.
        ValueError: two keys of a dict are the same text, or something holds itself.

    Example:
        >>> from pathlib import Path
        >>> to_plain({"out": Path("runs"), "betas": (0.9, 0.99)})
        {'out': 'runs', 'betas': [0.9, 0.99]}
    """
    try:
        return _plain(value, where)
    except RecursionError:
        raise ValueError(f"config{_at(where)} is nested without an end") from None


def _plain(value: Any, where: str) -> Any:
    if value is None or type(value) in (bool, float):
        return value
    if type(value) is int:
        return _whole(value, where)
    if type(value) is str:
        return _text(value, where)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {one.name: _plain(getattr(value, one.name), _join(where, one.name)) for one in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, argparse.Namespace | types.SimpleNamespace):
        return _plain(vars(value), where)
    if isinstance(value, Mapping):
        plain: dict[str, Any] = {}
        for key, item in value.items():
            name = key.name if isinstance(key, enum.Enum) else _text(str(key), where)
            if name in plain:
                raise ValueError(f"config{_at(where)} has two keys that are both {name!r} as text")
            plain[name] = _plain(item, _join(where, name))
        return plain
    if isinstance(value, set | frozenset):
        value = sorted(value, key=lambda item: (type(item).__name__, repr(item)))  # in the same order in each process
    if isinstance(value, list | tuple | range):
        return [_plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, PurePath):
        return _text(str(value), where)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return str(value)
    kind = type(value)
    if kind.__module__ == "torch" and kind.__name__ in ("device", "dtype", "layout", "memory_format", "Size"):
        return str(value)
    if isinstance(value, np.dtype):
        return str(value)
    if hasattr(value, "tolist") and hasattr(value, "shape"):  # an array, a tensor, or a number of theirs
        size = math.prod(value.shape)
        if size > LARGEST_ARRAY:
            raise TypeError(f"config{_at(where)} must be a value to read, got {size} numbers; keep their file's path")
        return _plain(value.tolist(), where)
    for base in (bool, int, float, str):  # a subclass of theirs
        if isinstance(value, base):
            return _plain(base(value), where)
    what = f"{kind.__name__}{_at(where, ' at ')}"
    raise TypeError(f"config must hold plain values (numbers, text, lists, dicts, dataclasses), got {what}")


def _text(value: str, where: str) -> str:
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(f"config{_at(where)} must be text that UTF-8 can hold, got {value!a}") from None
    return value


def _whole(value: int, where: str) -> int:
    if value.bit_length() > LARGEST_BITS:
        got = f"one of {value.bit_length()} bits"
        raise ValueError(f"config{_at(where)} must be a whole number of at most {LARGEST_BITS} bits, got {got}")
    return value


LARGEST_BITS = 14_000
"""Python writes no larger whole number as text."""
LARGEST_ARRAY = 1000
"""An array of more numbers has no place in a configuration."""


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _at(where: str, before: str = " ") -> str:
    return f"{before}{where}" if where else ""
