"""Versions of Python and of our distributions: the same where a function was pickled and where it runs."""

import platform
from collections.abc import Mapping
from importlib import metadata

_PARTS = ("ai-model", "ai-data", "ai-train", "ai-infer", "ai-game", "ai-lab")


def installed() -> dict[str, str]:
    """Returns the versions of Python, without the patch, and of our distributions."""
    found = {"Python": ".".join(platform.python_version_tuple()[:2])}
    for part in _PARTS:
        try:
            found[part] = metadata.version(part)
        except metadata.PackageNotFoundError:
            continue
    return found


def mismatch(theirs: Mapping[str, str], ours: Mapping[str, str], where: str = "where the trainer runs") -> str | None:
    """Returns what differs, of what both have; what only one has is missed when it is needed, by name."""
    for name in ours:
        if theirs.get(name, ours[name]) != ours[name]:
            return f"{name} is {theirs[name]} but {ours[name]} {where}: install the same version"
    return None
