"""The models of a server: each version has an inferencer of its own while it is loaded."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ai.infer.client import InferencerClient
from ai.infer.errors import RequestError
from ai.infer.http.formats.messages import RefusedError, first_line
from ai.infer.http.formats.outputs import named_outputs
from ai.infer.http.formats.protocol import Plan
from ai.infer.http.formats.tensors import BYTES, DATATYPES, BadInputError, TensorSpec, Texts, datatype_of
from ai.infer.http.models.model_sources import ModelSource, build, remake
from ai.infer.http.models.processing import Processing, find_function
from ai.infer.inferencer import Inferencer
from ai.infer.worker.rows.sharing import Share

_log = logging.getLogger("ai.infer")
_UNLOADED = "unloaded"
_SHARE: dict[str, Share] = {"auto": "auto", "1": True, "0": False}
_HANDOVER_S = 0.02  # that an event loop has at most between finding a model and asking it


class UnknownModelError(LookupError):
    """The server has no such model, or no such version of it."""


class NotReadyError(RuntimeError):
    """The model is known and not loaded, or its worker is being restarted."""


class DistantInferencer:
    """An inferencer of another process: a client of it, and what its owner said of it last.

    Args:
        address: of the inferencer.
        timeout_s: how long a request may take.
    """

    def __init__(self, address: str, timeout_s: float) -> None:
        self.client = InferencerClient(address, timeout_s=timeout_s)
        self.ready = False

    def close(self) -> None:
        """Hangs up; the workers are their owner's."""
        self.client.close()


HandOver = Callable[[Inferencer], None]
"""Waits until nobody needs an inferencer any more that gets no new requests."""


