"""Where datasets lie on disk."""

import os
from pathlib import Path

from ai.data.arguments import check_path


def expanded(path: str | os.PathLike[str]) -> Path:
    """Returns a path that a user gave; a leading `~` is their home, as in a shell.

    What it returns may be given to it again: `./~`, a folder of that name, stays what it is.
    """
    found = Path(os.path.expanduser(path))
    return found.absolute() if str(found).startswith("~") else found


def dataset_folder(path: str | os.PathLike[str]) -> Path:
    """Returns the folder of a dataset: an absolute path as it is, else below the datasets folder.

    The datasets folder is `$AI_DATASETS_PATH`, else `~/.cache/ai/datasets`.
    """
    check_path(path=path)
    root = os.environ.get("AI_DATASETS_PATH") or Path.home() / ".cache" / "ai" / "datasets"
    return expanded(root) / expanded(path)
