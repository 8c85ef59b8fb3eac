"""Models as folders, and folders on the Hugging Face Hub: the weights, and what the model's class is called with.

Nothing in a folder is run: the caller names the class, and the folder holds plain values and tensors alone.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from ai.model.arguments import as_path
from ai.model.state import PathLike, save_state

CONFIG, WEIGHTS = "config.json", "model.safetensors"


def write(folder: PathLike, cls: type, args: Any, kwargs: Any, state: Mapping[str, Any]) -> None:
    """Writes both files, the weights first.

    Raises:
        ValueError: The model was made with something that JSON cannot hold.
    """
    if args is None or kwargs is None:
        raise ValueError(
            f"{cls.__name__} must be made with numbers, strings, lists and dicts alone, so that a file can say how to "
            "make it again: write a subclass of Model that builds its layers from them"
        )
    folder = as_path(folder, "folder", "folder")
    save_state(state, folder / WEIGHTS)
    said = {"class": cls.__qualname__, "args": args, "kwargs": kwargs}
    (folder / CONFIG).write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")


def arguments(folder: Path, cls: type) -> tuple[list[Any], dict[str, Any]]:
    """Returns what a class is to be called with.

    Raises:
        ValueError: The folder holds no model, or one of another class.
    """
    try:
        said = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        name, args, kwargs = said["class"], list(said["args"]), dict(said["kwargs"])
    except FileNotFoundError:
        raise ValueError(
            f"source ({folder}) must hold a model that was saved by save_pretrained: no {CONFIG}"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"source ({folder}) must hold a {CONFIG} that save_pretrained wrote: {error!r}") from error
    if name != cls.__qualname__:
        raise ValueError(f"source ({folder}) must hold a {cls.__qualname__}, it holds a {name}")
    return args, kwargs


def fetched(source: PathLike, revision: str | None, token: str | None) -> Path:
    """Returns the folder that a source is, or that a repository was brought to."""
    if (folder := as_path(source, "source", "folder")).is_dir():
        if revision is not None:
            raise ValueError(f"revision ({revision!r}) must be None for a folder ({source})")
        return folder
    if folder.is_absolute() or str(source).startswith("."):  # no repository is called so
        raise FileNotFoundError(f"source ({folder}) must be a folder that save_pretrained wrote, and there is none")
    repo = _hub().snapshot_download(str(source), revision=revision, token=token, allow_patterns=[CONFIG, WEIGHTS])
    return Path(repo)


def push(
    folder: PathLike, repo: str, private: bool | None, message: str, revision: str | None, token: str | None
) -> str:
    """Makes the repository if there is none, uploads a folder, and returns the address of the commit."""
    api = _hub().HfApi(token=token)
    name = api.create_repo(repo, private=private, exist_ok=True).repo_id
    if revision is not None:
        api.create_branch(name, branch=revision, exist_ok=True)
    return str(
        api.upload_folder(repo_id=name, folder_path=folder, commit_message=message, revision=revision).commit_url
    )


def _hub() -> ModuleType:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError("the Hub needs huggingface_hub: pip install 'ai-model[hub]'") from error
    return huggingface_hub
