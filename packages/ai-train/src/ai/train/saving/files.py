"""The files of a snapshot: what lies in which, written and read back. `ai.model.saved` finds and checks them."""

import inspect
import json
import pickle
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ai.data.storage.atomic_file import write_atomic
from ai.model.saved import EMA, FORMAT, MANIFEST, MODEL, STATE, STRUCTURE, load_pt, read_manifest
from ai.model.state import write_pt, write_tensors
from ai.train.saving.checksums import Checksums

# -- writing


def write_files(
    folder: Path,
    state: Mapping[str, Any],
    models: Mapping[str, nn.Module],
    specs: Mapping[str, Any],
    metrics: Mapping[str, float],
    structures: Mapping[str, bytes],
    order: Mapping[str, Any],
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
    rest |= {"model_extra": extra, "ema_keys": {k: list(v) for k, v in state["ema"].items()}}
    with Checksums(folder) as sums:  # the largest file first: its sum takes longest
        write_pt(folder / STATE, rest)
        sums.begin(STATE)
        write_tensors(folder / MODEL, tensors)
        sums.begin(MODEL)
        if averaged:
            write_tensors(folder / EMA, averaged)
        if structures:
            (folder / STRUCTURE).write_bytes(pickle.dumps(dict(structures)))
        write_manifest(
            folder, int(state["step"]), models, specs, metrics, bool(averaged), order, structures, extra, sums=sums
        )


def write_manifest(
    folder: Path,
    step: int,
    models: Mapping[str, nn.Module],
    specs: Mapping[str, Any],
    metrics: Mapping[str, float],
    ema: bool,
    order: Mapping[str, Any],
    structures: Collection[str] = (),
    extra: Collection[str] = (),
    *,
    sums: Checksums,
) -> None:
    """Describe the folder's files; the last file to be written.

    `order` is its place among the others: its number in the order of saving, and the name of its run. `structures`
    names the models that `structure.pkl` holds, `extra` what `state.pt` holds of models' own states; `sums` are of the
    folder's files.
    """
    manifest = {
        "format": FORMAT,
        "step": step,
        **order,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "torch": str(torch.__version__),
        "models": {
            key: {
                "file": MODEL,
                "ema": EMA if ema else None,
                "prefix": _prefix(key, models),
                "extra": any(name.startswith(_prefix(key, models)) for name in extra),
                "build": {**how_to_build(model), "structure": STRUCTURE if key in structures else None},
                **specs.get(key, {"inputs": None, "outputs": None}),
            }
            for key, model in models.items()
        },
        "metrics": {key: float(value) for key, value in metrics.items()},
        "files": sums.all(),
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def replace_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write a manifest in place of a snapshot's own, whole or not at all."""
    text = (json.dumps(manifest, indent=1) + "\n").encode()
    write_atomic(folder / MANIFEST, lambda file: file.write(text))


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
