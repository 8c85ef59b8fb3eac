"""What a person says of a trial afterwards: tags and a note, in `marks.json`, whoever writes the trial itself."""

import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ai.lab.files.folder import write_json
from ai.lab.files.load import Types, is_list_of, is_text, load_typed
from ai.lab.files.lock import Lock

MARKS = "marks.json"
_TYPES: Types = {"tags": is_list_of(is_text), "note": str}
_WAIT_S = 10.0


def load_marks(folder: Path | str) -> tuple[dict[str, Any], list[str]]:
    """Returns tags and note of a trial, and what is wrong with their file."""
    path = f"{folder}/{MARKS}"
    try:  # nearly no trial has any, and to be refused a file costs more than to ask for it
        found, problems = load_typed(path, _TYPES) if os.access(path, os.F_OK) else ({}, [])
    except FileNotFoundError:
        found, problems = {}, []
    return {"tags": found.get("tags") or [], "note": found.get("note") or ""}, problems


def change_marks(
    folder: Path, *, add: Iterable[str] = (), remove: Iterable[str] = (), note: str | None = None
) -> dict[str, Any]:
    """Adds and removes tags, sets the note where one is given, and returns what is marked now.

    Raises:
        TypeError: `add` or `remove` is a text instead of a list, or the note is none.
        ValueError: a tag is no text, empty or holds white space.
        TimeoutError: somebody else has been changing the marks all the time.
    """
    for name, tags in (("add", add), ("remove", remove)):
        if isinstance(tags, str):  # whose letters would be tags
            raise TypeError(f"{name} must be a list of tags, got {tags!r}")
    add, remove = list(add), list(remove)
    for tag in [*add, *remove]:
        if not isinstance(tag, str) or not tag or any(map(str.isspace, tag)):
            raise ValueError(f"a tag must be one word, got {tag!r}")
    if not isinstance(note, str | None):
        raise TypeError(f"note must be text, got {note!r}")
    lock, deadline = Lock(folder / f"{MARKS}.lock"), time.monotonic() + _WAIT_S
    while lock.try_acquire() is not None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"the marks of {folder} were being changed by another process for {_WAIT_S:g} s")
        time.sleep(0.01)
    try:
        marks, _ = load_marks(folder)
        tags = [tag for tag in dict.fromkeys([*marks["tags"], *add]) if tag not in remove]
        marks = {"tags": tags, "note": marks["note"] if note is None else note}
        write_json(folder / MARKS, marks)
        return marks
    finally:
        lock.release()
