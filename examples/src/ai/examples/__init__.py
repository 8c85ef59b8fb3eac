"""Worked examples, each imported on first use."""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ai.examples import mnist as mnist

__all__ = ["mnist"]

if not TYPE_CHECKING:  # seen by a type checker, a module __getattr__ would type every misspelling as Any

    def __getattr__(name: str) -> ModuleType:
        if name in __all__:
            return import_module(f"{__name__}.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; the examples are {', '.join(__all__)}")
