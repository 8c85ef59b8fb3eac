"""The code that a run was made from, as files in its folder: diff, packages, and its script where git does not have it.

What is the same for many trials of an experiment, a study or one folder is on disk once: their files are hard links to
one, so that each folder is whole wherever it is moved.
"""

import contextlib
import hashlib
import heapq
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ai.lab.files.folder import read_marker, write_atomic
from ai.lab.provenance.description import tracked_by_git

CODE = "code"
STORE = ".ai-lab-store"
SCRIPT_LIMIT_BYTES = 1 << 20
"""A longer script is not kept."""
BESIDE = 200
"""In as many folders beside a trial, the last by name, what it shares with them is looked for."""


def keep_code(trial: Path, session: Mapping[str, Any]) -> dict[str, Any]:
    """Moves what is long of a session's description into files of the trial, and returns the rest, which names them."""
    session = dict(session)
    packages = json.dumps(session.pop("packages")).encode()
    session["packages_file"] = keep_once(trial, "packages.json", packages)
    if session["git"] is not None:
        git = dict(session["git"])
        diff = git.pop("diff").encode(errors="surrogateescape")
        session["git"] = {**git, **({"diff_file": keep_once(trial, "changes.diff", diff)} if diff else {})}
    script = _untracked_script()
    if script is not None:
        with contextlib.suppress(OSError):
            data = script.read_bytes()
            if len(data) <= SCRIPT_LIMIT_BYTES:
                session["script_file"] = keep_once(trial, script.name, data)
    return session


def keep_once(trial: Path, name: str, data: bytes) -> str:
    """Writes a file of a trial, unless it is there as it was written, and returns its path inside the folder.

    The same content is on disk once: within an experiment or study, whose folder has a store of it, and among trials
    that lie beside each other in a folder of the user's own, where nothing is added to it.
    """
    inside = f"{CODE}/{_digest(data)}-{name}"
    path = trial / inside
    if _holds(path, data):
        return inside
    path.parent.mkdir(exist_ok=True)
    with contextlib.suppress(OSError):  # a disk without links, or another content of that name: each has its own
        store = _store(trial)
        if store is None:
            kept = _beside(trial, inside, data)
        elif not _holds(kept := store / path.name, data):
            store.mkdir(exist_ok=True)
            write_atomic(kept, data)
        if kept is not None:
            os.link(kept, path)
            return inside
    write_atomic(path, data)
    return inside


def _store(trial: Path) -> Path | None:
    for parent in trial.parents:
        with contextlib.suppress(OSError, ValueError):
            if read_marker(parent) is not None:
                return parent / STORE
    return None


def _beside(trial: Path, inside: str, data: bytes) -> Path | None:
    """Returns the file of that name and content in a folder beside the trial's; None where there is none."""
    with os.scandir(trial.parent) as entries:
        names = [entry.name for entry in entries if entry.name[0] not in ".@" and entry.is_dir(follow_symlinks=False)]
    paths = (trial.parent / name / inside for name in heapq.nlargest(BESIDE, names))
    return next((path for path in paths if _holds(path, data)), None)


def is_as_kept(name: str, data: bytes) -> bool:
    """Returns whether `data` is what was kept under a name: an editor may change a file that trials share."""
    return Path(name).name.partition("-")[0] == _digest(data)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _holds(path: Path, data: bytes) -> bool:
    try:  # a link to what may be taken away or leads elsewhere from here is none to be shared
        return not path.is_symlink() and path.stat().st_size == len(data) and path.read_bytes() == data
    except OSError:
        return False


def _untracked_script() -> Path | None:
    """Returns the script that runs, if it is a file that no commit has."""
    main = sys.modules.get("__main__")
    name = getattr(main, "__file__", None)
    if name is None or getattr(main, "__spec__", None) is not None:  # at a prompt; or `python -m`, a package's
        return None
    path = Path(name)
    return path if path.is_file() and not tracked_by_git(path) else None
