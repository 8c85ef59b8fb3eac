"""One inference request and its response, as the Open Inference Protocol v2 writes them over HTTP.

A body is JSON, or JSON followed by the raw bytes of the tensors that say `binary_data_size`; the header
`inference-header-content-length` tells where the JSON ends.
"""

import json
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from ai.infer.http.formats.messages import JSON, Headers
from ai.infer.http.formats.outputs import Output, classify
from ai.infer.http.formats.tensors import (
    BYTES,
    BadInputError,
    TensorSpec,
    Texts,
    check_bytes,
    check_shape,
    check_size,
    datatype_of,
    dtype_of,
    from_json,
    json_length,
    numbers,
    read_json,
    texts_from_bytes,
    texts_from_json,
)
from ai.infer.transport.trees import RawInput, RawTensor

_MAX_PLANS = 1024
_MAX_KEPT_HEAD = 2048
_MAX_RESPONSE_HEADS = 16
_REQUEST = {"id", "parameters", "inputs", "outputs", "model_name", "model_version"}
"""The last two, which stand in the path as well, are KServe's."""
_INPUT = {"name", "shape", "datatype", "parameters", "data"}
_OUTPUT = {"name", "parameters"}


@dataclass(frozen=True, eq=False)
class _Input:
    """Where one input's bytes are: `start` to `end` after the JSON, or in the JSON itself."""

    name: str
    dtype: torch.dtype | None
    """None: its elements are texts."""
    shape: tuple[int, ...]
    start: int
    end: int
    given: RawInput | None


class _Wanted(NamedTuple):
    """How one output is to be written."""

    binary: bool
    n_classes: int = 0
    """The best so many classes instead of scores; 0: the output itself."""


@dataclass(frozen=True, eq=False)
class Plan:
    """What the JSON of a request says. Clients repeat themselves, so that it is worth keeping."""

    id: str
    inputs: list[_Input]
    """In the order of the model's inputs."""
    n_bytes: int
    """That follow the JSON."""
    outputs: dict[str, _Wanted] | None
    """By name; None: all, as `binary` says."""
    binary: bool
    timeout_s: float | None = None
    """How long the answer may take; None: as the server says."""
    response_heads: dict[object, bytes] = field(default_factory=dict)
    """The JSON of responses whose tensors are all binary, by what they hold."""


def read_request(
    body: bytes, header: bytes | None, inputs: tuple[TensorSpec, ...], plans: dict[bytes, Plan]
) -> tuple[Plan, list[RawInput]]:
    """Returns what a request says and its tensors, in the order of the model's inputs.

    Args:
        body: as received.
        header: the value of `inference-header-content-length`, if it was sent.
        inputs: what the model takes; empty: unknown, so that the tensors are passed in the order they have.
        plans: of earlier requests for these inputs, by their JSON.

    Raises:
        BadInputError: the body is no request, or not one for this model.
    """
    length = json_length(header, len(body))
    head = body[:length]
    plan = plans.get(head)
    if plan is None:
        plan = _read_head(head, inputs)
        if length <= _MAX_KEPT_HEAD:
            if len(plans) >= _MAX_PLANS:
                plans.clear()
            plans[head] = plan
    data = memoryview(body)[length:]
    tensors: list[RawInput] = []
    for x in plan.inputs:
        if x.given is not None:
            tensors.append(x.given)
            continue
        if x.end > len(data):
            raise BadInputError(
                f"input {x.name!r:.80} has binary_data_size {x.end - x.start}, and {len(data) - x.start} bytes follow"
            )
        part = data[x.start : x.end]
        if x.dtype is None:
            tensors.append(texts_from_bytes(x.name, x.shape, part))
            continue
        check_bytes(x.name, x.dtype, part)
        tensors.append(RawTensor(x.dtype, x.shape, part))
    if plan.n_bytes != len(data):
        raise BadInputError(f"the body has {len(data) - plan.n_bytes} bytes that belong to no input")
    return plan, tensors


