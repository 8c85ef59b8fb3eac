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
    """Returns `numba.njit(**options)` that keeps its code on disk; in memory alone where no folder may be written."""
    from numba import njit

    def compiled(function: Callable[..., Any]) -> Any:
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError as error:
            if "cannot cache" not in str(error):
                raise
            _say_uncached()
            return njit(**options)(function)

    return compiled


@cache
def _say_uncached() -> None:
    warnings.warn(
        "compiled games and searches cannot be kept on disk, so each process compiles them anew: set NUMBA_CACHE_DIR "
        "to a folder that may be written",
        RuntimeWarning,
        stacklevel=2,
    )
