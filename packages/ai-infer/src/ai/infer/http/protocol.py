"""One inference request and its response, as the Open Inference Protocol v2 writes them over HTTP.

A body is JSON, or JSON followed by the raw bytes of the tensors that say `binary_data_size`; the header
`inference-header-content-length` tells where the JSON ends.
"""

import json
from dataclasses import dataclass, field
from typing import Any

import torch

from ai.infer.http.messages import JSON, Headers
from ai.infer.http.tensors import (
    BadInputError,
    TensorSpec,
    check_bytes,
    check_shape,
    check_size,
    datatype_of,
    dtype_of,
    from_json,
    json_length,
    numbers,
)
from ai.infer.transport.trees import RawTensor

_MAX_PLANS = 1024
_MAX_KEPT_HEAD = 2048
_MAX_RESPONSE_HEADS = 16


@dataclass(frozen=True, eq=False)
class _Input:
    """Where one input's bytes are: `start` to `end` after the JSON, or in the JSON itself."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int
    given: RawTensor | None


@dataclass(frozen=True, eq=False)
class Plan:
    """What the JSON of a request says. Clients repeat themselves, so that it is worth keeping."""

    id: str
    inputs: list[_Input]
    """In the order of the model's inputs."""
    n_bytes: int
    """That follow the JSON."""
    outputs: dict[str, bool] | None
    """Wanted outputs and whether each is to be binary; None: all, as `binary` says."""
    binary: bool
    response_heads: dict[object, bytes] = field(default_factory=dict)
    """The JSON of responses whose tensors are all binary, by what they hold."""


def read_request(
    body: bytes, header: bytes | None, inputs: tuple[TensorSpec, ...], plans: dict[bytes, Plan]
) -> tuple[Plan, list[RawTensor]]:
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
    tensors: list[RawTensor] = []
    for x in plan.inputs:
        if x.given is not None:
            tensors.append(x.given)
            continue
        if x.end > len(data):
            raise BadInputError(
                f"input {x.name!r:.80} has binary_data_size {x.end - x.start}, and {len(data) - x.start} bytes follow"
            )
        part = data[x.start : x.end]
        check_bytes(x.name, x.dtype, part)
        tensors.append(RawTensor(x.dtype, x.shape, part))
    if plan.n_bytes != len(data):
        raise BadInputError(f"the body has {len(data) - plan.n_bytes} bytes that belong to no input")
    return plan, tensors


def _read_head(head: bytes, inputs: tuple[TensorSpec, ...]) -> Plan:
    try:
        document = json.loads(head)
    except (ValueError, RecursionError):
        raise BadInputError("the body must begin with JSON") from None
    if not isinstance(document, dict) or not isinstance(document.get("inputs"), list):
        raise BadInputError("the body's JSON must be an object with a list of 'inputs'")
    named: dict[str, _Input] = {}
    end = 0
    for about in document["inputs"]:
        x = _read_input(about, end, inputs)
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
    request_id = document.get("id", "")
    if not isinstance(request_id, str):
        raise BadInputError(f"'id' must be a string, not {type(request_id).__name__}")
    binary = bool(_object(document, "parameters").get("binary_data_output", False))
    return Plan(request_id, list(named.values()), end, _wanted(document), binary)


