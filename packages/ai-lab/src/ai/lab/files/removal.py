"""Deleting what the lab recorded, and nothing else: what it does not know is moved aside, and said."""

import os
import re
import shutil
import sys
from pathlib import Path

from ai.lab.files.folder import MARKER, read_marker, scan
from ai.lab.files.ownership import FILE as OWNER
from ai.lab.files.ownership import OwnedError, Owner, give_up_left_open, holder, refusal

_FILES = {
    "trial": r"(meta|owner|marks)\.json(\..*)?|config\.yaml|log\.txt|(metrics|system)\.(jsonl|columns|png|svg|pdf)",
    "experiment": r"experiment\.(json|png|svg|pdf)|(optuna|take)\.(log|lock)(\..*)?|work\.job",
    "study": r"notes\.md|(comparison|samples)\.(png|svg|pdf)",
}
"""By kind: the names of files that the lab writes."""
_TEMPORARY = r"|\.write-.*"
_ROOMS = {
    "trial": {
        "snapshots": r"\d+|\..*",
        "samples": r"\d+\.png|\..*",
        "media": r"\d+",
        "code": r"[0-9a-f]{16}-.*",
        "tensorboard": ".*",
        "wandb": ".*",
    },
    "experiment": {"workers": r".*\.log", "trials": r"owner\.json(\..*)?", ".ai-lab-store": r"[0-9a-f]{16}-.*"},
    "study": {".ai-lab-store": r"[0-9a-f]{16}-.*"},
}
"""By kind: its folders, and the names that the lab writes in them."""


def remove_unowned(folder: Path) -> None:
    """Deletes a marked folder and the records in it, unless a live process writes there; of several ranks rank 0 does.

    What the lab did not write is moved to a folder beside it, whose name is printed.

    Raises:
        OwnedError: a live process writes a trial there.
        ValueError: the folder carries no marker, or is a link.
    """
    if int(os.environ.get("RANK") or 0) > 0:
        return
    if folder.is_symlink():
        raise ValueError(f"{folder} is a link, so it is not deleted; name the folder that it leads to")
    if not folder.exists():
        return
    if read_marker(folder) is None:
        raise ValueError(f"{folder} was not made by ai.lab (no {MARKER} file), so it is not deleted")
    for path, _, _ in scan(folder, inside_trials=True):
        give_up_left_open(path)
        if (found := holder(path)) is not None:
            raise OwnedError(refusal(path, found))
    aside = _Aside(folder)
    _remove(folder, aside)
    aside.tell()


class _Aside:
    """Where things go that are not the lab's to delete."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._place: Path | None = None
        self._moved: list[str] = []

    def move(self, path: Path) -> None:
        if self._place is None:
            number = 0
            while True:
                self._place = self._folder.with_name(f"{self._folder.name}.kept" + (f"-{number}" if number else ""))
                try:
                    self._place.mkdir()
                    break
                except FileExistsError:
                    number += 1
        name = path.relative_to(self._folder)
        (self._place / name).parent.mkdir(parents=True, exist_ok=True)
        os.rename(path, self._place / name)
        self._moved.append(str(name))

    def tell(self) -> None:
        if self._moved:
            names = ", ".join(self._moved[:5]) + (f" and {len(self._moved) - 5} more" if len(self._moved) > 5 else "")
            print(f"ai.lab: {names} of {self._folder} moved to {self._place}: not written by the lab", file=sys.stderr)


def _remove(folder: Path, aside: _Aside) -> None:
    """Deletes one record and those inside it."""
    marker = read_marker(folder)
    assert marker is not None
    kind = marker["kind"]
    owner = Owner(folder) if kind == "trial" else None  # nobody begins to write it meanwhile
    try:
        for entry in sorted(folder.iterdir()):
            if entry.name in (MARKER, OWNER):
                continue
            if not _is_folder(entry):
                if re.fullmatch(_FILES[kind] + _TEMPORARY, entry.name) or _is_alias(entry):
                    entry.unlink()
                else:
                    aside.move(entry)
            elif entry.name in _ROOMS[kind] or kind != "trial":
                _clear(entry, _ROOMS[kind].get(entry.name, ""), aside)
            else:
                aside.move(entry)
        # The marker goes last: an interrupted deletion leaves a folder that can still be recognised and deleted.
        (folder / OWNER).unlink(missing_ok=True)
        (folder / MARKER).unlink()
        folder.rmdir()
    finally:
        if owner is not None:
            owner.release()


def _clear(folder: Path, written: str, aside: _Aside) -> None:
    """Deletes the records in a folder that is none itself, and what is `written` there; the rest is moved aside."""
    if read_marker(folder) is not None:
        _remove(folder, aside)
        return
    for entry in sorted(folder.iterdir()):
        if written and re.fullmatch(written + _TEMPORARY, entry.name):
            if _is_folder(entry):
                shutil.rmtree(entry)
            else:
                entry.unlink()
        elif _is_folder(entry) and any(found.marker for found in scan(entry)):
            _clear(entry, written, aside)
        else:
            aside.move(entry)
    folder.rmdir()


def _is_alias(path: Path) -> bool:
    return path.name.startswith("@") and path.is_symlink()


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
