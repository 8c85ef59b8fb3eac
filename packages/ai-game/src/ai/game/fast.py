"""Whether compiled kernels are used: yes when numba is installed, unless `$AI_GAME_NUMBA` is `0`."""

import os
import warnings
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any


@cache
def available() -> bool:
    """Returns whether numba is installed and not switched off; numba itself is not imported."""
    return os.environ.get("AI_GAME_NUMBA", "1") != "0" and find_spec("numba") is not None


@cache
def kernels(name: str) -> ModuleType | None:
    """Returns the compiled twin of the module that passes its `__name__`, or None without numba."""
    return import_module(f"{name}_numba") if available() else None


def jit(**options: Any) -> Any:
    """Returns `numba.njit(**options)` that keeps its code on disk, or in memory alone where that cannot be.

    No state of the disk is an error: a folder that may not be written, a full one, code that another version left.
    """
    from numba import njit

    def compiled(function: Callable[..., Any]) -> Any:
        try:
            made = njit(cache=True, **options)(function)
        except RuntimeError as error:
            if "cannot cache" not in str(error):
                raise
            _say_uncached()
            return njit(**options)(function)
        _forgive(made._cache)
        return made

    return compiled


def _forgive(cache: Any) -> None:
    """Has a cache of numba's begin anew where it cannot be read, and do without where it cannot be written."""
    load, save = cache.load_overload, cache.save_overload

    def load_overload(signature: Any, context: Any) -> Any:
        try:
            return load(signature, context)
        except Exception:
            cache.flush()
            return None

    def save_overload(signature: Any, data: Any) -> None:
        try:
            save(signature, data)
        except OSError:
            _say_uncached()

    cache.load_overload, cache.save_overload = load_overload, save_overload


@cache
def _say_uncached() -> None:
    warnings.warn(
        "compiled games and searches cannot be kept on disk, so each process compiles them anew: set NUMBA_CACHE_DIR "
        "to a folder that may be written",
        RuntimeWarning,
        stacklevel=2,
    )
