"""Where datasets lie on disk."""

import os
from pathlib import Path

from ai.data.arguments import check_path


def expanded(path: str | os.PathLike[str]) -> Path:
    """Returns a path that a user gave; a leading `~` is their home, as in a shell."""
    return Path(os.path.expanduser(path))


def dataset_folder(path: str | os.PathLike[str]) -> Path:
    """Returns the folder of a dataset: an absolute path as it is, else below the datasets folder.

    The datasets folder is `$AI_DATASETS_PATH`, else `~/.cache/ai/datasets`.
    """
    check_path(path=path)
    root = os.environ.get("AI_DATASETS_PATH") or Path.home() / ".cache" / "ai" / "datasets"
    return expanded(root) / expanded(path)
