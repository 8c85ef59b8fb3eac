"""One inference request and its response, as the Open Inference Protocol v2 writes them over HTTP.

A body is JSON, or JSON followed by the raw bytes of the tensors that say `binary_data_size`; the header
`inference-header-content-length` tells where the JSON ends.
"""

import json
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ai.infer.http.tensors import (
    BadInputError,
    TensorSpec,
    check_shape,
    datatype_of,
    from_bytes,
    from_json,
    json_length,
    numbers,
    to_bytes,
)

Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True)
class InferRequest:
    """What a client asks."""

    id: str
    tensors: list[Tensor]
    """In the order of the model's inputs."""
    outputs: dict[str, bool] | None
    """Wanted outputs and whether each is to be binary; None: all, as `binary` says."""
    binary: bool


def read_request(body: bytearray, header: bytes | None, inputs: tuple[TensorSpec, ...]) -> InferRequest:
    """Returns the request in a body.

    Args:
        body: as received.
        header: the value of `inference-header-content-length`, if it was sent.
        inputs: what the model takes; empty: unknown, so that the tensors are passed in the order they have.

    Raises:
        BadInputError: the body is no request, or not one for this model.
    """
    length = json_length(header, len(body))
    try:
        document = json.loads(bytes(memoryview(body)[:length]))
    except (ValueError, RecursionError):
        raise BadInputError("the body must begin with JSON") from None
    if not isinstance(document, dict) or not isinstance(document.get("inputs"), list):
        raise BadInputError("the body's JSON must be an object with a list of 'inputs'")
    named: dict[str, Tensor] = {}
    start = length
    for about in document["inputs"]:
        name, x, start = _read_input(about, body, start, inputs)
        if name in named:
            raise BadInputError(f"input {name!r} must be given once")
        named[name] = x
    if start != len(body):
        raise BadInputError(f"the body has {len(body) - start} bytes that belong to no input")
    if inputs:
        missing = [spec.name for spec in inputs if spec.name not in named]
        if missing:
            raise BadInputError(f"input {missing[0]!r} is missing")
        named = {spec.name: named[spec.name] for spec in inputs}
    if not named:
        raise BadInputError("a request must have at least one input")
    parameters = _object(document, "parameters")
    request_id = document.get("id", "")
    if not isinstance(request_id, str):
        raise BadInputError(f"'id' must be a string, not {type(request_id).__name__}")
    return InferRequest(
        request_id, list(named.values()), _wanted(document), bool(parameters.get("binary_data_output", False))
    )


def _read_input(about: Any, body: bytearray, start: int, inputs: tuple[TensorSpec, ...]) -> tuple[str, Tensor, int]:
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
    size = _object(about, "parameters").get("binary_data_size")
    if size is None:
        return name, from_json(name, datatype, shape, about.get("data")), start
    if type(size) is not int or not 0 <= size <= len(body) - start:
        raise BadInputError(
            f"input {name!r:.80} has binary_data_size {size!r:.40}, and {len(body) - start} bytes follow"
        )
    # A copy, since the bytes may lie at an address that suits no number.
    return name, from_bytes(name, datatype, shape, memoryview(body[start : start + size])), start + size


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
    request: InferRequest, outputs: list[tuple[str, Tensor]], model_name: str, model_version: str
) -> tuple[Headers, bytes]:
    """Returns the headers and the body of a response.

    Raises:
        BadInputError: an output that was asked for is not there, or cannot be written as asked.
    """
    if request.outputs is not None:
        unknown = set(request.outputs) - {name for name, _ in outputs}
        if unknown:
            raise BadInputError(f"the model has no output {min(unknown)!r:.80}; it has {[name for name, _ in outputs]}")
        by_name = dict(outputs)
        outputs = [(name, by_name[name]) for name in request.outputs]
    described: list[dict[str, Any]] = []
    raw: list[bytes] = []
    for name, x in outputs:
        about: dict[str, Any] = {"name": name, "datatype": datatype_of(x), "shape": list(x.shape)}
        if request.binary if request.outputs is None else request.outputs[name]:
            raw.append(to_bytes(x))
            about["parameters"] = {"binary_data_size": len(raw[-1])}
        else:
            about["data"] = numbers(x)
        described.append(about)
    document: dict[str, Any] = {"model_name": model_name, "model_version": model_version, "outputs": described}
    if request.id:
        document["id"] = request.id
    head = json.dumps(document, separators=(",", ":")).encode()
    if not raw:
        return [(b"content-type", b"application/json")], head
    headers = [
        (b"content-type", b"application/octet-stream"),
        (b"inference-header-content-length", str(len(head)).encode()),
    ]
    return headers, b"".join([head, *raw])
