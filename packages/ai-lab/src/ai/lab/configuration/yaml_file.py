"""YAML files of configurations, in which `1e-3` is a number."""

import functools
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

from ai.lab.configuration.plain_values import to_plain
from ai.lab.files.folder import write_atomic


def read_yaml(path: Path) -> dict[str, Any]:
    """Returns a YAML file's mapping; an empty file is an empty one.

    Raises:
        ValueError: the file is no YAML mapping, or a key stands twice in one.
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

    text = yaml.dump(to_plain(config), sort_keys=False, allow_unicode=True, Dumper=_dumper())
    write_atomic(path, text.encode())


def parse_yaml(text: str) -> Any:
    """Returns the value that the text of an override is in YAML.

    Raises:
        ValueError: it is none, or a key stands twice in it.
    """
    import yaml

    try:
        return yaml.load(text, _loader())
    except (yaml.YAMLError, RecursionError, ValueError) as error:
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
    """Returns the safe loader, in C where it was built, that takes a key once.

    It reads 1e-3 as a number, which YAML 1.1 reads as text.
    """
    made = _with_numbers("SafeLoader")

    class Loader(made):  # type: ignore[misc, valid-type]
        def get_single_node(self) -> Any:
            node = super().get_single_node()  # before any `<<` has put another mapping's keys beside its own
            _check_once(node, self.construct_object)
            return node

    return Loader


def _check_once(root: Any, value_of: Callable[[Any], Any]) -> None:
    """Raises `ValueError` where a key of a mapping stands twice in it: the last one would win without a word."""
    import yaml

    below, known = [root], set()
    while below:
        node = below.pop()
        if id(node) in known or not isinstance(node, yaml.CollectionNode):
            continue
        known.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            below.extend(node.value)
            continue
        lines: dict[Any, int] = {}
        for key, value in node.value:
            below.append(value)
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            name, line = value_of(key), key.start_mark.line + 1
            if not isinstance(name, Hashable):
                continue  # which is refused as a key below
            if name in lines:
                where = f"lines {lines[name]} and {line}" if line != lines[name] else f"line {line}"
                raise ValueError(f"the key {name!r} stands twice, in {where}")
            lines[name] = line


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
