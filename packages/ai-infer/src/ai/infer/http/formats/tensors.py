"""Tensors as the Open Inference Protocol writes them: named datatypes, JSON numbers or raw little-endian bytes.

Source: the protocol's `specification/protocol/inference_rest.md` and its extension `binary_tensor_data`, as of KServe
and Triton.
"""

import itertools
import json
import math
import struct
import sys
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ai.infer.http.formats.messages import RefusedError
from ai.infer.transport.trees import RawTensor

DATATYPES = {
    "BOOL": torch.bool,
    "UINT8": torch.uint8,
    "UINT16": torch.uint16,
    "UINT32": torch.uint32,
    "UINT64": torch.uint64,
    "INT8": torch.int8,
    "INT16": torch.int16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "FP16": torch.float16,
    "BF16": torch.bfloat16,
    "FP32": torch.float32,
    "FP64": torch.float64,
}
NAMES = {dtype: name for name, dtype in DATATYPES.items()}
BYTES = "BYTES"
"""The datatype of texts, which are no tensor: a model takes and returns them as lists."""
_MAX_DIMS = 16
_MAX_TEXTS = 4096
_LENGTH = struct.Struct("<I")


class BadInputError(ValueError):
    """A request that is refused before it reaches a worker; the message is for whoever sent it."""


class Texts(NamedTuple):
    """Texts in a tensor's place: its elements in C order."""

    shape: tuple[int, ...]
    items: list[bytes]

    def nested(self) -> list[Any]:
        """Returns the texts as lists in lists, as the shape says."""
        nested: list[Any] = self.items
        for size in self.shape[:0:-1]:
            nested = [nested[i : i + size] for i in range(0, len(nested), size)]
        return nested

    def to_bytes(self) -> bytes:
        """Returns each text after its length, as the protocol writes them in binary."""
        return b"".join(_LENGTH.pack(len(item)) + item for item in self.items)

    def to_json(self) -> list[str]:
        """Returns the texts as strings; raises for those that are none."""
        try:
            return [item.decode() for item in self.items]
        except UnicodeDecodeError:
            raise BadInputError("the model's output is not text, which JSON cannot write: ask for binary") from None


class TensorSpec(NamedTuple):
    """What a model takes or returns at one place."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    """-1: any size; the first is the number of rows, if there are axes."""

    @classmethod
    def parse(cls, text: str) -> "TensorSpec":
        """Returns the spec written `NAME:DATATYPE:SIZE,SIZE,…`, without sizes for an input without axes.

        >>> TensorSpec.parse("x:FP32:-1,3"), TensorSpec.parse("rate:INT64:").shape
        (TensorSpec(name='x', datatype='FP32', shape=(-1, 3)), ())
        """
        parts = text.split(":")
        if len(parts) != 3 or not parts[0] or (parts[1] not in DATATYPES and parts[1] != BYTES):
            raise ValueError(f"an input must be written NAME:DATATYPE:SIZES, such as x:FP32:-1,3, not {text!r}")
        try:
            shape = tuple(int(size) for size in parts[2].split(",")) if parts[2] else ()
        except ValueError:
            raise ValueError(f"an input's sizes must be whole numbers between commas, not {parts[2]!r}") from None
        if any(size < -1 for size in shape):
            raise ValueError(f"an input's sizes must be from 0, or -1 for any, not {min(shape)}")
        return cls(parts[0], parts[1], shape)

    def check(self, datatype: str, shape: tuple[int, ...]) -> None:
        """Raises `BadInputError` if a tensor of this datatype and shape cannot take this place."""
        if datatype != self.datatype:
            raise BadInputError(f"input {self.name!r} must have datatype {self.datatype}, not {datatype}")
        fits = len(shape) == len(self.shape) and all(w in (-1, s) for w, s in zip(self.shape, shape, strict=True))
        if not fits:
            raise BadInputError(f"input {self.name!r} must have shape {list(self.shape)}, not {list(shape)}")

    def describe(self) -> dict[str, Any]:
        """Returns the spec as the protocol's metadata write it."""
        return {"name": self.name, "datatype": self.datatype, "shape": list(self.shape)}


