"""Python and our distributions: the same where a function was pickled and where it runs, by version and by code."""

import functools
import hashlib
import platform
from collections.abc import Mapping
from importlib import metadata, util
from pathlib import Path

_PARTS = ("ai-model", "ai-data", "ai-train", "ai-infer", "ai-game", "ai-lab")
# Before the name of a distribution: the key of what tells two commits of one version apart.
_CODE = "code of "


@functools.cache  # by the files as they were when they were loaded, or soon after
def installed() -> Mapping[str, str]:
    """Returns the versions of Python, without the patch, and of our distributions, and a digest of the code of each."""
    found = {"Python": ".".join(platform.python_version_tuple()[:2])}
    for part in _PARTS:
        try:
            found[part] = metadata.version(part)
        except metadata.PackageNotFoundError:
            continue
        if digest := _digest(part.replace("-", ".")):
            found[_CODE + part] = digest
    return found


def mismatch(theirs: Mapping[str, str], ours: Mapping[str, str], where: str = "where the trainer runs") -> str | None:
    """Returns what differs, of what both have; what only one has is missed when it is needed, by name."""
    for name in ours:
        if theirs.get(name, ours[name]) == ours[name]:
            continue
        if name.startswith(_CODE):
            part = name.removeprefix(_CODE)
            return (
                f"{part} is {ours[part]} as {where}, but its code is another one ({theirs[name]}, there {ours[name]}): "
                "install the same commit"
            )
        return f"{name} is {theirs[name]} but {ours[name]} {where}: install the same version"
    return None


def _digest(package: str) -> str | None:
    """Returns a digest of a package's source files; None where there are none."""
    spec = util.find_spec(package)
    digest, n = hashlib.sha256(), 0
    for root in map(Path, (spec and spec.submodule_search_locations) or ()):
        for path in sorted(root.rglob("*.py")):
            text = path.read_bytes()
            digest.update(f"{path.relative_to(root).as_posix()} {len(text)}\n".encode() + text)
            n += 1
    return digest.hexdigest()[:10] if n else None
