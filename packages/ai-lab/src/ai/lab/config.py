"""Configurations: a dataclass is the schema, YAML the file, dotted names the overrides.

Any dataclass works; `Config` adds the same operations as methods. Field types are checked when values come from
outside: `bool`, `int`, `float`, `str`, `None`, `Path`, enums, `Literal`, unions, `list`, `tuple`, `dict` and nested
dataclasses.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from ai.data.storage.paths import expanded
from ai.lab.configuration.plain_values import to_plain
from ai.lab.configuration.typed_fields import from_plain
from ai.lab.configuration.yaml_file import parse_yaml, read_yaml, write_yaml

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
        level[last] = parse_yaml(text)
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