class ServedModel:
    """One version of one model.

    Args:
        source: where it comes from.
        timeout_s: how long a request may take.
        stall_timeout_s: after so long in one call of it, it is not ready.
        inferencer: of somebody else, who closes it; None: it is made of the source.
        trust: see `build`.
    """

    hand_over: HandOver | None = None
    """What other processes that ask its workers are told to do; None: there are none."""

    def __init__(
        self,
        source: ModelSource,
        timeout_s: float,
        stall_timeout_s: float,
        inferencer: Inferencer | None = None,
        *,
        trust: bool = False,
    ) -> None:
        self._trust = trust
        self.source = source
        self.inputs = source.inputs
        self.outputs: tuple[TensorSpec, ...] = ()
        self.plans: dict[bytes, Plan] = {}
        """Of requests for these inputs; see `read_request`."""
        self.reason = "not loaded" if inferencer is None else ""
        self.inferencer: Inferencer | DistantInferencer | None = inferencer
        self._own_client = None if inferencer is None else inferencer.create_client(timeout_s=timeout_s)
        self.processing: Processing | None = None
        """What is done before and after the model; known once it is loaded."""
        self._timeout_s = timeout_s
        self._stall_timeout_s = stall_timeout_s

    @property
    def ready(self) -> bool:
        """Whether a worker is there to answer."""
        return self.inferencer is not None and self.inferencer.ready

    @property
    def is_unloaded(self) -> bool:
        """Whether it was stopped because somebody asked for that."""
        return self.reason == _UNLOADED

    def load(self) -> None:
        """Builds the model and starts its workers; a loaded one is replaced once the new one is ready.

        Raises:
            ValueError: the source is none, or damaged; a loaded model goes on.
            InferError: a worker could not start; a loaded model goes on.
        """
        if self._own_client is not None:
            raise ValueError("it belongs to the program that serves it, which alone can load it")
        options = self.source.options
        processing = _processing(options, self._timeout_s)
        model, inputs = build(self.source, trust=self._trust)
        new = Inferencer(
            model,
            options.get("device", "cpu"),
            self.source.batch_size,
            replicas=int(options.get("replicas", "1")),
            build=remake(self.source),
            share=_SHARE[options.get("share", "auto")],
            restart=True,
            timeout_s=self._timeout_s,
            stall_timeout_s=self._stall_timeout_s,
        )
        try:
            outputs = self._try_out(new, inputs) if processing is None else ()
        except BaseException:
            new.close()
            raise
        old, self.inferencer, self.processing = self.inferencer, new, processing
        self.inputs, self.outputs, self.reason, self.plans = inputs, outputs, "", {}
        _log.info("model %s, version %s, is loaded", self.source.name, self.source.version)
        if isinstance(old, Inferencer):
            self._retire(old)

    def _try_out(self, inferencer: Inferencer, inputs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        """Returns what the model answers to zeros of two sizes: sizes that stay are its own, the others are free.

        A model that takes none of them, as one that needs more than one row or pixel, starts all the same, and says
        nothing of its outputs.
        """
        if not inputs or any(spec.datatype == BYTES for spec in inputs):
            return ()
        found: list[list[tuple[str, Any]]] = []
        for free in (1, 2):
            sizes = [[free if size < 0 else size for size in spec.shape] for spec in inputs]
            zeros = [
                torch.zeros(s, dtype=DATATYPES[x.datatype], device="cpu") for s, x in zip(sizes, inputs, strict=True)
            ]
            try:
                found.append(named_outputs(inferencer(*zeros)))
            except (RequestError, BadInputError, RefusedError) as error:
                text = "model %s could not be tried out at sizes %s, so that its outputs are not described: %s"
                _log.warning(text, self.source.name, sizes, first_line(error))
                return ()
        first, second = found
        if [name for name, _ in first] != [name for name, _ in second]:
            return ()
        outputs = []
        for (name, x), (_, y) in zip(first, second, strict=True):
            if len(x.shape) != len(y.shape):
                return ()
            shape = tuple(a if a == b else -1 for a, b in zip(x.shape, y.shape, strict=True))
            outputs.append(TensorSpec(name, BYTES if isinstance(x, Texts) else datatype_of(x.dtype), shape))
        return tuple(outputs)

    def unload(self, *, drain: bool = True) -> None:
        """Stops the workers, after they have answered what is on its way if they are to `drain`."""
        if self._own_client is not None:
            if drain:
                raise ValueError("it belongs to the program that serves it, which alone can unload it")
            self._own_client.close()
            return
        old, self.inferencer, self.reason = self.inferencer, None, _UNLOADED
        if isinstance(old, Inferencer) and drain:
            self._retire(old)
        elif old is not None:
            old.close()

    def _retire(self, old: Inferencer) -> None:
        """Closes an inferencer that gets no more requests, once it has answered those that it has."""
        if self.hand_over is not None:
            self.hand_over(old)
        deadline = time.monotonic() + self._timeout_s
        time.sleep(_HANDOVER_S)
        while old.client.n_pending and old.ready and time.monotonic() < deadline:
            time.sleep(_HANDOVER_S)
        old.close()

    def state(self) -> dict[str, Any]:
        """Returns what another process must know to ask the workers, as JSON can carry it."""
        return {
            "name": self.source.name,
            "version": self.source.version,
            "inputs": [spec.describe() for spec in self.inputs],
            "outputs": [spec.describe() for spec in self.outputs],
            "reason": self.reason,
            "ready": self.ready,
            "address": None if self.inferencer is None else self.inferencer.client.address,
        }

    def adopt(self, state: dict[str, Any]) -> InferencerClient | None:
        """Takes over what the owner of the workers says; returns a client that gets no more requests, if there is one.

        Args:
            state: what `state` returned there.
        """
        old = self.inferencer
        new = old
        if old is None or old.client.address != state["address"]:
            address = state["address"]
            new = None if address is None else DistantInferencer(address, self._timeout_s)
        if isinstance(new, DistantInferencer):
            new.ready = state["ready"]
        inputs, outputs = (
            tuple(TensorSpec(each["name"], each["datatype"], tuple(each["shape"])) for each in state[side])
            for side in ("inputs", "outputs")
        )
        if inputs != self.inputs:
            self.plans = {}
        self.inputs, self.outputs = inputs, outputs
        if self.processing is None:
            self.processing = _processing(self.source.options, self._timeout_s)
        self.reason, self.inferencer = state["reason"], new
        return old.client if old is not None and old is not new else None

    def client(self) -> InferencerClient:
        """Returns whom to ask.

        Raises:
            NotReadyError: the model is not loaded, or its worker is being restarted.
        """
        if self.inferencer is None:
            raise NotReadyError(f"model {self.source.name!r} is {self.reason}")
        if not self.inferencer.ready:
            raise NotReadyError(f"the worker of model {self.source.name!r} is being restarted, or hangs")
        return self._own_client or self.inferencer.client

    def metadata(self, versions: list[str]) -> dict[str, Any]:
        """Returns what the protocol calls the model's metadata."""
        return {
            "name": self.source.name,
            "versions": versions,
            "platform": "pytorch_libtorch",
            "inputs": [spec.describe() for spec in self.inputs],
            "outputs": [spec.describe() for spec in self.outputs],
        }


def _processing(options: dict[str, str], timeout_s: float) -> Processing | None:
    """Returns what a source's options say is to be done before and after its model."""
    functions = [find_function(options[key]) if key in options else None for key in ("before", "after")]
    return Processing(functions[0], functions[1], timeout_s) if any(functions) else None


class Repository:
    """All models that the operator named, by name and version.

    Args:
        models: inferencers by name, or sources.
        timeout_s: how long a request may take.
        stall_timeout_s: after so long in one call of it a model is not ready.
        trust: see `build`.

    Raises:
        TypeError: they are something else.
        ValueError: two sources have the same name and version, or there is none.
    """

    def __init__(
        self,
        models: Mapping[str, Inferencer] | Sequence[str | ModelSource],
        timeout_s: float,
        stall_timeout_s: float,
        *,
        trust: bool = False,
    ) -> None:
        if isinstance(models, str):  # whose letters would be sources
            raise TypeError(f"models must be a dict of inferencers or a list of sources, not {models!r:.80}")
        if not models:
            raise ValueError("a server must have at least one model")
        self.models: dict[str, dict[str, ServedModel]] = {}
        if isinstance(models, Mapping):
            for name, inferencer in models.items():
                if not isinstance(inferencer, Inferencer):
                    raise TypeError(f"models[{name!r}] must be an Inferencer, not {type(inferencer).__name__}")
                source = ModelSource.parse(f"{name}=program")
                served = ServedModel(source, timeout_s, stall_timeout_s, inferencer)
                self.models.setdefault(source.name, {})[source.version] = served
            return
        for each in models:
            source = ModelSource.parse(each) if isinstance(each, str) else each
            if not isinstance(source, ModelSource):
                raise TypeError(f"models must hold sources, not {each!r:.80}")
            versions = self.models.setdefault(source.name, {})
            if source.version in versions:
                raise ValueError(f"model {source.name!r} must have one source for version {source.version!r}, not two")
            versions[source.version] = ServedModel(source, timeout_s, stall_timeout_s, trust=trust)

    def adopt(self, states: list[dict[str, Any]]) -> list[InferencerClient]:
        """Takes over what the owner of the workers says of each model; see `ServedModel.adopt`."""
        old = [self.models[state["name"]][state["version"]].adopt(state) for state in states]
        return [client for client in old if client is not None]

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

    def start(self, name: str) -> None:
        """Loads every version of a model that is not there yet."""
        if any(model.inferencer is None for model in self.models[name].values()):
            self.load(name)

    @property
    def ready(self) -> bool:
        """Whether every model can answer that nobody has unloaded."""
        return all(model.ready or model.is_unloaded for model in self.all())

    def load(self, name: str) -> None:
        """Loads every version of a model anew; see `ServedModel.load`."""
        self.find(name)
        for model in self.models[name].values():
            try:
                model.load()
            except BaseException as error:
                if model.inferencer is None:
                    model.reason = f"not loaded: {first_line(error)}"
                _log.error("model %s could not be loaded", name, exc_info=error)
                if isinstance(error, Exception) and not isinstance(error, StopIteration):
                    raise
                # A factory's exit is not the server's, and what ends an iterator cannot leave a thread for a coroutine.
                raise RuntimeError(f"it ended by {type(error).__name__}: {error}") from error

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
