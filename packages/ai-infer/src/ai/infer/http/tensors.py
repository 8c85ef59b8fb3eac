"""Tensors as the Open Inference Protocol writes them: named datatypes, JSON numbers or raw little-endian bytes.

Source: the protocol's `specification/protocol/inference_rest.md` and its extension `binary_tensor_data`, as of KServe
and Triton.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

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
_MAX_DIMS = 16


class BadInputError(ValueError):
    """A request that is refused before it reaches a worker; the message is for whoever sent it."""


@dataclass(frozen=True)
class TensorSpec:
    """What a model takes or returns at one place."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    """-1: any size; the first is the number of rows."""

    @classmethod
    def parse(cls, text: str) -> "TensorSpec":
        """Returns the spec written `NAME:DATATYPE:SIZE,SIZE,…`.

        >>> TensorSpec.parse("x:FP32:-1,3")
        TensorSpec(name='x', datatype='FP32', shape=(-1, 3))
        """
        parts = text.split(":")
        if len(parts) != 3 or parts[1] not in DATATYPES:
            raise ValueError(f"an input must be written NAME:DATATYPE:SIZES, such as x:FP32:-1,3, not {text!r}")
        try:
            shape = tuple(int(size) for size in parts[2].split(","))
        except ValueError:
            raise ValueError(f"an input's sizes must be whole numbers between commas, not {parts[2]!r}") from None
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


def check_bytes(name: str, dtype: torch.dtype, data: memoryview) -> None:
    """Raises `BadInputError` if bytes are no numbers of a dtype; those of most dtypes always are."""
    if dtype is torch.bool and len(data) and max(data) > 1:
        raise BadInputError(f"input {name!r} must have bytes 0 and 1 alone for datatype BOOL, not {max(data)}")


def from_json(name: str, datatype: str, shape: tuple[int, ...], data: Any) -> RawTensor:
    """Returns the tensor whose elements are JSON numbers, flat or nested."""
    dtype = dtype_of(name, datatype)
    if not isinstance(data, list):
        raise BadInputError(f"input {name!r} must have data that is a list of numbers, not {type(data).__name__}")
    try:
        x = torch.tensor(data, dtype=dtype)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise BadInputError(f"input {name!r} must have data that is {datatype}: {str(error)[:200]}") from None
    if x.numel() != math.prod(shape) or (x.ndim > 1 and tuple(x.shape) != shape):
        raise BadInputError(f"input {name!r} of shape {list(shape)} has data of shape {list(x.shape)}")
    return RawTensor(dtype, shape, to_bytes(x))


def to_bytes(x: Tensor) -> bytes:
    """Returns a tensor's elements, little-endian and in C order."""
    x = x.contiguous()
    if x.dtype is torch.bfloat16:
        x = x.view(torch.int16)
    return x.numpy().tobytes()


def from_raw(x: RawTensor) -> Tensor:
    """Returns the tensor whose elements are these bytes."""
    if not x.data:
        return torch.empty(x.shape, dtype=x.dtype)
    return torch.frombuffer(bytearray(x.data), dtype=x.dtype).view(x.shape)


def datatype_of(dtype: torch.dtype) -> str:
    """Returns the protocol's name for a dtype."""
    try:
        return NAMES[dtype]
    except KeyError:
        raise BadInputError(f"the model's output has dtype {dtype}, which the protocol has no name for") from None


def numbers(x: RawTensor) -> Tensor:
    """Returns a tensor whose elements can be written as JSON; raises for those that JSON cannot write."""
    tensor = from_raw(x)
    if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
        raise BadInputError("the model's output is not finite, which JSON cannot write: ask for binary tensors")
    return tensor


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