def _read_head(head: bytes, inputs: tuple[TensorSpec, ...]) -> Plan:
    document = read_json(head, "begin with")
    if not isinstance(document, dict) or not isinstance(document.get("inputs"), list):
        raise BadInputError("the body's JSON must be an object with a list of 'inputs'")
    _only_known(document, "the request", _REQUEST)
    named: dict[str, _Input] = {}
    end = 0
    for about in document["inputs"]:
        x = _read_input(about, end, inputs, head)
        if x.name in named:
            raise BadInputError(f"input {x.name!r} must be given once")
        named[x.name] = x
        end = x.end
    if inputs:
        missing = [spec.name for spec in inputs if spec.name not in named]
        if missing:
            raise BadInputError(f"input {missing[0]!r} is missing")
        named = {spec.name: named[spec.name] for spec in inputs}
    if not named:
        raise BadInputError("a request must have at least one input")
    request_id = document.get("id")
    if request_id is not None and not isinstance(request_id, str):
        raise BadInputError(f"'id' must be a string, not {type(request_id).__name__}")
    parameters = _parameters(document, "the request", {"binary_data_output", "timeout", "priority", "content_type"})
    if parameters.get("priority", 0) not in (0, "0"):
        raise BadInputError("the request's parameter 'priority' is not supported")
    timeout_s = _timeout_s(parameters.get("timeout"))
    binary = _flag(parameters, "binary_data_output")
    return Plan(request_id or "", list(named.values()), end, _wanted(document, binary), binary, timeout_s)


def _timeout_s(microseconds: Any) -> float | None:
    if microseconds is None or microseconds == 0:
        return None
    if type(microseconds) is not int or microseconds < 0:
        raise BadInputError(f"'timeout' must be a whole number of microseconds from 0, not {microseconds!r:.40}")
    return min(microseconds, 10**12) / 1e6


def _flag(parameters: dict[str, Any], name: str, default: bool = False) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise BadInputError(f"{name!r} must be true or false, not {value!r:.40}")
    return value


def _only_known(document: dict[str, Any], what: str, known: set[str]) -> None:
    """Raises for fields that nobody here would heed, such as one that is misspelt; null is as if left out."""
    for name, x in document.items():
        if name not in known and x is not None:
            raise BadInputError(f"{what} has no field {name!r:.80}; it has {sorted(known)}")


def _parameters(document: dict[str, Any], what: str, known: set[str]) -> dict[str, Any]:
    """Returns the parameters of a part of the request; raises for those that nobody here would heed."""
    parameters = {name: x for name, x in _object(document, "parameters").items() if x is not None}
    unknown = sorted(parameters.keys() - known)
    if unknown:
        raise BadInputError(f"{what}'s parameter {unknown[0]!r:.80} is not supported")
    return parameters


def _read_input(about: Any, start: int, inputs: tuple[TensorSpec, ...], head: bytes) -> _Input:
    if not isinstance(about, dict) or not isinstance(about.get("name"), str):
        raise BadInputError("each input must be an object with a 'name'")
    name, datatype = about["name"], about.get("datatype")
    _only_known(about, f"input {name!r:.80}", _INPUT)
    if not isinstance(datatype, str):
        raise BadInputError(f"input {name!r:.80} must have a 'datatype'")
    shape = check_shape(name, about.get("shape"))
    if not shape and datatype == BYTES:
        raise BadInputError(f"input {name!r:.80} must have an axis of texts, not shape []")
    if inputs:
        spec = next((spec for spec in inputs if spec.name == name), None)
        if spec is None:
            raise BadInputError(f"the model has no input {name!r:.80}; it has {[spec.name for spec in inputs]}")
        spec.check(datatype, shape)
    dtype = None if datatype == BYTES else dtype_of(name, datatype)
    size = _parameters(about, f"input {name!r:.80}", {"binary_data_size", "content_type"}).get("binary_data_size")
    if size is None:
        data = about.get("data")
        given = texts_from_json(name, shape, data) if dtype is None else from_json(name, datatype, shape, data, head)
        return _Input(name, dtype, shape, start, start, given)
    if type(size) is not int or size < 0:
        raise BadInputError(f"input {name!r:.80} must have a binary_data_size from 0, not {size!r:.40}")
    if about.get("data") is not None:
        raise BadInputError(f"input {name!r:.80} must have either 'data' or binary_data_size, not both")
    if dtype is not None:
        check_size(name, datatype, shape, size)
    return _Input(name, dtype, shape, start, start + size, None)


