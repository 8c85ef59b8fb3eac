"""Whether compiled kernels are used: yes when numba is installed, unless `$AI_GAME_NUMBA` is `0`."""

import contextlib
import os
import re
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable
from enum import EnumType
from functools import cache
from hashlib import sha256
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np

LARGEST_TABLE = 16_000_000  # bytes that compiled code keeps of one array; a game's functions keep it once each
MOST_KEPT = 512  # functions whose code lies in one folder; a game has up to seven there


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

    What is kept is found by all that the function computes by, also by what other modules hold: numba looks at its own
    file alone. No state of the disk is an error: a folder that may not be written, a full one, code that another
    version left.
    """

    def compiled(function: Callable[..., Any]) -> Any:
        function.__qualname__ += f"_{_digest(part=function)}"
        return _kept(function, options)

    return compiled


def _kept(function: Callable[..., Any], options: dict[str, Any], unchanged: Callable[[], bool] = lambda: True) -> Any:
    """Returns a function compiled and kept, unless what it reads is no longer what its name was made of."""
    try:
        made = _njit(cache=True, **options)(function)
    except RuntimeError as error:
        if "cannot cache" not in str(error):
            raise
        _say_uncached()
        return _njit(**options)(function)
    _forgive(made._cache, unchanged)
    return made


def _njit(**options: Any) -> Any:
    """Returns `numba.njit(**options)` that writes tables into the code up to `LARGEST_TABLE`.

    By itself numba does so up to 1 MB, of what lies without gaps; else the code holds the address, and cannot be kept.
    """
    from numba import njit

    return njit(pipeline_class=_compiler(), **options)


@cache
def _compiler() -> Any:
    from numba.core.compiler import Compiler

    class WithTables(Compiler):
        def __init__(self, typingctx: Any, targetctx: Any, *rest: Any) -> None:
            context = targetctx.subtarget()
            by_address = context.make_constant_array

            def make_constant_array(builder: Any, kind: Any, table: Any) -> Any:
                context.allow_dynamic_globals = table.nbytes > LARGEST_TABLE
                if not context.allow_dynamic_globals and kind.layout == "A":
                    table = table.copy("C")  # written without gaps, so its strides must be those of such an array
                try:
                    return by_address(builder, kind, table)
                finally:
                    context.allow_dynamic_globals = True

            context.make_constant_array = make_constant_array
            super().__init__(typingctx, context, *rest)  # type: ignore[no-untyped-call]

    return WithTables


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
    mark = _digest(template=template, **functions)
    name = f"{template.__name__}_{mark}"
    if (key := (template, name)) not in _BOUND:
        scope |= {part: _compiled_part(function, forceinline=True) for part, function in functions.items()}
        code = template.__code__.replace(co_name=name, co_qualname=name)
        whole = FunctionType(code, scope, name, template.__defaults__)
        kept = _kept(whole, {"error_model": "numpy"}, lambda: _digest(template=template, **functions) == mark)
        _BOUND[key] = _Bound(kept, tuple(functions))
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
    key = _digest(part=function), forceinline
    if key not in _PARTS:
        function = _written(function)
        cells = [_part_of(cell.cell_contents) for cell in function.__closure__ or ()]
        scope, closure = dict(function.__globals__), tuple(map(CellType, cells)) or None
        whole = FunctionType(function.__code__, scope, function.__name__, function.__defaults__, closure)
        _PARTS[key] = _njit(error_model="numpy", forceinline=forceinline)(whole)  # known before those that may call it
        scope |= {name: _part_of(value) for name, value in _globals_of(function).items()}
    return _PARTS[key]


def _part_of(value: Any) -> Any:
    return _compiled_part(value) if isinstance(value, FunctionType) else value


def _digest(**functions: Callable[..., Any]) -> str:
    """Returns what tells functions apart: a digest of their names, their code and all that they compute by."""
    mark, seen = sha256(), dict[Any, int]()
    for name, function in functions.items():
        mark.update(name.encode())
        _identify(_written(function), (), mark, seen)
    return mark.hexdigest()[:16]


def _written(function: Any) -> FunctionType:
    """Returns a function as it was written, also where it is compiled already or a method."""
    function = getattr(function, "py_func", function)
    function = getattr(function, "__func__", function)
    if not isinstance(function, FunctionType):
        raise TypeError(f"what is compiled must be a function, got {function!r}")
    return function


def _codes(code: CodeType) -> list[CodeType]:
    """Returns a function's code and that of the functions and comprehensions in it."""
    return [code, *(deep for const in code.co_consts if isinstance(const, CodeType) for deep in _codes(const))]


def _globals_of(function: FunctionType) -> dict[str, Any]:
    names = {name for code in _codes(function.__code__) for name in code.co_names}
    return {name: function.__globals__[name] for name in sorted(names) if name in function.__globals__}


