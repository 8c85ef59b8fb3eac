"""The classes that a message names: importing one and running its constructor is for those who are trusted alone."""

import dataclasses
import sys
from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from types import ModuleType
from typing import Any

from ai.infer.transport.errors import WireError


@lru_cache(maxsize=1024)
def find_class(name: str) -> type[Any]:
    """Returns the dataclass or named tuple called `module:Class`, imported if need be: the message is trusted."""
    module_name, _, path = name.partition(":")
    try:
        found: Any = sys.modules.get(module_name) or import_module(module_name)
        for part in path.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise WireError(f"the class {name!r} of a message must be importable here: {error}") from None
    return _check(name, found)


def _find_loaded(name: str) -> type[Any]:
    """Returns the dataclass or named tuple called `module:Class` if it is here already; no code runs to find it."""
    module_name, _, path = name.partition(":")
    found: Any = sys.modules.get(module_name)
    for part in path.split("."):
        # Not getattr: a module's own __getattr__ and a class's descriptors are code.
        kind = ModuleType if isinstance(found, ModuleType) else type if isinstance(found, type) else None
        found = None if kind is None else kind.__getattribute__(found, "__dict__").get(part)
    if found is None:
        raise WireError(f"the class {name!r:.200} of a request must be one that the worker's model has imported")
    return _check(name, found)


def _check(name: str, found: Any) -> type[Any]:
    if not isinstance(found, type) or not (
        dataclasses.is_dataclass(found) or (issubclass(found, tuple) and hasattr(found, "_fields"))
    ):
        raise WireError(f"the class {name!r} of a message must be a dataclass or a named tuple")
    return found


def make_dataclass(name: str, values: dict[str, Any]) -> Any:
    """Returns an object of a dataclass, made by its constructor: the message is trusted."""
    found = find_class(name)
    made = {field.name for field in dataclasses.fields(found) if not field.init}
    return found(**{key: x for key, x in values.items() if key not in made})


def fill_dataclass(name: str, values: dict[str, Any]) -> Any:
    """Returns an object of a stranger's choice of dataclass with these fields; its constructor does not run."""
    found = _find_loaded(name)
    if not dataclasses.is_dataclass(found) or found.__new__ is not object.__new__:
        raise WireError(f"the class {name!r} of a request must be a plain dataclass")
    fields = {field.name: field for field in dataclasses.fields(found)}
    unknown = sorted(values.keys() - fields.keys())
    if unknown:
        raise WireError(f"the class {name!r} of a request has no field {unknown[0]!r:.40}")
    made = object.__new__(found)
    for key, field in fields.items():
        if key in values:
            object.__setattr__(made, key, values[key])
        elif field.default is not dataclasses.MISSING:
            object.__setattr__(made, key, field.default)
        elif field.init:
            raise WireError(f"the class {name!r} of a request must have its field {key!r:.40}")
    return made


def fill_named_tuple(name: str, items: Sequence[Any]) -> Any:
    """Returns a named tuple of a stranger's choice of class; its constructor does not run."""
    found = _find_loaded(name)
    names = vars(found).get("_fields")
    if not issubclass(found, tuple) or not isinstance(names, tuple) or len(items) != len(names):
        raise WireError(f"the class {name!r} of a request must be a named tuple of {len(items)} fields")
    return tuple.__new__(found, items)
