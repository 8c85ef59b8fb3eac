"""Aliases: `@best` in an experiment or study is a link to a trial, which every tool that takes a folder follows."""

import contextlib
import os
import secrets
from pathlib import Path


def alias_path(folder: Path, name: str) -> Path:
    """Returns where the alias `name` of a folder lies.

    Raises:
        ValueError: the name is no plain word.
    """
    plain = name.removeprefix("@")
    if not plain or not all(one.isalnum() or one in "-_." for one in plain) or plain.startswith("."):
        raise ValueError(f"an alias must be letters, digits and any of -_., got {name!r}")
    return folder / f"@{plain}"


def point_alias(folder: Path, name: str, trial: Path) -> Path:
    """Makes the alias of a folder lead to a trial inside it, from now on; the folder may be moved as a whole.

    Raises:
        ValueError: the name is no plain word, or the trial lies elsewhere.
    """
    path = alias_path(folder, name)
    if folder not in trial.parents:
        raise ValueError(f"an alias of {folder} must lead to a trial inside it, got {trial}")
    temporary = folder / f".write-{secrets.token_hex(8)}"
    os.symlink(trial.relative_to(folder), temporary, target_is_directory=True)
    try:
        os.replace(temporary, path)  # whoever follows it sees the old trial or the new one
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    return path