def _read_input(about: Any, start: int, inputs: tuple[TensorSpec, ...]) -> _Input:
    if not isinstance(about, dict) or not isinstance(about.get("name"), str):
        raise BadInputError("each input must be an object with a 'name'")
    name, datatype = about["name"], about.get("datatype")
    if not isinstance(datatype, str):
        raise BadInputError(f"input {name!r:.80} must have a 'datatype'")
    shape = check_shape(name, about.get("shape"))
    if not shape or shape[0] < 1:
        raise BadInputError(f"input {name!r:.80} must have at least one row, not shape {list(shape)}")
    if inputs:
        spec = next((spec for spec in inputs if spec.name == name), None)
        if spec is None:
            raise BadInputError(f"the model has no input {name!r:.80}; it has {[spec.name for spec in inputs]}")
        spec.check(datatype, shape)
    dtype = dtype_of(name, datatype)
    size = _object(about, "parameters").get("binary_data_size")
    if size is None:
        return _Input(name, dtype, shape, start, start, from_json(name, datatype, shape, about.get("data")))
    if type(size) is not int or size < 0:
        raise BadInputError(f"input {name!r:.80} must have a binary_data_size from 0, not {size!r:.40}")
    check_size(name, datatype, shape, size)
    return _Input(name, dtype, shape, start, start + size, None)


def _object(document: dict[str, Any], key: str) -> dict[str, Any]:
    value = document.get(key, {})
    if not isinstance(value, dict):
        raise BadInputError(f"{key!r} must be an object, not {type(value).__name__}")
    return value


def _wanted(document: dict[str, Any]) -> dict[str, bool] | None:
    outputs = document.get("outputs")
    if not outputs:
        return None
    if not isinstance(outputs, list):
        raise BadInputError("'outputs' must be a list")
    wanted: dict[str, bool] = {}
    for about in outputs:
        if not isinstance(about, dict) or not isinstance(about.get("name"), str):
            raise BadInputError("each output must be an object with a 'name'")
        wanted[about["name"]] = bool(_object(about, "parameters").get("binary_data", False))
    return wanted


def write_response(
    plan: Plan, outputs: list[tuple[str, RawTensor]], model_name: str, model_version: str
) -> tuple[Headers, bytes]:
    """Returns the headers and the body of a response.

    Raises:
        BadInputError: an output that was asked for is not there, or cannot be written as asked.
    """
    if plan.outputs is not None:
        unknown = set(plan.outputs) - {name for name, _ in outputs}
        if unknown:
            raise BadInputError(f"the model has no output {min(unknown)!r:.80}; it has {[name for name, _ in outputs]}")
        by_name = dict(outputs)
        outputs = [(name, by_name[name]) for name in plan.outputs]
    if not (plan.binary if plan.outputs is None else all(plan.outputs.values())):
        head, raw = _response_head(plan, outputs, model_name, model_version), _binary(plan, outputs)
    else:
        key = (model_version, *((name, x.dtype, x.shape) for name, x in outputs))
        known, raw = plan.response_heads.get(key), [x.data for _, x in outputs]
        if known is None:
            if len(plan.response_heads) >= _MAX_RESPONSE_HEADS:
                plan.response_heads.clear()
            known = plan.response_heads[key] = _response_head(plan, outputs, model_name, model_version)
        head = known
    if not raw:
        return JSON, head
    headers = (
        (b"content-type", b"application/octet-stream"),
        (b"inference-header-content-length", b"%d" % len(head)),
    )
    return headers, b"".join([head, *raw])


def _is_binary(plan: Plan, name: str) -> bool:
    return plan.binary if plan.outputs is None else plan.outputs[name]


def _binary(plan: Plan, outputs: list[tuple[str, RawTensor]]) -> list[bytes | memoryview]:
    return [x.data for name, x in outputs if _is_binary(plan, name)]


def _response_head(plan: Plan, outputs: list[tuple[str, RawTensor]], model_name: str, model_version: str) -> bytes:
    described: list[dict[str, Any]] = []
    for name, x in outputs:
        about: dict[str, Any] = {"name": name, "datatype": datatype_of(x.dtype), "shape": list(x.shape)}
        if _is_binary(plan, name):
            about["parameters"] = {"binary_data_size": len(x.data)}
        else:
            about["data"] = numbers(x).flatten().tolist()
        described.append(about)
    document: dict[str, Any] = {"model_name": model_name, "model_version": model_version, "outputs": described}
    if plan.id:
        document["id"] = plan.id
    return json.dumps(document, separators=(",", ":")).encode()