def check_shape(name: str, shape: Any) -> tuple[int, ...]:
    """Returns a shape that came from outside as a tuple of sizes."""
    if (
        not isinstance(shape, list)
        or len(shape) > _MAX_DIMS
        or not all(type(size) is int and 0 <= size < 1 << 40 for size in shape)
    ):
        raise BadInputError(f"input {name!r} must have a shape that is a list of sizes from 0, not {shape!r:.80}")
    return tuple(shape)


def dtype_of(name: str, datatype: str) -> torch.dtype:
    """Returns the dtype that a datatype stands for; `name` is that of the input it is said of."""
    try:
        return DATATYPES[datatype]
    except KeyError:
        known = ", ".join(DATATYPES)
        raise BadInputError(f"input {name!r} must have a datatype of {known}, not {datatype!r:.40}") from None


def check_size(name: str, datatype: str, shape: tuple[int, ...], n_bytes: int) -> None:
    """Raises `BadInputError` if a tensor of this datatype and shape has another number of bytes."""
    expected = math.prod(shape) * dtype_of(name, datatype).itemsize
    if n_bytes != expected:
        raise BadInputError(
            f"input {name!r} of shape {list(shape)} and datatype {datatype} must have {expected} bytes, not {n_bytes}"
        )


def check_bytes(name: str, dtype: torch.dtype, data: bytes | memoryview) -> None:
    """Raises `BadInputError` if bytes are no numbers of a dtype; those of most dtypes always are."""
    if dtype is torch.bool and len(data) and max(data) > 1:
        raise BadInputError(f"input {name!r} must have bytes 0 and 1 alone for datatype BOOL, not {max(data)}")


def from_json(name: str, datatype: str, shape: tuple[int, ...], data: Any, text: bytes | None = None) -> RawTensor:
    """Returns the tensor whose elements are JSON numbers, flat or nested; they are never rounded to whole ones.

    `text`, from which they were read, tells the numbers too large for a float, as 1e400, from those written Infinity,
    as clients in Python write what JSON has no word for.
    """
    dtype = dtype_of(name, datatype)
    if not isinstance(data, list):
        raise BadInputError(f"input {name!r} must have data that is a list of numbers, not {type(data).__name__}")
    items, kinds = _items(name, shape, data)
    try:
        mixed = bool in kinds and len(kinds) > 1 and dtype is not torch.bool
        if mixed or kinds - {int, float, bool}:  # an array would give each number the width of the longest text
            raise ValueError("numbers are")
        given = np.array(items) if items else np.zeros(0, np.int64)
        if dtype is torch.uint64:
            given = np.array(items, dtype=np.uint64 if kinds <= {int} else None)
        x = _as_dtype(given, dtype)
        if text is not None and given.dtype.kind == "f" and bool(np.isinf(given).any()):
            json.loads(text, parse_float=partial(_finite, dtype=dtype))
    except (ValueError, TypeError, OverflowError) as error:
        raise BadInputError(f"input {name!r} must have data that is {datatype}: {str(error)[:200]}") from None
    if given.size != math.prod(shape):
        raise BadInputError(f"input {name!r} of shape {list(shape)} has data of shape {[len(items)]}")
    return RawTensor(dtype, shape, to_bytes(x))


def _items(name: str, shape: tuple[int, ...], data: list[Any]) -> tuple[list[Any], set[type]]:
    """Returns the elements of a JSON list, which is flat or nested as the shape says, and their types."""
    items, kinds, given = data, set(map(type, data)), [len(data)]
    while kinds == {list}:
        lengths = set(map(len, items))
        if len(lengths) > 1 or len(given) == _MAX_DIMS:
            raise BadInputError(f"input {name!r} of shape {list(shape)} has data that is nested otherwise")
        given.append(lengths.pop())
        items = list(itertools.chain.from_iterable(items))
        kinds = set(map(type, items))
    if list in kinds or (len(given) > 1 and tuple(given) != shape):
        raise BadInputError(f"input {name!r} of shape {list(shape)} has data of shape {given}")
    return items, kinds


