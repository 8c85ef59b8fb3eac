"""The models that an operator named at start, and only those: built from a factory, a `.pt2`, or a snapshot."""

import importlib
import importlib.machinery
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import safetensors.torch
import torch
from torch import nn

from ai.infer.http.formats.tensors import DATATYPES, NAMES, TensorSpec
from ai.infer.http.models.onnx_model import OnnxModel
from ai.infer.transport.trees import Tree
from ai.model.arguments import as_path
from ai.model.saved import MANIFEST, SnapshotError, construct, newest, read_manifest
from ai.model.saved import build as build_saved

_OPTIONS = {"weights", "input", "device", "batch_size", "replicas", "ema", "args", "share", "before", "after"}


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

    @property
    def batch_size(self) -> int | str:
        """The most rows in one call of the model, or "auto"."""
        size = self.options.get("batch_size", "64")
        return size if size == "auto" else int(size)

    @classmethod
    def parse(cls, text: str) -> "ModelSource":
        """Returns what `NAME[@VERSION]=SOURCE[?OPTION=VALUE&…]` says.

        SOURCE is `package.module:factory`, a file `….pt2` or `….onnx`, or the folder of a trial or a snapshot. Options:
        `weights` (a file for a factory's model), `args` (JSON, its keyword arguments), `input` (repeatable:
        `NAME:DATATYPE:SIZES`), `device`, `batch_size`, `replicas`, `share` (`auto`, `1` or `0`), `ema` (`1`: a
        snapshot's averaged weights), `before` and `after` (`package.module:function`, run in the front end).

        Raises:
            TypeError: it is no text.
            ValueError: it is written otherwise.
        """
        if not isinstance(text, str):
            raise TypeError(f"a model must be text that reads NAME[@VERSION]=SOURCE[?OPTION=VALUE&…], not {text!r:.80}")
        label, equals, rest = text.partition("=")
        name, _, version = label.partition("@")
        source, _, query = rest.partition("?")
        if not equals or not source or not name or not set(name + version) <= _NAME_CHARACTERS:
            raise ValueError(f"a model must be written NAME[@VERSION]=SOURCE[?OPTION=VALUE&…], not {text!r}")
        pairs = parse_qsl(query, keep_blank_values=True)
        unknown = sorted({key for key, _ in pairs} - _OPTIONS)
        if unknown:
            raise ValueError(f"a model's options are {', '.join(sorted(_OPTIONS))}, not {unknown[0]!r}")
        for key, value in pairs:
            _check_option(key, value)
        inputs = tuple(TensorSpec.parse(value) for key, value in pairs if key == "input")
        said = [key for key, _ in pairs if key != "input"] + [f"input {spec.name}" for spec in inputs]
        twice = next((what for what in said if said.count(what) > 1), None)
        if twice is not None:
            raise ValueError(f"a model's {twice} must be given once, not {said.count(twice)} times")
        options = {key: value for key, value in pairs if key != "input"}
        return cls(name, version or "1", source, options, inputs)


def _check_option(key: str, value: str) -> None:
    """Raises `ValueError` if an option has a value that means nothing."""
    if key == "share" and value not in ("auto", "0", "1"):
        raise ValueError(f"the option share must be auto, 1 or 0, not {value!r}")
    if key == "ema" and value not in ("0", "1"):
        raise ValueError(f"the option ema must be 1 or 0, not {value!r}")
    if key not in ("batch_size", "replicas") or (key, value) == ("batch_size", "auto"):
        return
    if not (value.isascii() and value.isdigit() and value.strip("0")):
        raise ValueError(f"the option {key} must be a whole number from 1, not {value!r}")
    if len(value) > _MAX_DIGITS:
        raise ValueError(f"the option {key} must have at most {_MAX_DIGITS} digits, not {len(value)}")


_MAX_DIGITS = 18  # as every machine counts
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


def remake(source: ModelSource) -> Callable[[], nn.Module] | None:
    """Returns what makes the model anew in a worker, which then gets its weights; None: the model is sent there."""
    if _is_file(source.source) or _place(source.source).is_dir() or ":" not in source.source:
        return None
    return partial(construct, source.source, [], json.loads(source.options.get("args", "{}")))


def _place(text: str) -> Path:
    """Returns the path that is meant: an alias of a search, `search@best`, is the link `@best` in its folder."""
    path, (folder, _, alias) = as_path(text), text.rpartition("@")
    return path if path.exists() or not folder or not alias else as_path(folder) / f"@{alias}"


def _is_file(path: str) -> bool:
    return Path(path).suffix in (".pt2", ".onnx")


def build(source: ModelSource, *, trust: bool = False) -> tuple[nn.Module, tuple[TensorSpec, ...]]:
    """Returns the model and what is known of its inputs.

    Args:
        source: where it comes from.
        trust: whether a folder may say what code makes its model, by value or by a function's name.

    Raises:
        ValueError: the source is none, or damaged.
    """
    check_place(source)
    path = _place(source.source)
    if _is_file(source.source):
        if path.suffix == ".onnx":
            model = OnnxModel(os.fspath(path.resolve()))
            return model, source.inputs or model.inputs()
        return ExportedModel(os.fspath(path.resolve())), source.inputs
    if path.is_dir():
        return _from_folder(source, path, trust)
    made = construct(source.source, [], json.loads(source.options.get("args", "{}")))
    if "weights" in source.options:
        _load_weights(made, as_path(source.options["weights"]))
    return made, source.inputs


