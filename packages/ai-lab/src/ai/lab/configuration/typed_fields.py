"""Plain values as the fields of a dataclass, each checked against its annotated type."""

import dataclasses
import enum
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

T = TypeVar("T")


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
