"""Inference for people with curl: the numbers of one input in the body, the numbers of one output back."""

import json
import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from ai.infer.http.formats.accept import ReplyForm, reply_form
from ai.infer.http.formats.messages import JSON, Headers
from ai.infer.http.formats.outputs import Output
from ai.infer.http.formats.tensors import (
    BYTES,
    DATATYPES,
    BadInputError,
    TensorSpec,
    Texts,
    check_bytes,
    check_shape,
    check_size,
    datatype_of,
    from_json,
    numbers,
    read_json,
    texts_from_json,
)
from ai.infer.transport.trees import RawInput, RawTensor


class PlainRequest(NamedTuple):
    """One input, and whether JSON is to go back."""

    x: RawInput
    as_json: bool


def read_plain(
    body: bytes, headers: dict[bytes, bytes], inputs: tuple[TensorSpec, ...], check_json: Callable[[int], None]
) -> PlainRequest:
    """Returns the input in a body.

    With content type `application/json` the body is a nested list whose first axis is the rows, or a number for an
    input without axes. Otherwise it is raw little-endian numbers; their shape is the model's, any number of rows,
    unless `x-shape` (`2,1,28,28`; empty: without axes) says it, and `x-datatype` (`FP32`). It is answered in the
    body's form, unless `accept` likes the other one better.

    `check_json` is told how many bytes of JSON there are, before they are parsed.

    Raises:
        BadInputError: the body is no input of this model.
    """
    if len(inputs) > 1:
        raise BadInputError(f"the model has {len(inputs)} inputs: use /v2/models/NAME/infer")
    spec = inputs[0] if inputs else None
    as_json = headers.get(b"content-type", b"").lower().startswith(b"application/json")
    if as_json:
        check_json(len(body))
    to_json, accept = as_json, headers.get(b"accept")
    if accept is not None and accept != b"*/*" and (form := reply_form(accept)) is not None:
        to_json = form is ReplyForm.JSON
    if spec is not None and spec.datatype == BYTES:
        return PlainRequest(_texts(body, as_json), to_json)
    if not as_json:
        dtype, shape = _form(len(body), headers.get(b"x-shape"), headers.get(b"x-datatype"), spec)
        check_bytes("body", dtype, body)
        return PlainRequest(RawTensor(dtype, shape, body), to_json)
    datatype = _datatype(headers.get(b"x-datatype"), spec)
    data = read_json(body)
    if data == []:
        raise BadInputError(_NO_ROWS)
    shape = _shape_of_list(data)
    x = from_json("body", datatype, shape, data if isinstance(data, list) else [data], body)
    if spec is not None:
        spec.check(datatype, shape)
    return PlainRequest(x, to_json)


def _texts(body: bytes, as_json: bool) -> list[Any]:
    """Returns the texts of a JSON list, or the body as the one text that it is."""
    if not as_json:
        return [body]
    data = read_json(body)
    if not isinstance(data, list) or not data:
        raise BadInputError("the body must be a list of texts")
    return texts_from_json("body", _shape_of_list(data), data)


@lru_cache(maxsize=1024)
def _form(
    n_bytes: int, x_shape: bytes | None, x_datatype: bytes | None, spec: TensorSpec | None
) -> tuple[torch.dtype, tuple[int, ...]]:
    """Returns what so many bytes under these headers are, which is the same for most requests of a client."""
    datatype = _datatype(x_datatype, spec)
    shape = _shape_of_bytes(n_bytes, x_shape, datatype, spec)
    check_size("body", datatype, shape, n_bytes)
    if spec is not None:
        spec.check(datatype, shape)
    return DATATYPES[datatype], shape


def _datatype(header: bytes | None, spec: TensorSpec | None) -> str:
    if header is None:
        return spec.datatype if spec else "FP32"
    datatype = header.decode("latin1")
    if datatype not in DATATYPES:
        raise BadInputError(f"x-datatype must be one of {', '.join(DATATYPES)}, not {datatype!r:.40}")
    return datatype


def _shape_of_list(data: object) -> tuple[int, ...]:
    shape: list[int] = []
    while isinstance(data, list) and len(shape) < 16:
        shape.append(len(data))
        data = data[0] if data else None
    return tuple(shape)


def _shape_of_bytes(n_bytes: int, header: bytes | None, datatype: str, spec: TensorSpec | None) -> tuple[int, ...]:
    if header is not None:
        sizes = header.split(b",") if header else []
        if not all(size.strip().isdigit() and len(size) < 14 for size in sizes):
            raise BadInputError(f"x-shape must be sizes between commas, not {header.decode('latin1')!r:.40}")
        return check_shape("body", [int(size) for size in sizes])
    if spec is None or any(size < 0 for size in spec.shape[1:]):
        raise BadInputError("the model's input has no fixed shape: send x-shape, such as 2,1,28,28")
    if not spec.shape:
        return ()
    if n_bytes == 0:
        raise BadInputError(_NO_ROWS)
    row_bytes = math.prod(spec.shape[1:]) * DATATYPES[datatype].itemsize
    if row_bytes == 0 or n_bytes % row_bytes:
        raise BadInputError(f"the body must have a multiple of {row_bytes} bytes, one row each, not {n_bytes}")
    return (n_bytes // row_bytes, *spec.shape[1:])


def answer_plain(asked: PlainRequest, outputs: list[tuple[str, Output]]) -> tuple[Headers, bytes]:
    """Returns headers and body of the reply: raw bytes with `x-shape` and `x-datatype`, or a nested list.

    Raises:
        BadInputError: the model has several outputs, or JSON cannot write them.
    """
    if asked.as_json:
        nested = {name: x.to_json() if isinstance(x, Texts) else numbers(x).tolist() for name, x in outputs}
        document = next(iter(nested.values())) if len(nested) == 1 else nested
        return JSON, json.dumps(document, separators=(",", ":")).encode()
    if len(outputs) != 1:
        raise BadInputError(f"the model has {len(outputs)} outputs: {_MANY}")
    x = outputs[0][1]
    if not isinstance(x, Texts):
        return _octets(x.dtype, x.shape), bytes(x.data)
    if len(x.items) != 1:
        raise BadInputError(f"the model returns {len(x.items)} texts: {_MANY}")
    return (*_OCTETS, (b"x-shape", b"1"), (b"x-datatype", b"BYTES")), x.items[0]


_NO_ROWS = "the body must have at least one row; that there are none is said by x-shape, such as 0,1,28,28"
_MANY = "ask for JSON by the header accept: application/json, or use /v2/models/NAME/infer"
_OCTETS: Headers = ((b"content-type", b"application/octet-stream"),)


@lru_cache(maxsize=1024)
def _octets(dtype: torch.dtype, shape: tuple[int, ...]) -> Headers:
    return (
        *_OCTETS,
        (b"x-shape", ",".join(map(str, shape)).encode()),
        (b"x-datatype", datatype_of(dtype).encode()),
    )
