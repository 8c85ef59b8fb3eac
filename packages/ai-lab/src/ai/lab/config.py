"""Configurations: a dataclass is the schema, YAML the file, dotted names the overrides.

Any dataclass works; `Config` adds the same operations as methods. Field types are checked when values come from
outside: `bool`, `int`, `float`, `str`, `None`, `Path`, enums, `Literal`, unions, `list`, `tuple`, `dict` and nested
dataclasses.
"""

import argparse
import dataclasses
import datetime
import enum
import functools
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any, Literal, Self, TypeVar, Union

import numpy as np

from ai.data.storage.paths import expanded

T = TypeVar("T")


class Config:
    """Base class that gives a dataclass its YAML file, overrides and command line.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Train(Config):
        ...     lr: float = 0.1
        ...     batch_size: int = 32
        >>> Train().override("lr=0.01")
        Train(lr=0.01, batch_size=32)
        >>> Train.from_dict({"lr": "fast"})
        Traceback (most recent call last):
        TypeError: lr must be a float, got 'fast'
    """

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> Self:
        """Returns an instance from plain values, checked against the fields' types.

        Raises:
            TypeError: a value has another type than its field, or a field without a default is missing.
            ValueError: a key is no field.
        """
        return from_plain(cls, values)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Returns an instance from a YAML file; see `from_dict`."""
        return from_plain(cls, read_yaml(expanded(path)))

    @classmethod
    def cli(cls, args: Sequence[str] | None = None) -> Self:
        """Returns an instance from the command line (`--lr 0.01 --model.dim 64`); `--help` lists the fields.

        Args:
            args: The arguments; `sys.argv[1:]` by default.
        """
        return command_line(cls, args)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values: what `from_dict` takes."""
        values = to_plain(self)
        assert isinstance(values, dict)
        return values

    def save(self, path: str | Path) -> None:
        """Writes the YAML file, atomically."""
        write_yaml(expanded(path), self)

    def override(self, *assignments: str) -> Self:
        """Returns a copy with `"name=value"` or `"part.name=value"` replaced; values are read as YAML."""
        return override(self, *assignments)


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


def check_config(config: object) -> None:
    """Raises where a configuration is no dataclass or dict of plain values; see `to_plain`.

    Raises:
        TypeError: it is not; the message names the key.
        ValueError: two keys, or two dotted names, are the same text; or something holds itself.
    """
    if config is None:
        return
    if not isinstance(plain := to_plain(config), dict):
        raise TypeError(f"config must be a dataclass or a dict, got {type(config).__name__}: {plain!r}"[:200])
    names: set[str] = set()
    for name in _names(plain):
        if name in names:
            raise ValueError(f"config has two values that are both {name!r} by their dotted names")
        names.add(name)


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name


def _at(where: str, before: str = " ") -> str:
    return f"{before}{where}" if where else ""


def from_plain(cls: type[T], values: object, *, where: str = "") -> T:
    """Returns an instance of the dataclass `cls` from plain values; see `Config.from_dict`."""
    name = where or cls.__name__
    if not dataclasses.is_dataclass(cls):
        raise TypeError(f"config class must be a dataclass, got {cls.__name__}; decorate it with @dataclass")
    if not isinstance(values, Mapping):
        raise TypeError(f"{name} must be a mapping of fields, got {values!r}")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls) if field.init}
    for key in values:
        if key not in fields:
            raise ValueError(
                f"{where + '.' if where else ''}{key} is not a field of {cls.__name__}: {', '.join(fields)}"
            )
    made = {}
    for key, field in fields.items():
        dotted = f"{where}.{key}" if where else key
        if key in values:
            made[key] = _check(hints[key], values[key], dotted)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise TypeError(f"{dotted} is missing: {cls.__name__} has no default for it")
    return typing.cast(T, cls(**made))


def override(config: T, *assignments: str) -> T:
    """Returns a copy of the dataclass `config` with dotted assignments applied; see `Config.override`."""
    values = to_plain(config)
    for assignment in assignments:
        if not isinstance(assignment, str):
            raise TypeError(f"an override must be text that reads name=value, got {assignment!r}")
        dotted, separator, text = assignment.partition("=")
        if not separator or not dotted:
            raise ValueError(f"an override must read name=value, got {assignment!r}")
        *parents, last = dotted.strip().split(".")
        level = values
        for depth, parent in enumerate(parents):
            if not isinstance(level.get(parent), dict):
                raise ValueError(f"{'.'.join(parents[: depth + 1])} is not a part of {type(config).__name__}")
            level = level[parent]
        level[last] = _parse_yaml(text)
    return from_plain(type(config), values)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested dicts as one with dotted keys: `{"model": {"dim": 8}}` → `{"model.dim": 8}`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if type(value) not in _SCALARS and isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


_SCALARS = (float, int, str, bool, type(None))
"""A list of trials flattens many of these: to ask whether one is a mapping takes longer."""


