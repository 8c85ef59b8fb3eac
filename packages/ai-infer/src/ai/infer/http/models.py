"""The models that an operator named at start, and only those: built from a factory, a `.pt2`, or a snapshot."""

import hashlib
import importlib
import json
import os
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qsl

import safetensors.torch
import torch
from torch import Tensor, nn

from ai.infer.http.tensors import DATATYPES, NAMES, TensorSpec
from ai.infer.transport.wire import Tree

_MANIFEST = "manifest.json"
_FORMAT = 1
_OPTIONS = {"weights", "input", "device", "batch_size", "replicas", "ema", "args"}


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from, as written on the command line.

    >>> ModelSource.parse("digits@2=shop.models:classifier?weights=w.safetensors&input=x:FP32:-1,784").version
    '2'
    """

    name: str
    version: str
    source: str
    options: dict[str, str]
    inputs: tuple[TensorSpec, ...]

    @classmethod
    def parse(cls, text: str) -> "ModelSource":
        """Returns what `NAME[@VERSION]=SOURCE[?OPTION=VALUE&…]` says.

        SOURCE is `package.module:factory`, a file `….pt2`, or the folder of a trial or a snapshot. Options:
        `weights` (a file for a factory's model), `args` (JSON, its keyword arguments), `input` (repeatable:
        `NAME:DATATYPE:SIZES`), `device`, `batch_size`, `replicas`, `ema` (`1`: a snapshot's averaged weights).

        Raises:
            ValueError: it is written otherwise.
        """
        label, equals, rest = text.partition("=")
        name, _, version = label.partition("@")
        source, _, query = rest.partition("?")
        if not equals or not source or not name or not set(name + version) <= _NAME_CHARACTERS:
            raise ValueError(f"a model must be written NAME[@VERSION]=SOURCE[?OPTION=VALUE&…], not {text!r}")
        pairs = parse_qsl(query, keep_blank_values=True)
        unknown = sorted({key for key, _ in pairs} - _OPTIONS)
        if unknown:
            raise ValueError(f"a model's options are {', '.join(sorted(_OPTIONS))}, not {unknown[0]!r}")
        inputs = tuple(TensorSpec.parse(value) for key, value in pairs if key == "input")
        options = {key: value for key, value in pairs if key != "input"}
        return cls(name, version or "1", source, options, inputs)


_NAME_CHARACTERS = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.-")


class ExportedModel(nn.Module):
    """A program that `torch.export` saved; it travels to the worker as the path of its file."""

    mode_is_fixed = True

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        self.program = torch.export.load(path).module()

    def forward(self, *args: Tree, **kwargs: Tree) -> Tree:
        """Runs the program."""
        return self.program(*args, **kwargs)

    def __reduce__(self) -> tuple[type["ExportedModel"], tuple[str]]:
        return ExportedModel, (self._path,)


def build(source: ModelSource) -> tuple[nn.Module, tuple[TensorSpec, ...]]:
    """Returns the model and what is known of its inputs.

    Raises:
        ValueError: the source is none, or damaged.
    """
    path = Path(source.source)
    if path.suffix == ".pt2":
        if not path.is_file():
            raise ValueError(f"model {source.name!r} must be a file that is there, not {path}")
        return ExportedModel(os.fspath(path.resolve())), source.inputs
    if path.is_dir():
        return _from_folder(source, path)
    if ":" in source.source:
        model = _call(source.source, [], json.loads(source.options.get("args", "{}")))
        if "weights" in source.options:
            _load_weights(model, Path(source.options["weights"]))
        return model, source.inputs
    raise ValueError(
        f"model {source.name!r} must come from package.module:factory, a .pt2 file or a folder that is there, "
        f"not {source.source!r}"
    )


def _call(path: str, args: list[Any], kwargs: dict[str, Any]) -> nn.Module:
    module_name, _, name = path.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"the factory {path!r} must be importable: {error}") from error
    model = found(*args, **kwargs)
    if not isinstance(model, nn.Module):
        raise ValueError(f"the factory {path!r} must return a torch.nn.Module, not {type(model).__name__}")
    return model


def _load_weights(model: nn.Module, path: Path) -> None:
    """Fills a model from a `.safetensors` file, or from a `.pt` state dict read without running code."""
    if path.suffix == ".safetensors":
        state = safetensors.torch.load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(state)


def _from_folder(source: ModelSource, folder: Path) -> tuple[nn.Module, tuple[TensorSpec, ...]]:
    """Returns the model of a snapshot, or of the newest snapshot of a trial."""
    snapshot = folder
    if not (folder / _MANIFEST).is_file():
        root = folder / "snapshots" if (folder / "snapshots").is_dir() else folder
        found = sorted(each for each in root.iterdir() if (each / _MANIFEST).is_file())
        if not found:
            raise ValueError(f"model {source.name!r}: the folder {folder} must hold a snapshot, and has none")
        snapshot = found[-1]
    manifest = json.loads((snapshot / _MANIFEST).read_text())
    if manifest["format"] > _FORMAT:
        raise ValueError(f"snapshot {snapshot} has format {manifest['format']}; this version reads up to {_FORMAT}")
    key, about = next(iter(manifest["models"].items()))
    build_by = about["build"]
    if build_by["class"] is not None and build_by["arguments"] is not None:
        model = _call(build_by["class"], build_by["arguments"]["args"], build_by["arguments"]["kwargs"])
    elif file := build_by.get("structure"):
        _check_sum(snapshot / file, manifest["files"][file]["sha256"])
        model = _unpickle(snapshot / file, key)
    else:
        raise ValueError(
            f"snapshot {snapshot} does not say how to build its model: serve it as package.module:factory with "
            f"weights={snapshot / about['file']}"
        )
    files = [about["file"]]
    if source.options.get("ema") == "1":
        if about["ema"] is None:
            raise ValueError(f"snapshot {snapshot} has no averaged weights: leave out ema=1")
        files.append(about["ema"])
    state: dict[str, Tensor] = {}
    for file in files:
        _check_sum(snapshot / file, manifest["files"][file]["sha256"])
        tensors = safetensors.torch.load_file(snapshot / file)
        prefix = about["prefix"]
        state |= {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
    model.load_state_dict(state)
    return model, source.inputs or tuple(_specs(about.get("inputs")))


def _unpickle(path: Path, key: str) -> nn.Module:
    """Returns a model that a snapshot holds by value, its weights to be filled in; runs code that the file names."""
    try:
        model = pickle.loads(pickle.loads(path.read_bytes())[key])
    except Exception as error:  # another Python, a package that is not here
        raise ValueError(f"{path} must be readable under this Python and its packages: {error}") from error
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.contiguous()  # one number stands for all of a weight until it has memory of its own
    return cast("nn.Module", model)


def _check_sum(path: Path, expected: str) -> None:
    with open(path, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != expected:
            raise ValueError(f"{path} is damaged: it does not have the sha256 of its manifest")


def _specs(inputs: list[dict[str, Any]] | None) -> Iterator[TensorSpec]:
    """Yields a manifest's inputs, their first size free."""
    if not all(isinstance(about, dict) and about.get("shape") for about in inputs or []):
        return  # nested or without rows: the protocol cannot describe it
    for index, about in enumerate(inputs or []):
        dtype = DATATYPES.get(about["dtype"]) or getattr(torch, about["dtype"].removeprefix("torch."))
        shape = [-1 if size is None else size for size in about["shape"]]
        yield TensorSpec("x" if len(inputs or []) == 1 else f"x{index}", NAMES[dtype], (-1, *shape[1:]))
