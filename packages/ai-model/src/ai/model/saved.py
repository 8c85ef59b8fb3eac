"""The model in a snapshot: its folder found and checked, the model built as the manifest says, its weights filled in.

`ai.train.snapshot` documents the format and writes it. Reading lies here, since training, the lab and the server all
stand on this package. Nothing is run by reading; only `build` runs what the folder names.
"""

import hashlib
import importlib
import json
import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ai.model.arguments import as_path

FORMAT = 1
MANIFEST = "manifest.json"
MODEL, EMA, STATE, STRUCTURE = "model.safetensors", "ema.safetensors", "state.pt", "structure.pkl"


class SnapshotError(RuntimeError):
    """A snapshot is damaged, or of a format that this version cannot read."""


# -- folders


def committed(folder: str | os.PathLike[str]) -> list[Path]:
    """Returns every snapshot in `folder` in the order of saving; whether they are whole is not looked at.

    That is not the order of their steps: a run that goes back, or another run in the folder, saves lower ones later.
    """
    root = as_path(folder)
    if not root.is_dir():
        return []
    found = [path for path in root.iterdir() if path.name.isdigit() and (path / MANIFEST).is_file()]
    return sorted(found, key=lambda path: (sequence_of(path), int(path.name)))


def sequence_of(folder: Path) -> float:
    """Returns a snapshot's number in the order of saving: 0 before there were any, infinity where it is unreadable."""
    try:
        return int(json.loads((folder / MANIFEST).read_bytes()).get("sequence", 0))
    except (OSError, ValueError, AttributeError, TypeError):
        return float("inf")  # so that a damaged newest one is looked at first, and named


def line_of(folder: Path) -> str | None:
    """Returns the name of the run that a snapshot belongs to; None of one that was saved by hand, or is unreadable."""
    try:
        line = json.loads((folder / MANIFEST).read_bytes()).get("line")
    except (OSError, ValueError, AttributeError):
        return None
    return None if line is None else str(line)


def newest(folder: str | os.PathLike[str]) -> Path | None:
    """Returns the newest snapshot in `folder` whose files all have their checksums, None where there is none.

    A damaged one is passed over with a warning.

    Raises:
        SnapshotError: the newest is of a newer format than this version's.
    """
    for path in reversed(committed(folder)):
        problem = verify(path)
        if problem is None:
            return path
        warnings.warn(f"snapshot {path} is damaged ({problem}); trying the one before", RuntimeWarning, stacklevel=3)
    return None


def verify(path: str | os.PathLike[str]) -> str | None:
    """Returns what is wrong with a snapshot's files, in a few words; None if each has its size and sha256.

    Raises:
        SnapshotError: its format is newer than this version's.
    """
    folder = as_path(path)
    try:
        manifest = read_manifest(folder)
        for name, about in manifest["files"].items():
            file = folder / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != about["bytes"]:
                return f"{name} has {file.stat().st_size} bytes instead of {about['bytes']}"
            if sha256(file) != about["sha256"]:
                return f"{name} does not have its sha256"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{MANIFEST} cannot be read: {error}"
    return None


