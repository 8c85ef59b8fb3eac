"""The models of a server: each version has an inferencer of its own while it is loaded."""

import dataclasses
import time
from typing import Any

import torch
from torch import Tensor

from ai.infer.client import InferencerClient
from ai.infer.http.models import ModelSource, build
from ai.infer.http.protocol import Plan
from ai.infer.http.tensors import DATATYPES, BadInputError, TensorSpec, datatype_of
from ai.infer.inferencer import Inferencer
from ai.infer.transport.trees import RawTensor, Tree

_HANDOVER_S = 0.02  # that an event loop has at most between finding a model and asking it


class UnknownModelError(LookupError):
    """The server has no such model, or no such version of it."""


class NotReadyError(RuntimeError):
    """The model is known and not loaded, or its worker is being restarted."""


class ServedModel:
    """One version of one model.

    Args:
        source: where it comes from.
        timeout_s: how long a request may take.
    """

    def __init__(self, source: ModelSource, timeout_s: float) -> None:
        self.source = source
        self.inputs = source.inputs
        self.outputs: tuple[TensorSpec, ...] = ()
        self.plans: dict[bytes, Plan] = {}
        """Of requests for these inputs; see `read_request`."""
        self.reason = "not loaded"
        self.inferencer: Inferencer | None = None
        self._timeout_s = timeout_s

    @property
    def ready(self) -> bool:
        """Whether a worker is there to answer."""
        return self.inferencer is not None and self.inferencer.ready

    def load(self) -> None:
        """Builds the model and starts its workers; a loaded one is replaced once the new one is ready.

        Raises:
            ValueError: the source is none, or damaged; a loaded model goes on.
            InferError: a worker could not start; a loaded model goes on.
        """
        model, inputs = build(self.source)
        options = self.source.options
        batch_size = options.get("batch_size", "64")
        new = Inferencer(
            model,
            options.get("device", "cpu"),
            "auto" if batch_size == "auto" else int(batch_size),
            replicas=int(options.get("replicas", "1")),
            restart=True,
            timeout_s=self._timeout_s,
        )
        try:
            outputs = self._try_out(new, inputs)
        except BaseException:
            new.close()
            raise
        old, self.inferencer = self.inferencer, new
        self.inputs, self.outputs, self.reason, self.plans = inputs, outputs, "", {}
        if old is not None:
            self._retire(old)

    def _try_out(self, inferencer: Inferencer, inputs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        """Returns what the model answers to zeros; so a model that does not fit its inputs fails now, not later."""
        if not inputs:
            return ()
        zeros = [torch.zeros([max(size, 1) for size in s.shape], dtype=DATATYPES[s.datatype]) for s in inputs]
        outputs = named_outputs(inferencer(*zeros))
        return tuple(TensorSpec(name, datatype_of(x.dtype), (-1, *x.shape[1:])) for name, x in outputs)

    def unload(self, *, drain: bool = True) -> None:
        """Stops the workers, after they have answered what is on its way if they are to `drain`."""
        old, self.inferencer, self.reason = self.inferencer, None, "unloaded"
        if old is not None and drain:
            self._retire(old)
        elif old is not None:
            old.close()

    def _retire(self, old: Inferencer) -> None:
        """Closes an inferencer that gets no more requests, once it has answered those that it has."""
        deadline = time.monotonic() + self._timeout_s
        time.sleep(_HANDOVER_S)
        while old.client.n_pending and old.ready and time.monotonic() < deadline:
            time.sleep(_HANDOVER_S)
        old.close()

    def client(self) -> InferencerClient:
        """Returns whom to ask.

        Raises:
            NotReadyError: the model is not loaded, or its worker is being restarted.
        """
        if self.inferencer is None:
            raise NotReadyError(f"model {self.source.name!r} is {self.reason}")
        if not self.inferencer.ready:
            raise NotReadyError(f"the worker of model {self.source.name!r} is being restarted")
        return self.inferencer.client

    def metadata(self, versions: list[str]) -> dict[str, Any]:
        """Returns what the protocol calls the model's metadata."""
        return {
            "name": self.source.name,
            "versions": versions,
            "platform": "pytorch_libtorch",
            "inputs": [spec.describe() for spec in self.inputs],
            "outputs": [spec.describe() for spec in self.outputs],
        }


class Repository:
    """All models that the operator named, by name and version.

    Args:
        sources: of the models.
        timeout_s: how long a request may take.

    Raises:
        ValueError: two sources have the same name and version, or there is none.
    """

    def __init__(self, sources: list[ModelSource], timeout_s: float) -> None:
        if not sources:
            raise ValueError("a server must have at least one model")
        self.models: dict[str, dict[str, ServedModel]] = {}
        for source in sources:
            versions = self.models.setdefault(source.name, {})
            if source.version in versions:
                raise ValueError(f"model {source.name!r} must have one source for version {source.version!r}, not two")
            versions[source.version] = ServedModel(source, timeout_s)

    def find(self, name: str, version: str | None = None) -> ServedModel:
        """Returns a version of a model; without a version the newest that is loaded.

        Raises:
            UnknownModelError: there is none such.
        """
        versions = self.models.get(name)
        if versions is None:
            raise UnknownModelError(f"there is no model {name!r:.80}")
        if version is not None:
            if version not in versions:
                raise UnknownModelError(f"model {name!r} has no version {version!r:.80}")
            return versions[version]
        if len(versions) == 1:
            return next(iter(versions.values()))
        newest = sorted(versions.values(), key=lambda model: (model.inferencer is not None, _order(model)))
        return newest[-1]

    def load(self, name: str) -> None:
        """Loads every version of a model anew; see `ServedModel.load`."""
        self.find(name)
        for model in self.models[name].values():
            try:
                model.load()
            except Exception as error:
                model.reason = str(error) if model.inferencer is None else model.reason
                raise

    def unload(self, name: str, *, drain: bool = True) -> None:
        """Stops every version of a model; see `ServedModel.unload`."""
        self.find(name)
        for model in self.models[name].values():
            model.unload(drain=drain)

    def all(self) -> list[ServedModel]:
        """Returns every version of every model."""
        return [model for versions in self.models.values() for model in versions.values()]

    def index(self) -> list[dict[str, str]]:
        """Returns what the protocol calls the repository's index."""
        return [
            {
                "name": model.source.name,
                "version": model.source.version,
                "state": "READY" if model.ready else "UNAVAILABLE",
                "reason": model.reason,
            }
            for model in self.all()
        ]


def _order(model: ServedModel) -> tuple[int, str]:
    version = model.source.version
    return (int(version) if version.isdigit() else -1, version)


def named_outputs(tree: Tree) -> list[tuple[str, Any]]:
    """Returns a model's output tensors with names: `y` for one, else their keys, fields, or `y0`, `y1` and so on.

    Tensors are `torch.Tensor`s or `RawTensor`s, and stay what they are.
    """
    if isinstance(tree, (Tensor, RawTensor)):
        return [("y", tree)]
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        items = [(field.name, getattr(tree, field.name)) for field in dataclasses.fields(tree)]
    elif isinstance(tree, dict):
        items = [(str(key), value) for key, value in tree.items()]
    elif isinstance(tree, tuple) and hasattr(tree, "_fields"):
        items = list(zip(tree._fields, tree, strict=True))
    elif isinstance(tree, (list, tuple)):
        items = [(f"y{index}", value) for index, value in enumerate(tree)]
    else:
        raise BadInputError(f"the model returns {type(tree).__name__}, which is no tensor")
    named: list[tuple[str, Any]] = []
    for name, value in items:
        if isinstance(value, (Tensor, RawTensor)):
            named.append((name, value))
        elif value is not None and not isinstance(value, (bool, int, float, str)):
            named += [(f"{name}.{inner}", x) for inner, x in named_outputs(value)]
    return named