def _identify(value: Any, names: tuple[str, ...], mark: Any, seen: dict[Any, int]) -> None:
    """Adds to a digest all that a value is to the code that reads it: nothing may be shortened, or be an address.

    Args:
        value: a function, with what it closes over, its globals and what it calls; or what a function reads.
        names: what that function may read of it, where it is a module.
        mark: the digest.
        seen: the functions and modules in it, which may lead to each other.
    """
    options = getattr(value, "targetoptions", None)
    value = getattr(value, "py_func", value)  # compiled already
    more: dict[str, Any] = {}
    if isinstance(value, (FunctionType, ModuleType, type)) and (value, names) in seen:
        said: Any = "again", seen[value, names]
    elif (home := _library(value)) is not None:
        said = home
    elif isinstance(value, FunctionType):
        seen[value, names] = len(seen)
        codes = _codes(value.__code__)
        consts = [[const for const in code.co_consts if not isinstance(const, CodeType)] for code in codes]
        said = options, consts, [(code.co_code, code.co_names, code.co_varnames, code.co_freevars) for code in codes]
        names = tuple(sorted({name for code in codes for name in code.co_names}))
        cells = tuple(cell.cell_contents for cell in value.__closure__ or ())
        more = {"defaults": value.__defaults__, "cells": cells, **_globals_of(value)}
    elif isinstance(value, ModuleType):
        seen[value, names] = len(seen)
        said = value.__name__
        more = {name: getattr(value, name) for name in names if hasattr(value, name)}
    elif isinstance(value, EnumType):
        said = value.__module__, value.__qualname__
        more = {name: value.__members__[name].value for name in value.__members__}
    elif isinstance(value, type):
        said = value.__module__, value.__qualname__, getattr(value, "_fields", ())
    elif isinstance(value, (np.ndarray, np.generic)):
        said = value.dtype, value.shape, sha256(value.tobytes()).hexdigest()
    elif isinstance(value, tuple):
        said = len(value)
        more = {"type": type(value), **{str(index): part for index, part in enumerate(value)}}
    else:
        said = value
    mark.update(repr(said).encode())
    for name, part in more.items():
        mark.update(name.encode())
        _identify(part, names, mark, seen)


def _library(value: Any) -> str | None:
    """Returns the name of what numba compiles by itself: it is not looked into."""
    home = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
    if not isinstance(home, str) or home.partition(".")[0] not in ("builtins", "math", "numba", "numpy"):
        return None
    name = getattr(value, "__name__", "")
    module = sys.modules.get(home)
    return f"{home}.{name}" if module is value or (name and getattr(module, name, None) is value) else None


def _forgive(cache: Any, unchanged: Callable[[], bool]) -> None:
    """Has a cache of numba's begin anew where it cannot be read, and do without where it cannot be written.

    What is no longer `unchanged` when it is compiled is not written: another process would take it for what it was.
    """
    load, save, index = cache.load_overload, cache.save_overload, Path(cache._cache_file._index_path)

    def load_overload(signature: Any, context: Any) -> Any:
        try:
            found = load(signature, context)
        except Exception:
            cache.flush()
            return None
        with contextlib.suppress(OSError):
            os.utime(index)
        return found

    def save_overload(signature: Any, data: Any) -> None:
        try:
            if unchanged():
                save(signature, data)
                _drop_oldest(index)
        except OSError:
            _say_uncached()

    cache.load_overload, cache.save_overload = load_overload, save_overload


_OURS = re.compile(
    r"(.+_[0-9a-f]{16}-[0-9a-f]+\.py\w+)\.(nbi|\d+\.nbc)"
)  # what else numba compiled in a folder has no digest


def _drop_oldest(written: Path) -> None:
    """Deletes what was not used for longest: names tell code, so that what an older version left is not overwritten.

    Args:
        written: an index, now: what seems to be newer was left by a clock that went wrong.
    """
    files, used = defaultdict[str, list[Path]](list), list[tuple[float, str]]()
    try:
        os.utime(written)
        now = written.stat().st_mtime
    except OSError:  # another process deletes as well
        return
    for file in sorted(written.parent.iterdir(), reverse=True):  # of a function the index before its code
        if ours := _OURS.fullmatch(file.name):
            files[ours[1]].append(file)
    for name, (index, *_) in files.items():
        with contextlib.suppress(OSError):
            time = index.stat().st_mtime
            used.append((time if time <= now else 0.0, name))
    for _, name in sorted(used)[:-MOST_KEPT]:
        for file in files[name]:
            with contextlib.suppress(OSError):
                file.unlink()


@cache
def _say_uncached() -> None:
    warnings.warn(
        "compiled games and searches cannot be kept on disk, so each process compiles them anew: set NUMBA_CACHE_DIR "
        "to a folder that may be written",
        RuntimeWarning,
        stacklevel=2,
    )
