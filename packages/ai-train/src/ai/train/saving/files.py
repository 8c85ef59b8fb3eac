"""The files of a snapshot: written, found, checked by sha256, and read without running code."""

import hashlib
import inspect
import json
import os
import pickle
import time
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

FORMAT = 1
MANIFEST = "manifest.json"
MODEL, EMA, STATE, STRUCTURE = "model.safetensors", "ema.safetensors", "state.pt", "structure.pkl"


class SnapshotError(RuntimeError):
    """A snapshot is damaged, or of a format that this version cannot read."""


# -- writing


def write_files(
    folder: Path,
    state: Mapping[str, Any],
    models: Mapping[str, nn.Module],
    specs: Mapping[str, Any],
    metrics: Mapping[str, float],
    structures: Mapping[str, bytes],
) -> None:
    """Write one snapshot's files, the manifest last; `structures` as `pack_structures` gives them."""
    rest = {key: value for key, value in state.items() if key not in ("models", "ema")}
    extra: dict[str, Any] = {}
    tensors: dict[str, Tensor] = {}
    averaged: dict[str, Tensor] = {}
    for key, model_state in state["models"].items():
        prefix = _prefix(key, state["models"])
        for name, value in model_state.items():
            if isinstance(value, Tensor):
                tensors[prefix + name] = value
            else:
                extra[prefix + name] = value  # what a module's get_extra_state gives
    for key, ema_state in state["ema"].items():
        prefix = _prefix(key, state["models"])
        whole = {name: v for name, v in state["models"][key].items() if isinstance(v, Tensor)}
        # Tied parameters have one average, under the first of their names.
        averaged |= {prefix + name: value for name, value in _with_ties(whole, ema_state).items()}
    save_tensors(folder / MODEL, tensors)
    if averaged:
        save_tensors(folder / EMA, averaged)
    torch.save(
        {**rest, "model_extra": extra, "ema_keys": {k: list(v) for k, v in state["ema"].items()}}, folder / STATE
    )
    if structures:
        (folder / STRUCTURE).write_bytes(pickle.dumps(dict(structures)))
    write_manifest(folder, int(state["step"]), models, specs, metrics, bool(averaged), structures)