def check_place(source: ModelSource) -> None:
    """Raises `ValueError` for a source that is no factory's name, and no file or folder that is there."""
    path = _place(source.source)
    if _is_file(source.source):
        if not path.is_file():
            raise ValueError(f"model {source.name!r} must be a file that is there, not {path}")
    elif not path.is_dir() and ":" not in source.source:
        raise ValueError(
            f"model {source.name!r} must come from package.module:factory, a .pt2 or .onnx file or a folder that is "
            f"there, not {source.source!r}"
        )


def _load_weights(model: nn.Module, path: Path) -> None:
    """Fills a model from a `.safetensors` file, or from a `.pt` state dict read without running code."""
    if path.suffix == ".safetensors":
        state = safetensors.torch.load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(state)


def _from_folder(source: ModelSource, folder: Path, trust: bool) -> tuple[nn.Module, tuple[TensorSpec, ...]]:
    """Returns the model of a snapshot, or of the newest snapshot of a trial."""
    snapshot = folder
    if not (folder / MANIFEST).is_file():
        root = folder / "snapshots" if (folder / "snapshots").is_dir() else folder
        found = newest(root)
        if found is None:
            raise ValueError(f"model {source.name!r}: the folder {folder} must hold a snapshot, and has none")
        snapshot = found
    try:
        described = next(iter(read_manifest(snapshot)["models"].values()))
        if not trust:
            _check_builder(snapshot, described["build"], [folder.resolve(), snapshot.resolve()])
        model = build_saved(snapshot, ema=source.options.get("ema") == "1")
    except (SnapshotError, ValueError) as error:
        raise ValueError(f"model {source.name!r}: {error}") from error
    return model, source.inputs or _specs(described.get("inputs"))


def _check_builder(snapshot: Path, by: dict[str, Any], folders: list[Path]) -> None:
    """Raises ValueError if a snapshot would run code of its own choice: all but the class of a module does.

    So does a class that came along in the snapshot's folders, or one that is to load what came along.
    """
    if by["class"] is not None and by["arguments"] is not None:
        module, _, name = str(by["class"]).partition(":")
        came_along = next((file for root, file in _files(module) if _is_beside(file, root, folders)), None)
        if came_along is not None:
            raise ValueError(f"snapshot {snapshot} brings the code of {by['class']!r} ({came_along}): {_TRUST}")
        for text in _texts(by["arguments"]):
            if text and os.path.exists(text) and _is_beside(Path(text).absolute(), Path.cwd(), folders):
                raise ValueError(f"snapshot {snapshot} gives {by['class']!r} its own file {text!r:.80}: {_TRUST}")
        try:
            found: Any = importlib.import_module(module)
            for part in name.split("."):
                found = getattr(found, part)
        except (ImportError, AttributeError, ValueError):
            return  # as `build_saved` will say
        if isinstance(found, type) and issubclass(found, nn.Module):
            return
        raise ValueError(f"snapshot {snapshot} names {by['class']!r}, which is no module's class: {_TRUST}")
    if by.get("structure"):
        raise ValueError(f"snapshot {snapshot} holds its model by value ({by['structure']}): {_TRUST}")


def _files(module: str) -> Iterator[tuple[Path, Path]]:
    """Yields the files that may be a module or a package around it, with where they are on the path; imports none."""
    parts = module.split(".")
    for root in (Path(entry).absolute() for entry in sys.path):
        for place in (root.joinpath(*parts[:n]) for n in range(1, len(parts) + 1)):
            for stem in (os.fspath(place), os.fspath(place / "__init__")):
                files = (Path(stem + suffix) for suffix in importlib.machinery.all_suffixes())
                yield from ((root, file) for file in files if file.is_file())


def _is_beside(path: Path, root: Path, folders: list[Path]) -> bool:
    """Returns whether a path lies in one of the folders, or, below `root`, in the same outermost folder as one."""
    real, root = path.resolve(), root.resolve()
    for folder in folders:
        below = folder.relative_to(root).parts if folder.is_relative_to(root) else ()
        if real.is_relative_to(folder) or (below and real.is_relative_to(root / below[0])):
            return True
    return False


def _texts(x: Any) -> Iterator[str]:
    if isinstance(x, str):
        yield x
    elif isinstance(x, (list, dict)):
        for each in x.values() if isinstance(x, dict) else x:
            yield from _texts(each)


_TRUST = "to build it runs whatever code its author chose; serve it with --trust if you trust them"


def _specs(inputs: list[Any] | None) -> tuple[TensorSpec, ...]:
    """Returns a manifest's inputs, their first size free; none if the protocol has no words for one of them."""
    specs = []
    for index, about in enumerate(inputs or []):
        if not isinstance(about, dict) or not isinstance(shape := about.get("shape"), list):
            return ()  # nested, or no tensor
        name = str(about.get("dtype"))
        dtype = DATATYPES.get(name) or getattr(torch, name.removeprefix("torch."), None)
        if not isinstance(dtype, torch.dtype) or dtype not in NAMES:
            return ()
        sizes = [-1 if axis == 0 or size is None else size for axis, size in enumerate(shape)]
        specs.append(TensorSpec("x" if len(inputs or []) == 1 else f"x{index}", NAMES[dtype], tuple(sizes)))
    return tuple(specs)