def _object(document: dict[str, Any], key: str) -> dict[str, Any]:
    value = document.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise BadInputError(f"{key!r} must be an object, not {type(value).__name__}")
    return value


def _wanted(document: dict[str, Any], binary: bool) -> dict[str, _Wanted] | None:
    """Returns how each output that a request names is to be written: as it says itself, else as the request does."""
    outputs = document.get("outputs")
    if outputs is None:
        return None
    if not isinstance(outputs, list):
        raise BadInputError(f"'outputs' must be a list, not {type(outputs).__name__}")
    if not outputs:
        return None
    wanted: dict[str, _Wanted] = {}
    for about in outputs:
        if not isinstance(about, dict) or not isinstance(about.get("name"), str):
            raise BadInputError("each output must be an object with a 'name'")
        name = about["name"]
        _only_known(about, f"output {name!r:.80}", _OUTPUT)
        parameters = _parameters(about, f"output {name!r:.80}", {"binary_data", "classification", "content_type"})
        n_classes = parameters.get("classification", 0)
        if type(n_classes) is not int or n_classes < 0:
            raise BadInputError(f"output {name!r:.80} must have a classification from 0, not {n_classes!r:.40}")
        if name in wanted:
            raise BadInputError(f"output {name!r:.80} must be asked for once")
        wanted[name] = _Wanted(_flag(parameters, "binary_data", binary), n_classes)
    return wanted


def write_response(
    plan: Plan, outputs: list[tuple[str, Output]], model_name: str, model_version: str
) -> tuple[Headers, bytes]:
    """Returns the headers and the body of a response.

    Raises:
        BadInputError: an output that was asked for is not there, or cannot be written as asked.
    """
    binary = [plan.binary] * len(outputs)
    if plan.outputs is not None:
        by_name = dict(outputs)
        unknown = plan.outputs.keys() - by_name.keys()
        if unknown:
            raise BadInputError(f"the model has no output {min(unknown)!r:.80}; it has {list(by_name)}")
        outputs = [
            (name, classify(name, by_name[name], how.n_classes) if how.n_classes else by_name[name])
            for name, how in plan.outputs.items()
        ]
        binary = [how.binary for how in plan.outputs.values()]
    raw = [_to_bytes(x) for (_, x), as_bytes in zip(outputs, binary, strict=True) if as_bytes]
    if all(binary) and not any(isinstance(x, Texts) for _, x in outputs):  # it will be so again
        key = (model_version, *((name, x.dtype, x.shape) for name, x in outputs if isinstance(x, RawTensor)))
        known = plan.response_heads.get(key)
        if known is None:
            if len(plan.response_heads) >= _MAX_RESPONSE_HEADS:
                plan.response_heads.clear()
            known = plan.response_heads[key] = _response_head(plan, outputs, binary, model_name, model_version)
        head = known
    else:
        head = _response_head(plan, outputs, binary, model_name, model_version)
    if not raw:
        return JSON, head
    headers = (
        (b"content-type", b"application/octet-stream"),
        (b"inference-header-content-length", b"%d" % len(head)),
    )
    return headers, b"".join([head, *raw])


def _to_bytes(x: Output) -> bytes | memoryview:
    return x.to_bytes() if isinstance(x, Texts) else x.data


def _response_head(
    plan: Plan, outputs: list[tuple[str, Output]], binary: list[bool], model_name: str, model_version: str
) -> bytes:
    described: list[dict[str, Any]] = []
    for (name, x), as_bytes in zip(outputs, binary, strict=True):
        datatype = BYTES if isinstance(x, Texts) else datatype_of(x.dtype)
        about: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(x.shape)}
        if as_bytes:
            about["parameters"] = {"binary_data_size": len(_to_bytes(x))}
        else:
            about["data"] = x.to_json() if isinstance(x, Texts) else numbers(x).flatten().tolist()
        described.append(about)
    document: dict[str, Any] = {"model_name": model_name, "model_version": model_version, "outputs": described}
    if plan.id:
        document["id"] = plan.id
    return json.dumps(document, separators=(",", ":")).encode()
