"""Tensors as the Open Inference Protocol writes them: named datatypes, JSON numbers or raw little-endian bytes.

Source: the protocol's `specification/protocol/inference_rest.md` and its extension `binary_tensor_data`, as of KServe
and Triton.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

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


def from_bytes(name: str, datatype: str, shape: tuple[int, ...], data: memoryview) -> Tensor:
    """Returns the tensor whose elements are `data`, little-endian and in C order; it shares the memory."""
    dtype = DATATYPES.get(datatype)
    if dtype is None:
        raise BadInputError(f"input {name!r} must have a datatype of {', '.join(DATATYPES)}, not {datatype!r:.40}")
    expected = math.prod(shape) * dtype.itemsize
    if len(data) != expected:
        raise BadInputError(
            f"input {name!r} of shape {list(shape)} and datatype {datatype} must have {expected} bytes, not {len(data)}"
        )
    if expected == 0:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype).view(shape)


def from_json(name: str, datatype: str, shape: tuple[int, ...], data: Any) -> Tensor:
    """Returns the tensor whose elements are JSON numbers, flat or nested."""
    dtype = DATATYPES.get(datatype)
    if dtype is None:
        raise BadInputError(f"input {name!r} must have a datatype of {', '.join(DATATYPES)}, not {datatype!r:.40}")
    if not isinstance(data, list):
        raise BadInputError(f"input {name!r} must have data that is a list of numbers, not {type(data).__name__}")
    try:
        x = torch.tensor(data, dtype=dtype)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise BadInputError(f"input {name!r} must have data that is {datatype}: {str(error)[:200]}") from None
    if x.numel() != math.prod(shape) or (x.ndim > 1 and tuple(x.shape) != shape):
        raise BadInputError(f"input {name!r} of shape {list(shape)} has data of shape {list(x.shape)}")
    return x.view(shape)


def to_bytes(x: Tensor) -> bytes:
    """Returns a tensor's elements, little-endian and in C order."""
    x = x.contiguous()
    if x.dtype is torch.bfloat16:
        x = x.view(torch.int16)
    return x.numpy().tobytes()


def datatype_of(x: Tensor) -> str:
    """Returns the protocol's name for a tensor's dtype."""
    try:
        return NAMES[x.dtype]
    except KeyError:
        raise BadInputError(f"the model's output has dtype {x.dtype}, which the protocol has no name for") from None


def numbers(x: Tensor) -> list[Any]:
    """Returns a tensor's elements as a flat list of JSON numbers; raises for those that JSON cannot write."""
    if x.is_floating_point() and not bool(torch.isfinite(x).all()):
        raise BadInputError("the model's output is not finite, which JSON cannot write: ask for binary tensors")
    return [item for item in x.flatten().tolist()]


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
