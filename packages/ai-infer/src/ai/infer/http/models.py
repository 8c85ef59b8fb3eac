"""The models that an operator named at start, and only those: built from a factory, a `.pt2`, or a snapshot."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import safetensors.torch
import torch
from torch import nn

from ai.infer.http.formats.tensors import DATATYPES, NAMES, TensorSpec
from ai.infer.transport.trees import Tree
from ai.model.saved import MANIFEST, SnapshotError, construct, newest, read_manifest
from ai.model.saved import build as build_saved

_OPTIONS = {"weights", "input", "device", "batch_size", "replicas", "ema", "args", "share"}


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
        `NAME:DATATYPE:SIZES`), `device`, `batch_size`, `replicas`, `share` (`auto`, `1` or `0`), `ema` (`1`: a
        snapshot's averaged weights).

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
        if dict(pairs).get("share", "auto") not in ("auto", "0", "1"):
            raise ValueError(f"the option share must be auto, 1 or 0, not {dict(pairs)['share']!r}")
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
        model = construct(source.source, [], json.loads(source.options.get("args", "{}")))
        if "weights" in source.options:
            _load_weights(model, Path(source.options["weights"]))
        return model, source.inputs
    raise ValueError(
        f"model {source.name!r} must come from package.module:factory, a .pt2 file or a folder that is there, "
        f"not {source.source!r}"
    )


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
    if not (folder / MANIFEST).is_file():
        root = folder / "snapshots" if (folder / "snapshots").is_dir() else folder
        found = newest(root)
        if found is None:
            raise ValueError(f"model {source.name!r}: the folder {folder} must hold a snapshot, and has none")
        snapshot = found
    try:
        model = build_saved(snapshot, ema=source.options.get("ema") == "1")
        described = next(iter(read_manifest(snapshot)["models"].values()))
    except (SnapshotError, ValueError) as error:
        raise ValueError(f"model {source.name!r}: {error}") from error
    return model, source.inputs or tuple(_specs(described.get("inputs")))


def _specs(inputs: list[dict[str, Any]] | None) -> Iterator[TensorSpec]:
    """Yields a manifest's inputs, their first size free."""
    if not all(isinstance(about, dict) and about.get("shape") for about in inputs or []):
        return  # nested or without rows: the protocol cannot describe it
    for index, about in enumerate(inputs or []):
        dtype = DATATYPES.get(about["dtype"]) or getattr(torch, about["dtype"].removeprefix("torch."))
        shape = [-1 if size is None else size for size in about["shape"]]
        yield TensorSpec("x" if len(inputs or []) == 1 else f"x{index}", NAMES[dtype], (-1, *shape[1:]))
