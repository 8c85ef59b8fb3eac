"""Whether compiled kernels are used: yes when numba is installed, unless `$AI_GAME_NUMBA` is `0`."""

import os
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType


@cache
def available() -> bool:
    """Returns whether numba is installed and not switched off; numba itself is not imported."""
    return os.environ.get("AI_GAME_NUMBA", "1") != "0" and find_spec("numba") is not None


@cache
def kernels(name: str) -> ModuleType | None:
    """Returns the compiled twin of the module that passes its `__name__`, or None without numba."""
    return import_module(f"{name}_numba") if available() else None