def sha256(path: Path) -> str:
    """Returns the checksum of a file, as the manifest holds it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the manifest of a snapshot, of this format or an older one.

    Raises:
        FileNotFoundError: there is no snapshot.
        SnapshotError: its format is newer.
    """
    try:
        manifest: dict[str, Any] = json.loads((as_path(folder) / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no snapshot at {folder}: it has no {MANIFEST}") from None
    if manifest["format"] > FORMAT:
        raise SnapshotError(
            f"snapshot {folder} has format {manifest['format']}; this version reads up to {FORMAT}: update ai-train"
        )
    return manifest


# -- its models


def model_keys(folder: str | os.PathLike[str]) -> list[str]:
    """Returns the names of the models in a snapshot; a `Trainer`'s only one is `model`."""
    return list(read_manifest(folder)["models"])


def build(folder: str | os.PathLike[str], *, key: str | None = None, ema: bool = False) -> nn.Module:
    """Returns a model of a snapshot, built as its manifest says and filled with its weights, on the CPU.

    A class with plain arguments is imported and called; any other model comes from `structure.pkl`, under the same
    minor version of Python. Both run code that the folder names: build only what you, or people you trust, saved.

    Args:
        folder: the snapshot.
        key: which of its models; None: the first.
        ema: with the averaged weights.

    Raises:
        FileNotFoundError: there is no snapshot.
        KeyError: it holds no model `key`.
        ValueError: it does not say how to build the model, or `ema` and it has no averaged weights.
        SnapshotError: it is damaged, or of a newer format.
    """
    root = as_path(folder)
    manifest = read_manifest(root)
    name, about = _described(manifest, key)
    by = about["build"]
    if by["class"] is not None and by["arguments"] is not None:
        model = construct(by["class"], by["arguments"]["args"], by["arguments"]["kwargs"])
    elif by.get("structure"):
        model = load_structure(root, name)
    else:
        why = "its class cannot be imported" if by["class"] is None else "its arguments were not recorded"
        raise ValueError(
            f"snapshot {root} does not say how to build its model ({why}): build it yourself and fill it with the "
            f"weights in {root / about['file']}"
        )
    model.load_state_dict(load_weights(root, key=name, ema=ema))
    return model


def construct(path: str, args: list[Any], kwargs: dict[str, Any]) -> nn.Module:
    """Returns what the class or function `package.module:name` makes of the arguments.

    Raises:
        ValueError: there is no such name, or it makes no module.
    """
    module, _, name = path.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"the factory {path!r} must be importable: {error}{_hint(module, error)}") from error
    model = found(*args, **kwargs)
    if not isinstance(model, nn.Module):
        raise ValueError(f"the factory {path!r} must return a torch.nn.Module, not {type(model).__name__}")
    return model


def _hint(module: str, error: ImportError | AttributeError) -> str:
    top = module.partition(".")[0]
    absent = isinstance(error, ModuleNotFoundError) and error.name == top
    return f"; run where {top} lies, or name its folder in PYTHONPATH" if absent else ""


def load_structure(folder: str | os.PathLike[str], key: str) -> nn.Module:
    """Returns a model of a snapshot that holds its modules by value, the weights not filled in.

    Unpickling runs code that the file names.

    Raises:
        SnapshotError: the snapshot holds no structure of it, or one that is damaged or cannot be read.
    """
    root = as_path(folder)
    manifest = read_manifest(root)
    file = _described(manifest, key)[1]["build"].get("structure")
    if not file:
        raise SnapshotError(f"snapshot {root} holds no structure of the model {key!r}")
    _check(root, file, manifest)
    try:
        model: nn.Module = pickle.loads(pickle.loads((root / file).read_bytes())[key])
    except Exception as error:  # another Python, or a package that is not here
        raise SnapshotError(f"{root / file} cannot be read by this Python and its packages: {error}") from error
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.contiguous()  # one number stands for all of a weight until it has memory of its own
    return model


def load_weights(folder: str | os.PathLike[str], *, key: str | None = None, ema: bool = False) -> dict[str, Any]:
    """Returns the state dict of a model of a snapshot, on the CPU; runs nothing.

    Args:
        folder: the snapshot.
        key: which of its models; None: the first.
        ema: the averaged weights.

    Raises:
        FileNotFoundError: there is no snapshot.
        KeyError: it holds no model `key`.
        ValueError: `ema`, and it has no averaged weights.
        SnapshotError: it is damaged, of a newer format, or sharded.
    """
    from safetensors.torch import load_file

    root = as_path(folder)
    manifest = read_manifest(root)
    _, about = _described(manifest, key)
    if about["file"] not in manifest["files"] and (root / "dcp").is_dir():
        raise SnapshotError(f"snapshot {root} is sharded: make one file of it with ai.train.export")
    files = [about["file"]]
    if ema:
        if about["ema"] is None:
            raise ValueError(f"ema: snapshot {root} has no averaged weights, since the run kept none")
        files.append(about["ema"])
    state: dict[str, Any] = {}
    for file in files:
        _check(root, file, manifest)
        state |= _of(load_file(root / file), about["prefix"])
    if about.get("extra", STATE in manifest["files"]):  # snapshots written before this was noted may hold some
        _check(root, STATE, manifest)
        # What modules gave as `get_extra_state`; optimisers, which lie in the same file, stay on disk.
        state |= _of(load_pt(root / STATE, mmap=True)["model_extra"], about["prefix"])
    return state


def load_pt(path: Path, *, mmap: bool = False) -> dict[str, Any]:
    """Returns a file of states: tensors, arrays and plain values; nothing else is read, since it could run code.

    Raises:
        SnapshotError: it holds something else, or cannot be read.
    """
    dtypes = [getattr(np.dtypes, name) for name in dir(np.dtypes) if name.endswith("DType")]
    multiarray = np._core.multiarray  # type: ignore[attr-defined]  # where numpy's pickles point
    allowed = [np.ndarray, np.dtype, multiarray._reconstruct, multiarray.scalar, *dtypes]
    try:
        with torch.serialization.safe_globals(allowed):
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:
        raise SnapshotError(
            f"{path} cannot be read as tensors, arrays and plain values, of which states must be made "
            f"({str(error).splitlines()[0]})"
        ) from error
    return state


def _described(manifest: dict[str, Any], key: str | None) -> tuple[str, dict[str, Any]]:
    """Returns the name of a model and what the manifest says of it."""
    models: dict[str, dict[str, Any]] = manifest["models"]
    name = next(iter(models)) if key is None else key
    if name not in models:
        raise KeyError(f"the snapshot holds the models {sorted(models)}, not {name!r}")
    return name, models[name]


def _of(named: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}


def _check(root: Path, file: str, manifest: dict[str, Any]) -> None:
    """Raises `SnapshotError` if a file is missing or has another checksum than its manifest's."""
    path = root / file
    if not path.is_file():
        raise SnapshotError(f"snapshot {root} is damaged: {file} is missing")
    if sha256(path) != manifest["files"][file]["sha256"]:
        raise SnapshotError(f"snapshot {root} is damaged: {file} does not have its sha256")