def _names(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _names(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def diff(left: Mapping[str, Any], right: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Returns `{dotted key: (left, right)}` of all that differs; an absent value is None.

    Example:
        >>> diff({"lr": 0.1, "model": {"dim": 8}}, {"lr": 0.1, "model": {"dim": 16}})
        {'model.dim': (8, 16)}
    """
    a, b = flatten(left), flatten(right)
    return {key: (a.get(key), b.get(key)) for key in {**a, **b} if a.get(key) != b.get(key) or (key in a) != (key in b)}


def command_line(cls: type[T], args: Sequence[str] | None = None) -> T:
    """Returns an instance of the dataclass `cls` from the command line; see `Config.cli`."""
    import tyro

    return tyro.cli(cls, args=args)


def read_yaml(path: Path) -> dict[str, Any]:
    """Returns a YAML file's mapping; an empty file is an empty one.

    Raises:
        ValueError: the file is no YAML mapping.
    """
    import yaml  # type: ignore[import-untyped]

    try:
        values = yaml.load(path.read_bytes(), _loader())
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from None
    if _is_endless(values):
        raise ValueError(f"{path} is too large, or holds itself by an alias")
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a mapping, got {type(values).__name__}")
    return values


def write_yaml(path: Path, config: object) -> None:
    """Writes a dataclass or mapping as YAML, atomically."""
    import yaml

    from ai.lab.files.folder import write_atomic

    text = yaml.dump(to_plain(config), sort_keys=False, allow_unicode=True, Dumper=_dumper())
    write_atomic(path, text.encode())


def _parse_yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.load(text, _loader())
    except yaml.YAMLError as error:
        raise ValueError(f"an override's value must be YAML, got {text!r}: {error}") from None


def _is_endless(values: object) -> bool:
    """Whether a value holds itself by aliases, or so much by them that nobody can have written it."""
    below = [values]
    for _ in range(100_000):
        if not below:
            return False
        value = below.pop()
        if isinstance(value, dict | list | set):
            below.extend(value.values() if isinstance(value, dict) else value)
    return True


@functools.cache
def _loader() -> Any:
    """Returns the safe loader, in C where it was built, with 1e-3 read as a number (YAML 1.1 reads it as text)."""
    return _with_numbers("SafeLoader")


@functools.cache
def _dumper() -> Any:
    """Returns the dumper that quotes the texts which that loader would read as numbers."""
    return _with_numbers("SafeDumper")


def _with_numbers(name: str) -> Any:
    import re

    import yaml

    made = type(f"_{name}", (getattr(yaml, f"C{name}", getattr(yaml, name)),), {})
    number = re.compile(r"^[-+]?(\d[\d_]*)?\.?\d+[eE][-+]?\d+$|^[-+]?\d[\d_]*\.[eE][-+]?\d+$")
    made.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789."))  # type: ignore[attr-defined]
    return made


def _check(hint: Any, value: Any, where: str) -> Any:
    """Returns `value` as the annotated type `hint`, or raises."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or isinstance(hint, TypeVar):
        return value
    if origin is typing.Annotated:
        return _check(arguments[0], value, where)
    if origin in (Union, types.UnionType):
        return _check_union(arguments, value, where)
    if origin is Literal:
        if value in arguments:
            return value
        raise TypeError(f"{where} must be one of {', '.join(map(repr, arguments))}, got {value!r}")
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else from_plain(hint, value, where=where)  # type: ignore[arg-type]
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        if isinstance(value, str) and value in hint.__members__:
            return hint[value]
        raise TypeError(f"{where} must be one of {', '.join(hint.__members__)}, got {value!r}")
    if (origin or hint) in (list, set, frozenset, tuple, Sequence, typing.cast(Any, Sequence)):
        return _check_sequence(origin or hint, arguments, value, where)
    if (origin or hint) in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise TypeError(f"{where} must be a mapping, got {value!r}")
        kinds = arguments or (Any, Any)
        return {
            _check(kinds[0], key, f"a key of {where}"): _check(kinds[1], item, f"{where}.{key}")
            for key, item in value.items()
        }
    return _check_scalar(hint, value, where)


def _check_union(arguments: tuple[Any, ...], value: Any, where: str) -> Any:
    for argument in arguments:
        try:
            checked = _check(argument, value, where)
        except (TypeError, ValueError):
            continue
        if type(checked) is type(value) or argument not in (int, float, str):
            return checked
    for argument in arguments:  # nothing fits as it stands: the first that converts
        try:
            return _check(argument, value, where)
        except (TypeError, ValueError):
            continue
    names = " | ".join("None" if kind is type(None) else getattr(kind, "__name__", str(kind)) for kind in arguments)
    raise TypeError(f"{where} must be {names}, got {value!r}")


def _check_sequence(kind: Any, arguments: tuple[Any, ...], value: Any, where: str) -> Any:
    if not isinstance(value, list | tuple | set | frozenset):
        raise TypeError(f"{where} must be a list, got {value!r}")
    items = list(value)
    if kind is tuple and arguments and arguments[-1] is not Ellipsis:
        if len(items) != len(arguments):
            raise TypeError(f"{where} must have {len(arguments)} items, got {len(items)}: {items!r}")
        kinds = list(arguments)
    else:
        kinds = [arguments[0] if arguments else Any] * len(items)
    checked = [_check(hint, item, f"{where}[{i}]") for i, (hint, item) in enumerate(zip(kinds, items, strict=True))]
    return kind(checked) if kind in (tuple, set, frozenset) else checked


def _check_scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is type(None) or hint is None:
        if value is None:
            return None
    elif hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    elif hint is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif hint is Path:
        if isinstance(value, str | Path):
            return Path(value)
    elif isinstance(hint, type) and isinstance(value, hint):
        return value
    name = getattr(hint, "__name__", str(hint))
    article = "an" if name[:1] in "aeiou" else "a"
    raise TypeError(f"{where} must be {article} {name}, got {value!r}")
