"""Where recorded things live on disk: the lab's root, a folder's marker file, and writes that never tear."""

import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ai.data.storage import atomic_file
from ai.data.storage.paths import expanded
from ai.lab.files.load import MARKER as MARKER_TYPES
from ai.lab.files.load import load_typed

Kind = Literal["trial", "experiment", "study"]

MARKER = ".ai-lab"
"""Name of the file that marks a folder as made by the lab. Only marked folders are ever deleted."""

FORMAT = 1
"""Version of the folder layout; a folder of a later version is refused, an older one is read."""

_TEMPORARY = ".write-"


class LabPathError(OSError):
    """`$AI_LAB_PATH` is no folder, and none can be made there."""


def lab_root() -> Path:
    """Returns the folder that relative paths start from: `$AI_LAB_PATH`, else `./ai-lab`; it need not exist yet.

    Raises:
        LabPathError: what is there is no folder, or lies in what is none.
    """
    root = _root()
    there = next((path for path in (root, *root.parents) if os.path.lexists(path)), root)
    if not there.is_dir():
        raise LabPathError(f"{_root_said()} must be a folder, and {there} is none")
    return root


def lab_folder(name: str) -> Path:
    """Returns the folder of a name in the lab's root, made where it is not there.

    Raises:
        LabPathError: it cannot be made.
    """
    folder = lab_root() / name
    _make(folder)
    return folder


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = f"{error.strerror}: {error.filename}"
        if _root() in (folder, *folder.parents):
            said = f"{_root_said()} must be a folder in which {folder.name!r} can be made: {why}"
            raise LabPathError(said) from error
        raise type(error)(f"path ({folder}) must be a folder that can be made: {why}") from error


def _root() -> Path:
    return expanded(os.environ.get("AI_LAB_PATH") or "ai-lab").absolute()


def _root_said() -> str:
    given = os.environ.get("AI_LAB_PATH")
    return f"AI_LAB_PATH ({given})" if given else "AI_LAB_PATH (not set, so ./ai-lab)"


def resolve(path: str | os.PathLike[str]) -> Path:
    """Returns `path` as an absolute path; a relative one starts at `lab_root()`, and `~` is the home.

    Raises:
        TypeError: `path` is neither text nor a path of text.
        ValueError: `path` is empty, leads out of the lab's root with `..`, or would be hidden in it.
        LabPathError: it is relative, and `$AI_LAB_PATH` is no folder.
    """
    if path == "":
        raise ValueError("path must name a folder, got an empty string")
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str):
        raise TypeError(f"path must be text or a pathlib.Path, got {path!r}")
    text = os.path.expanduser(text)
    if os.path.isabs(text):
        return Path(os.path.normpath(text))
    root = lab_root()
    resolved = Path(os.path.normpath(root / text))
    if resolved == root or root not in resolved.parents:
        raise ValueError(f"path must lie inside the lab's root {root} or be absolute, got {text!r}")
    refuse_hidden("path", resolved.relative_to(root))
    return resolved


def refuse_hidden(name: str, path: Path) -> None:
    """Raises `ValueError` for a path of which a part begins with a dot: no list looks there."""
    if any(part.startswith(".") for part in path.parts):
        raise ValueError(f"{name} must have no part that begins with a dot, where no list looks, got {str(path)!r}")


