"""The one loader of what the lab wrote as JSON: typed, so that a damaged record says what is wrong with which file.

A part of another type than it should be is left out and told; nothing else is lost for it.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_SMALL_BYTES = 1 << 14
_DECODER = json.JSONDecoder()
DEEPEST = 100
"""Nothing that the lab writes is nested so deeply; who reads it may recurse."""


Types = Mapping[str, type | Callable[[object], bool]]
"""By name what a part must be: a type, or what a function says it is."""


class DamagedError(ValueError):
    """A file holds something else than the lab writes there."""


def load_json(path: str | Path) -> dict[str, Any]:
    """Returns the JSON object in a file.

    Raises:
        FileNotFoundError: there is none.
        DamagedError: it holds no JSON object.
    """
    data = read_small(path)
    try:
        found = parse(data.decode())
    except (ValueError, RecursionError) as error:
        reason = "is nested too deeply" if isinstance(error, RecursionError) else f"is no JSON: {error}"
        raise DamagedError(f"{os.path.basename(path)} is damaged: it {reason}") from None
    if data.count(b"[") + data.count(b"{") > DEEPEST and _is_deep(found):
        raise DamagedError(f"{os.path.basename(path)} is damaged: it is nested too deeply")
    if not isinstance(found, dict):
        got = type(found).__name__
        raise DamagedError(f"{os.path.basename(path)} is damaged: it must hold one JSON object, got {got}")
    return found


def parse(text: str) -> Any:
    """Returns what `json.loads` does, in two thirds of the time where a short text is an object and nothing else.

    Raises:
        ValueError: it is no JSON.
        RecursionError: it is nested too deeply.
    """
    if text.startswith(("{", "[")):
        try:
            found, end = _DECODER.raw_decode(text)
            if end == len(text):
                return found
        except ValueError:
            pass
    return json.loads(text)


def read_small(path: str | Path) -> bytes:
    """Returns what a small file holds, in half the time of `open`: a list of trials reads three files of each.

    Raises:
        OSError: it cannot be read.
    """
    return read_end(path, None)[0]


def read_end(path: str | Path, limit: int | None) -> tuple[bytes, int]:
    """Returns the last `limit` bytes of a file (None: all), and where they begin.

    Raises:
        OSError: it cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        if len(data := os.read(descriptor, _SMALL_BYTES)) < min(_SMALL_BYTES, limit or _SMALL_BYTES):
            return data, 0
        size = os.lseek(descriptor, 0, os.SEEK_END)
        start = 0 if limit is None else max(0, size - limit)
        data = os.pread(descriptor, size - start, start)
        while start + len(data) < size and (part := os.pread(descriptor, size - start - len(data), start + len(data))):
            data += part
        return data, start
    finally:
        os.close(descriptor)


def _is_deep(found: object) -> bool:
    level = [found]
    for _ in range(DEEPEST):
        level = [
            item
            for one in level
            if isinstance(one, dict | list)
            for item in (one.values() if isinstance(one, dict) else one)
        ]
    return bool(level)


def is_number(value: object) -> bool:
    """Returns whether `value` is a number that a float can hold; NaN and infinities are."""
    if type(value) is int:
        return -(2**1000) < value < 2**1000
    return type(value) is float


def is_text(value: object) -> bool:
    """Returns whether `value` is text."""
    return isinstance(value, str)


def is_step(value: object) -> bool:
    """Returns whether `value` is a whole number of 64 bits."""
    return type(value) is int and -(2**63) <= value < 2**63


def is_time(value: object) -> bool:
    """Returns whether `value` is a time in seconds since the epoch that a calendar can show."""
    return is_number(value) and 0 <= value < 2**36  # type: ignore[operator]


def is_kind(value: object) -> bool:
    """Returns whether `value` is a kind of record."""
    return value in ("trial", "experiment", "study")


def is_score(value: object) -> bool:
    """Returns whether `value` is a number, or the text of one that JSON lacks."""
    return is_number(value) or value in ("nan", "inf", "-inf")


def is_list_of(check: Callable[[object], bool]) -> Callable[[object], bool]:
    """Returns the check of a list."""
    return lambda value: type(value) is list and all(map(check, value))


def is_object_of(check: Callable[[object], bool]) -> Callable[[object], bool]:
    """Returns the check of an object's values."""
    return lambda value: type(value) is dict and all(map(check, value.values()))


def is_session(value: object) -> bool:
    """Returns whether `value` describes one process's turn."""
    return type(value) is dict and not _wrong(value, SESSION)


def is_git(value: object) -> bool:
    """Returns whether `value` describes the state of a repository."""
    return type(value) is dict and not _wrong(value, GIT)


GIT: Types = {
    "commit": str,
    "branch": str,
    "remote": str,
    "diff": str,
    "diff_file": str,
    "untracked": is_list_of(is_text),
}
SESSION: Types = {
    "time": is_time,
    "host": str,
    "pid": is_step,
    "cwd": str,
    "argv": is_list_of(is_text),
    "python": str,
    "hardware": dict,
    "packages": is_object_of(is_text),
    "packages_file": str,
    "script_file": str,
    "git": is_git,
    "end": dict,
    "state": str,
}
META: Types = {
    "id": str,
    "state": str,
    "created": is_time,
    "error": str,
    "sessions": is_list_of(is_session),
    "hparams": dict,
    "last": is_object_of(is_number),
    "notes": dict,
    "score": is_score,
    "scores": is_object_of(is_score),
    "steplimit": is_step,
    "started_step": is_step,
    "number": is_step,
    "seed": is_step,
    "experiment": str,
    "config": dict,
}
MARKER: Types = {"kind": is_kind, "id": str, "format": is_step}


def load_typed(path: str | Path, types: Types, required: bool = False) -> tuple[dict[str, Any], list[str]]:
    """Returns what a file holds, its parts of a wrong type left out, and what is wrong with it.

    Raises:
        FileNotFoundError: there is no such file.
    """
    try:
        found = load_json(path)
    except DamagedError as error:
        return {}, [str(error)]
    wrong = _wrong(found, types)
    missing = [name for name in types if found.get(name) is None] if required else []
    if not wrong and not missing:
        return found, []
    file = os.path.basename(path)
    wrong |= {name: f"{file} is damaged: {name} is missing" for name in missing}
    problems = [why or f"{file} is damaged: {name} cannot be {_shown(found[name])}" for name, why in wrong.items()]
    return {name: value for name, value in found.items() if name not in wrong}, problems


def _wrong(found: Mapping[str, Any], types: Types) -> dict[str, str]:
    """Names the parts of a wrong type. None is what a part has that is not known."""
    wrong = {}
    for name, value in found.items():  # a list of trials comes by here fifty times a trial
        if value is None or (fits := types.get(name)) is None or type(value) is fits:
            continue
        if isinstance(fits, type) or not fits(value):
            wrong[name] = ""
    return wrong


def _shown(value: object) -> str:
    try:
        text = "a number too large" if isinstance(value, int) and not is_number(value) else json.dumps(value)
    except (ValueError, RecursionError):
        text = type(value).__name__
    return text if len(text) <= 60 else text[:59] + "…"