def _as_dtype(given: "np.ndarray[Any, np.dtype[Any]]", dtype: torch.dtype) -> Tensor:
    """Returns numbers as a dtype; raises ValueError where they are none of it."""
    kind = given.dtype.kind
    if dtype is torch.bool:
        if kind != "b" and not (kind in "iu" and bool(((given == 0) | (given == 1)).all())):
            raise ValueError("true, false, 0 and 1 are")
    elif dtype.is_floating_point:
        if kind not in "iuf":
            raise ValueError("numbers are")
    else:
        if kind not in "iu":
            raise ValueError("whole numbers are")
        bounds = torch.iinfo(dtype)
        if given.size and (int(given.min()) < bounds.min or int(given.max()) > bounds.max):
            raise ValueError(f"numbers from {bounds.min} to {bounds.max} are")
    x = torch.from_numpy(np.ascontiguousarray(given)).to(dtype)
    if dtype.is_floating_point and bool((x.isinf().numpy() & np.isfinite(given)).any()):
        raise ValueError(f"numbers up to {torch.finfo(dtype).max} are")
    return x


def _finite(number: str, dtype: torch.dtype) -> None:
    if math.isinf(float(number)):
        raise ValueError(f"numbers up to {torch.finfo(dtype).max} are")


def texts_from_json(name: str, shape: tuple[int, ...], data: Any) -> list[Any]:
    """Returns the texts of a JSON list, flat or nested, as lists in lists of bytes."""
    if not isinstance(data, list):  # a text alone would pass for no texts
        raise BadInputError(f"input {name!r} must have data that is a list of texts, not {type(data).__name__}")
    items, kinds = _items(name, shape, data)
    if kinds - {str}:
        raise BadInputError(f"input {name!r} must have data that is text, not {min(x.__name__ for x in kinds - {str})}")
    return _as_texts(name, shape, [item.encode(errors="surrogatepass") for item in items])


def texts_from_bytes(name: str, shape: tuple[int, ...], data: memoryview) -> list[Any]:
    """Returns the texts that stand each after its length, as lists in lists of bytes."""
    items, at = [], 0
    while at < len(data):
        n_bytes = _LENGTH.unpack_from(data, at)[0] if at + 4 <= len(data) else len(data)
        at += 4
        if at + n_bytes > len(data):
            raise BadInputError(f"input {name!r} must have texts that end where its bytes do")
        items.append(bytes(data[at : at + n_bytes]))
        at += n_bytes
    return _as_texts(name, shape, items)


def _as_texts(name: str, shape: tuple[int, ...], items: list[bytes]) -> list[Any]:
    if len(items) != math.prod(shape):
        raise BadInputError(f"input {name!r} of shape {list(shape)} has {len(items)} texts")
    if len(items) > _MAX_TEXTS:
        raise BadInputError(f"input {name!r} must have at most {_MAX_TEXTS} texts, not {len(items)}")
    return Texts(shape, items).nested()


def to_bytes(x: Tensor) -> bytes:
    """Returns a tensor's elements, little-endian and in C order."""
    x = x.contiguous()
    if x.dtype is torch.bfloat16:
        x = x.view(torch.int16)
    return x.numpy().tobytes()


def from_raw(x: RawTensor) -> Tensor:
    """Returns the tensor whose elements are these bytes."""
    if not x.data:
        return torch.empty(x.shape, dtype=x.dtype, device="cpu")
    return torch.frombuffer(bytearray(x.data), dtype=x.dtype).view(x.shape)


def datatype_of(dtype: torch.dtype) -> str:
    """Returns the protocol's name for a dtype."""
    try:
        return NAMES[dtype]
    except KeyError:
        raise RefusedError(500, f"the model's output has dtype {dtype}, which the protocol has no name for") from None


def numbers(x: RawTensor) -> Tensor:
    """Returns a tensor whose elements can be written as JSON; raises for those that JSON cannot write."""
    tensor = from_raw(x)
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise BadInputError("the model's output is not finite, which JSON cannot write: ask for binary tensors")
    return tensor


def read_json(text: bytes, where: str = "be") -> Any:
    """Returns what the JSON says of which a body is to `where`: be, or begin with."""
    try:
        return json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        raise BadInputError(f"the body must {where} JSON") from None
    except ValueError:  # which Python does not read
        most = sys.get_int_max_str_digits()
        raise BadInputError(f"the body must have whole numbers of at most {most} digits") from None


def json_length(header: bytes | None, body_length: int) -> int:
    """Returns how many of a body's bytes are its JSON part, from the header that says so."""
    if header is None:
        return body_length
    if not header.isdigit() or len(header) > 12 or int(header) > body_length:
        raise BadInputError(
            f"inference-header-content-length must be a number of bytes up to the body's {body_length}, "
            f"not {header.decode('latin1')!r:.40}"
        )
    return int(header)