def mark(folder: Path, kind: Kind) -> str:
    """Makes `folder` one of the lab's and returns its identity, which survives moving and renaming.

    Raises:
        ValueError: the folder is already marked as another kind, holds files but no marker, or lies in a trial's.
        OSError: it cannot be made; `LabPathError` where it lies in the lab's root.
    """
    found = read_marker(folder)
    if found is None and (trial := enclosing_trial(folder)) is not None:
        raise ValueError(f"path {folder} lies in the folder of the trial {trial}; choose another path")
    if found is not None:
        if found["kind"] != kind:
            raise ValueError(f"path {folder} holds a recorded {found['kind']}, not a {kind}; choose another path")
        return str(found["id"])
    if folder.is_dir() and any(not entry.name.startswith(_TEMPORARY) for entry in folder.iterdir()):
        if read_marker(folder) is not None:  # another process made it since we looked
            return mark(folder, kind)
        raise ValueError(f"path {folder} is not empty and was not made by ai.lab; choose another path")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"path {folder} is a file; choose another path")
    _make(folder)
    marker = {"kind": kind, "id": uuid.uuid4().hex, "format": FORMAT}
    # Of two processes that make the same folder at once, one links its marker first and both read that one.
    data = json.dumps(marker).encode()
    temporary = atomic_file.write_beside(folder / MARKER, lambda file: file.write(data), prefix=_TEMPORARY)
    try:
        os.link(temporary, folder / MARKER)
    except FileExistsError:
        return mark(folder, kind)
    except OSError:  # a file system without hard links
        os.replace(temporary, folder / MARKER)
        return str(marker["id"])
    finally:
        temporary.unlink(missing_ok=True)
    return str(marker["id"])


def read_marker(folder: Path | str) -> dict[str, Any] | None:
    """Returns the marker of `folder`, None where there is none.

    Raises:
        ValueError: the marker is damaged, or the folder was written in a later format.
    """
    try:
        marker, problems = load_typed(f"{folder}/{MARKER}", MARKER_TYPES, required=True)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if problems:
        raise ValueError(f"{folder}: {problems[0]}")
    if marker["format"] > FORMAT:
        raise ValueError(
            f"{folder} is of folder format {marker['format']}, this version reads up to {FORMAT}; update ai-lab"
        )
    return marker


def enclosing_trial(folder: Path) -> Path | None:
    """Returns the trial in whose folder `folder` lies, if any: no record lies in a trial's folder."""
    for parent in folder.parents:
        try:
            marker = read_marker(parent)
        except (OSError, ValueError):
            continue
        if marker is not None and marker["kind"] == "trial":
            return parent
    return None


class Found(NamedTuple):
    """A marked folder: its marker, or what is wrong with it."""

    path: Path
    marker: dict[str, Any] | None
    problem: str | None = None


def scan(root: Path, *, inside_trials: bool = False) -> Iterator[Found]:
    """Yields the marked folders under `root`, itself included, each before those inside it; links are not followed.

    Args:
        root: Where to look.
        inside_trials: Whether to look into trials too, where nothing of ours should lie.
    """
    if not root.is_dir():
        return
    try:
        marker = read_marker(root)
        if marker is not None:
            yield Found(root, marker)
    except (OSError, ValueError) as error:
        marker = None
        yield Found(root, None, str(error))
    if marker is not None and marker["kind"] == "trial" and not inside_trials:
        return
    try:
        with os.scandir(root) as entries:
            children = sorted(
                entry.path for entry in entries if entry.is_dir(follow_symlinks=False) and entry.name[0] != "."
            )
    except OSError:  # no right to look, or deleted in this moment
        return
    for child in children:
        yield from scan(Path(child), inside_trials=inside_trials)


def find(root: Path, kind: Kind | None = None) -> Iterator[Path]:
    """Yields the marked folders under `root` as `scan` does, without those whose marker cannot be read."""
    for path, marker, _ in scan(root):
        if marker is not None and kind in (None, marker["kind"]):
            yield path


def write_atomic(path: Path, data: bytes) -> None:
    """Writes a whole file: a reader sees the old content or the new, also after a crash."""
    atomic_file.write_atomic(path, lambda file: file.write(data), prefix=_TEMPORARY)


def write_json(path: Path, value: object) -> None:
    """Writes `value` as indented JSON, atomically; what JSON lacks (paths, numpy numbers) becomes text."""
    write_atomic(path, json.dumps(value, indent=1, default=str).encode())


def remove_litter(folder: Path) -> None:
    """Deletes what killed processes left of unfinished writes; only for who alone writes in `folder`."""
    for path in folder.glob(f"{_TEMPORARY}*"):
        path.unlink(missing_ok=True)
