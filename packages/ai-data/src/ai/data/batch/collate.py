"""Stacking of samples into a batch."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Room = Callable[[int], np.ndarray | None]
"""Gives so many bytes of the memory that an array shall lie in; None for one that may lie anywhere."""


def collate(samples: Sequence[Any], where: str = "sample", room: Room | None = None) -> Any:
    """Returns one batch from samples of one structure.

    Tensors, arrays and numbers gain a leading axis and become arrays or tensors; dicts, tuples and lists are followed,
    the latter two to tuples, named ones with their names; other objects (paths, text) are kept in a list.

    Args:
        samples: at least one.
        where: how an error names the place of a value.
        room: gives memory for what is stacked.

    Raises:
        ValueError: the samples differ in keys, lengths, shapes or dtypes.

    Example:
        >>> collate([{"x": np.zeros(3), "name": "a"}, {"x": np.ones(3), "name": "b"}])["x"].shape
        (2, 3)
    """
    first = samples[0]
    if isinstance(first, Mapping):
        if any(not isinstance(s, Mapping) or s.keys() != first.keys() for s in samples):
            raise ValueError(f"every sample must have the same keys, got {_kinds(samples, _keys)} at {where}")
        return {key: collate([s[key] for s in samples], f"{where}[{key!r}]", room) for key in first}
    if isinstance(first, tuple | list):
        if any(not isinstance(s, tuple | list) or len(s) != len(first) for s in samples):
            raise ValueError(f"every sample must have the same length, got {_kinds(samples, _length)} at {where}")
        return like(first, [collate([s[i] for s in samples], f"{where}[{i}]", room) for i in range(len(first))])
    torch = sys.modules.get("torch")  # a worker that never loaded torch has no tensors either
    if torch is not None and isinstance(first, torch.Tensor):
        _check_equal(samples, where)
        memory = None
        if room is not None and first.layout is torch.strided and first.device.type == "cpu":
            if all(type(s) is torch.Tensor and not s.requires_grad for s in samples):
                memory = room(len(samples) * first.nbytes)
        if memory is None:
            return torch.stack(list(samples))
        out = torch.from_numpy(memory).view(first.dtype).view(len(samples), *first.shape)
        return torch.stack(list(samples), out=out)
    if isinstance(first, np.ndarray | np.generic):
        _check_equal(samples, where)
        memory = None
        if room is not None and first.dtype.kind in "biufc" and all(type(s) is np.ndarray for s in samples):
            memory = room(len(samples) * first.nbytes)
        if memory is None:
            return np.stack(samples)
        native = first.dtype.newbyteorder("=")  # as without memory, and as torch needs it
        return np.stack(samples, out=memory.view(native).reshape(len(samples), *first.shape))
    numbers = [isinstance(s, bool | int | float) for s in samples]
    if any(numbers) and not all(numbers):
        odd = numbers.index(not numbers[0])
        raise ValueError(
            f"the samples of a batch must all be numbers or none, got {first!r} for the first and {samples[odd]!r} for "
            f"sample {odd} of the batch at {where}"
        )
    if numbers[0]:
        return np.array(samples, np.float32 if any(isinstance(s, float) for s in samples) else None)
    return list(samples)


def like(sample: Sequence[Any], values: Sequence[Any]) -> tuple[Any, ...]:
    """Returns `values` as a tuple, of the same names where `sample` is a named tuple."""
    return type(sample)(*values) if hasattr(sample, "_fields") else tuple(values)  # type: ignore[return-value]


def _check_equal(samples: Sequence[Any], where: str) -> None:
    forms = [(tuple(getattr(s, "shape", ())), getattr(s, "dtype", type(s))) for s in samples]
    for index, form in enumerate(forms):
        if form != forms[0]:
            raise ValueError(
                f"every sample of a batch must have one shape and dtype, got {forms[0][0]} {forms[0][1]} for the first "
                f"and {form[0]} {form[1]} for sample {index} of the batch at {where}: "
                "pad them, or give a collate"
            )


def _kinds(samples: Sequence[Any], describe: Any) -> str:
    return " and ".join(sorted({describe(s) for s in samples}))


def _keys(sample: Any) -> str:
    return str(sorted(sample)) if isinstance(sample, Mapping) else type(sample).__name__


def _length(sample: Any) -> str:
    return str(len(sample)) if isinstance(sample, tuple | list) else type(sample).__name__
