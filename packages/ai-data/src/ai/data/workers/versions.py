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
_TRAINER = "where the trainer runs"


@functools.cache  # as the files are when it is first asked for: later edits are not what runs here
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


def mismatch(theirs: Mapping[str, str], ours: Mapping[str, str], where: str = _TRAINER) -> str | None:
    """Returns which version differs, of what both have; what only one has is missed when it is needed, by name."""
    for name in _differing(theirs, ours):
        if not name.startswith(_CODE):
            return f"{name} is {theirs[name]} but {ours[name]} {where}: install the same version"
    return None


def other_code(theirs: Mapping[str, str], ours: Mapping[str, str], where: str = _TRAINER) -> str | None:
    """Returns which code differs though its version does not: nothing to refuse, who edits a checkout goes on."""
    parts = [name.removeprefix(_CODE) for name in _differing(theirs, ours) if name.startswith(_CODE)]
    if not parts:
        return None
    return (
        f"the code of {', '.join(parts)} is another one than {where}, though the version is the same: it was edited "
        "since that began, or is of another commit"
    )


def _differing(theirs: Mapping[str, str], ours: Mapping[str, str]) -> list[str]:
    return [name for name in ours if theirs.get(name, ours[name]) != ours[name]]


def _digest(package: str) -> str | None:
    """Returns a digest of a package's source files; None where there are none, or where one cannot be read."""
    spec = util.find_spec(package)
    digest, n = hashlib.sha256(), 0
    for root in map(Path, (spec and spec.submodule_search_locations) or ()):
        for path in sorted(root.rglob("*.py")):
            if any(part.startswith(".") for part in path.relative_to(root).parts):  # an editor's own
                continue
            try:
                text = path.read_bytes()
            except OSError:
                return None
            digest.update(f"{path.relative_to(root).as_posix()} {len(text)}\n".encode() + text)
            n += 1
    return digest.hexdigest()[:10] if n else None