def write_manifest(
    folder: Path,
    step: int,
    models: Mapping[str, nn.Module],
    specs: Mapping[str, Any],
    metrics: Mapping[str, float],
    ema: bool,
    structures: Collection[str] = (),
) -> None:
    """Describe the folder's files; the last file to be written."""
    manifest = {
        "format": FORMAT,
        "step": step,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "torch": str(torch.__version__),
        "models": {
            key: {
                "file": MODEL,
                "ema": EMA if ema else None,
                "prefix": _prefix(key, models),
                "build": {**how_to_build(model), "structure": STRUCTURE if key in structures else None},
                **specs.get(key, {"inputs": None, "outputs": None}),
            }
            for key, model in models.items()
        },
        "metrics": {key: float(value) for key, value in metrics.items()},
        "files": {
            str(path.relative_to(folder)): {"sha256": sha256(path), "bytes": path.stat().st_size}
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name != MANIFEST
        },
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file that any reader can load: tied tensors are stored once for each of their names."""
    from safetensors.torch import save_file

    # A copy of each, since the format refuses tensors that share memory.
    copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    save_file(copies, str(path), metadata={"format": "pt"})


def how_to_build(model: nn.Module) -> dict[str, Any]:
    """The import path of the model's class and, where known, the arguments it was made with.

    `arguments` is None where they are not known: a class that takes some and does not record them as `init_args` and
    `init_kwargs`. `class` is None where no import leads to it: defined in a script, or in a function.
    """
    kind = type(model)
    importable = kind.__module__ != "__main__" and "<locals>" not in kind.__qualname__
    args, kwargs = getattr(model, "init_args", None), getattr(model, "init_kwargs", None)
    arguments = None
    if isinstance(args, (list, tuple)) and isinstance(kwargs, dict):
        arguments = {"args": list(args), "kwargs": dict(kwargs)}
    elif kind.__init__ is nn.Module.__init__ or not inspect.signature(kind).parameters:
        arguments = {"args": [], "kwargs": {}}
    if arguments is not None:
        try:
            json.dumps(arguments)
        except (TypeError, ValueError):  # a module or a function among them: nothing that a file can name
            arguments = None
    return {"class": f"{kind.__module__}:{kind.__qualname__}" if importable else None, "arguments": arguments}


# -- reading


def committed(folder: Path) -> list[Path]:
    """Every snapshot in `folder`, oldest first; whether they are whole is not looked at."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.name.isdigit() and (p / MANIFEST).is_file())


def newest_whole(folder: Path) -> Path | None:
    """The newest snapshot whose files all have their checksums; a damaged one is passed over with a warning."""
    for path in reversed(committed(folder)):
        problem = verify(path)
        if problem is None:
            return path
        warnings.warn(f"snapshot {path} is damaged ({problem}); trying the one before", RuntimeWarning, stacklevel=3)
    return None


def verify(path: str | os.PathLike[str]) -> str | None:
    """What is wrong with a snapshot's files, in a few words; None if each has its size and sha256.

    Raises:
        SnapshotError: its format is newer than this version's.
    """
    folder = Path(path)
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


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest, of this format or an older one.

    Raises:
        SnapshotError: its format is newer.
    """
    manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if manifest["format"] > FORMAT:
        raise SnapshotError(
            f"snapshot {folder} has format {manifest['format']}; this version reads up to {FORMAT}: update ai-train"
        )
    return manifest


def read_state(folder: Path) -> dict[str, Any]:
    """All that was saved, as `Run.state_dict` gave it, on the CPU."""
    from safetensors.torch import load_file

    state = load_pt(folder / STATE)
    extra, ema_keys = state.pop("model_extra"), state.pop("ema_keys")
    manifest = read_manifest(folder)
    tensors = load_file(folder / MODEL)
    state["models"] = {}
    for key, about in manifest["models"].items():
        prefix = about["prefix"]
        whole = {**tensors, **extra}
        state["models"][key] = {
            name.removeprefix(prefix): value for name, value in whole.items() if name.startswith(prefix)
        }
    averaged = load_file(folder / EMA) if ema_keys else {}
    state["ema"] = {
        key: {name: averaged[manifest["models"][key]["prefix"] + name] for name in names}
        for key, names in ema_keys.items()
    }
    return state


def load_pt(path: Path) -> dict[str, Any]:
    """A file of states: tensors, arrays and plain values; anything else is refused, since reading it could run code."""
    dtypes = [getattr(np.dtypes, name) for name in dir(np.dtypes) if name.endswith("DType")]
    multiarray = np._core.multiarray  # type: ignore[attr-defined]  # where numpy's pickles point
    allowed = [np.ndarray, np.dtype, multiarray._reconstruct, multiarray.scalar, *dtypes]
    try:
        with torch.serialization.safe_globals(allowed):
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise SnapshotError(
            f"{path} cannot be read as tensors, arrays and plain values, of which states must be made "
            f"({str(error).splitlines()[0]})"
        ) from error
    return state


def _with_ties(whole: Mapping[str, Tensor], ema: Mapping[str, Tensor]) -> dict[str, Tensor]:
    averaged = {**whole, **ema}
    by_place = {(whole[name].data_ptr(), tuple(whole[name].shape)): name for name in ema if name in whole}
    for name, tensor in whole.items():
        canonical = by_place.get((tensor.data_ptr(), tuple(tensor.shape)))
        if name not in ema and canonical is not None and tensor.numel():
            averaged[name] = ema[canonical]
    return averaged


def _prefix(key: str, models: Mapping[str, Any]) -> str:
    return "" if len(models) == 1 else f"{key}."


def sha256(path: Path) -> str:
    """The checksum of a file, as the manifest holds it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
