"""Whether compiled kernels are used: yes when numba is installed, unless `$AI_GAME_NUMBA` is `0`."""

import os
import re
import warnings
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from importlib import import_module
from importlib.util import find_spec
from types import FunctionType, ModuleType
from typing import Any

import numpy as np


@cache
def available() -> bool:
    """Returns whether numba is installed and not switched off; numba itself is not imported."""
    return os.environ.get("AI_GAME_NUMBA", "1") != "0" and find_spec("numba") is not None


def kernels(name: str) -> ModuleType | None:
    """Returns the compiled twin of the module that passes its `__name__`, or None without numba."""
    return _twin(name) if available() else None


@cache
def _twin(name: str) -> ModuleType:
    return import_module(f"{name}_numba")


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


def bound(template: Callable[..., Any], **functions: Callable[..., Any]) -> Any:
    """Returns a function written with free names, compiled where numba is, in which those names are `functions`.

    A closure would do the same, but numba finds a closure over functions on no disk. Here each set of functions has a
    name of its own, told by their code and that of all they call, so that what was compiled once is found again, also
    of games at a prompt, and never mistaken for another. In one process the same functions give the same object.

    Args:
        template: a function of a module, whose file keeps the code.
        functions: by the names that stand for them; compiled as well.
    """
    scope = {**template.__globals__, **functions}
    if not available():
        return FunctionType(template.__code__, scope, template.__name__, template.__defaults__)
    name = f"{template.__name__}_{_digest(*functions.values())}"
    if (key := (template, name, tuple(functions))) not in _BOUND:
        scope |= {part: _compiled_part(function, forceinline=True) for part, function in functions.items()}
        code = template.__code__.replace(co_name=name, co_qualname=name)
        whole = FunctionType(code, scope, name, template.__defaults__)
        _BOUND[key] = _Bound(jit(error_model="numpy")(whole), tuple(functions))
    return _BOUND[key]


_BOUND: dict[tuple[Any, ...], Any] = {}  # to read a function from the disk takes longer than many games


class _Bound:
    """A compiled function that names those given to it where they cannot be compiled."""

    def __init__(self, compiled: Any, names: tuple[str, ...]) -> None:
        self.compiled, self._names = compiled, names

    def __call__(self, *args: Any) -> Any:
        try:
            return self.compiled(*args)
        except Exception as error:
            if not type(error).__module__.startswith("numba."):
                raise
            text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))  # numba colours what it says where colorama is installed
            lines = [line for line in text.splitlines() if line.strip() and not line.startswith("Failed in ")]
            raise TypeError(
                f"{' and '.join(self._names)} must be written as numba compiles it: {lines[0]} (AI_GAME_NUMBA=0 runs "
                "it as it stands)"
            ) from error


_PARTS: dict[tuple[str, bool], Any] = {}


def _compiled_part(function: Callable[..., Any], *, forceinline: bool = False) -> Any:
    """Returns a function compiled to be part of others; it is not kept on disk by itself."""
    from numba import njit

    key = _digest(function), forceinline
    if key not in _PARTS:
        parts = {
            name: _compiled_part(value)
            for name, value in function.__globals__.items()
            if isinstance(value, FunctionType) and name in function.__code__.co_names
        }
        scope, name = function.__globals__ | parts, function.__name__
        whole = FunctionType(function.__code__, scope, name, function.__defaults__, function.__closure__)
        _PARTS[key] = njit(error_model="numpy", forceinline=forceinline)(whole)
    return _PARTS[key]


def _digest(*functions: Callable[..., Any]) -> str:
    """Returns what tells functions apart: a digest of their code and of all that it computes by."""
    mark = sha256()
    for function in functions:
        _identify(function, mark, set())
    return mark.hexdigest()[:16]


def _identify(function: Callable[..., Any], mark: Any, seen: set[Any]) -> None:
    """Adds all that a function computes by to a digest: its code, what it closes over, globals, what it calls."""
    code = function.__code__
    if code in seen:
        return
    seen.add(code)
    cells = [cell.cell_contents for cell in function.__closure__ or ()]
    used = {name: function.__globals__[name] for name in sorted(code.co_names) if name in function.__globals__}
    mark.update(repr((code.co_code, code.co_consts, code.co_names, code.co_varnames, function.__defaults__)).encode())
    values = [*cells, *used.values()]
    for value in values:
        value = getattr(value, "py_func", value)  # compiled already
        if isinstance(value, FunctionType):
            _identify(value, mark, seen)
        elif isinstance(value, ModuleType):
            mark.update(value.__name__.encode())
        elif isinstance(value, np.ndarray):
            mark.update(repr((value.dtype, value.shape)).encode() + value.tobytes())
        elif isinstance(value, tuple):  # whose arrays repr would shorten
            mark.update(f"{type(value).__name__} of {len(value)}".encode())
            values += value
        else:
            mark.update(repr(value).encode())


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
