"""Columns: the stored form of a dataset, a tensor or a list (or a dict of them) with one entry per sample."""

import hashlib
import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ai.data.storage.gathering import Empty, gather_into
from ai.data.storage.memory_mapped import Mapped, Places, Rows, is_mapped
from ai.data.storage.tables import table_column, table_columns

Column: TypeAlias = Tensor | Rows | Sequence[Any]
Columns: TypeAlias = Column | dict[str, Column]

_AT_ONCE = 1 << 16  # samples that are gathered together
_FEW = 3  # x, y and perhaps weights: a longer list of arrays holds samples
_NAMED = "a dict such as {'x': X, 'y': Y}"


def as_columns(data: Any) -> Columns:
    """Returns `data` as columns, sharing memory with arrays and tensors; memory-mapped arrays become `Mapped`.

    Args:
        data: an array, a tensor, a list or range, a mapping of these by name, or a table, see `table_columns`. Lists of
            numbers become tensors; other lists stay lists.

    Raises:
        TypeError: data of another type.
        ValueError: no columns, no samples, columns of different lengths, or missing values.
    """
    if (table := table_columns(data)) is not None:
        data = table
    if not isinstance(data, Mapping):
        column = _as_column(data, "data")
        if len(column) == 0:
            raise ValueError("data must hold at least one sample, got an empty one")
        return column
    if not data:
        raise ValueError("data must hold at least one column, got an empty dict")
    columns = {name: _as_column(column, f"data[{name!r}]") for name, column in data.items()}
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"the columns of data must have equal lengths, got {lengths}")
    if 0 in lengths.values():
        raise ValueError(f"data must hold at least one sample, got columns of lengths {lengths}")
    return columns


def refuse_unnamed_columns(data: Any) -> None:
    """Raises where `data` looks like columns without names, which would be taken for two or three samples.

    That is a tuple of arrays or lists, the way `TensorDataset` is told of x and y; and a list of two or three arrays
    whose equal lengths exceed their number. Any other list holds samples.

    Raises:
        TypeError: as said above.
    """
    if not isinstance(data, tuple | list) or not data or hasattr(data, "_asdict"):
        return
    few = data[:_FEW]
    if isinstance(data, tuple):
        unnamed = all(_is_array(item) or isinstance(item, list | range) for item in few)
        instead = "for samples one by one a list"
    else:
        lengths = {len(item) if _is_array(item) or isinstance(item, list | range) else 0 for item in few}
        longer = len(lengths) == 1 and lengths.pop() > len(data)
        unnamed = 1 < len(data) <= _FEW and longer and any(map(_is_array, few))
        instead = "for samples one by one torch.stack(data), or {'x': data}"
    if unnamed:
        kind = type(data).__name__
        raise TypeError(f"data must name its columns, got a {kind} of {len(data)} arrays: give {_NAMED}, or {instead}")


def n_samples(columns: Columns) -> int:
    """Returns the number of samples."""
    return len(next(iter(columns.values())) if isinstance(columns, dict) else columns)


def take(columns: Columns, indices: Tensor, empty: Empty | None = None) -> Columns:
    """Returns new columns with the samples at `indices` (int64), owning their memory.

    Args:
        columns: where from.
        indices: which.
        empty: gives memory for what lies on the CPU; None: in memory of its own.
    """
    if isinstance(columns, dict):
        return {name: _take(column, indices, empty) for name, column in columns.items()}
    return _take(columns, indices, empty)


def choose(columns: Columns, indices: Places) -> Columns:
    """Returns new columns with the samples at `indices` (int64): as `take`, but what is mapped stays in its file."""
    if isinstance(columns, dict):
        return {name: _choose(column, indices) for name, column in columns.items()}
    return _choose(columns, indices)


def stretch(columns: Columns, places: range) -> Columns:
    """Returns new columns with the samples at `places`, sharing the memory of tensors where the step is positive."""
    if isinstance(columns, dict):
        return {name: _stretch(column, places) for name, column in columns.items()}
    return _stretch(columns, places)


def join(parts: Sequence[Column], name: str) -> Column:
    """Returns the samples of all `parts` of the column `name` as one column.

    Raises:
        ValueError: tensors of different shapes or dtypes.
    """
    if not all(isinstance(part, Tensor | Rows) for part in parts):
        return [item for part in parts for item in part]
    first: Any = parts[0]
    for part in parts:
        assert isinstance(part, Tensor | Rows)
        if part.shape[1:] != first.shape[1:] or part.dtype != first.dtype:
            raise ValueError(
                f"column {name!r} must have one shape and dtype in all datasets, got {tuple(first.shape[1:])} "
                f"{first.dtype} and {tuple(part.shape[1:])} {part.dtype}"
            )
    folds = [part for part in parts if isinstance(part, Rows) and part.source is getattr(first, "source", None)]
    if len(folds) == len(parts):  # parts of one file, as the folds of a cross-validation
        return Rows(first.source, torch.cat([fold.rows[:] for fold in folds]))
    return torch.cat([part.tensor() if isinstance(part, Rows) else part for part in parts])  # type: ignore[misc]


def columns_to(columns: Columns, device: torch.device) -> Columns:
    """Returns the columns with every tensor on `device`; lists stay."""
    if isinstance(columns, dict):
        return {name: _to(column, device) for name, column in columns.items()}
    return _to(columns, device)


def described(columns: Columns) -> str:
    """Returns names, dtypes and shapes for a `repr`."""
    if isinstance(columns, dict):
        return ", ".join(f"{name}: {_described(column)}" for name, column in columns.items())
    return _described(columns)


def fingerprint(columns: Columns) -> str:
    """Returns a short hash of names, types, shapes and 16 evenly spaced samples: enough to tell datasets apart."""
    digest = hashlib.blake2b(digest_size=8)
    named = columns if isinstance(columns, dict) else {"": columns}
    for name, column in named.items():
        rows = np.linspace(0, len(column) - 1, min(16, len(column))).astype(int).tolist()
        if isinstance(column, Tensor | Rows):
            digest.update(f"{name}:{column.dtype}{tuple(column.shape)}".encode())
            digest.update(column[rows].cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        else:  # the repr of any other object may hold its address
            shown = [column[row] for row in rows]
            digest.update(f"{name}:{len(column)}".encode())
            digest.update(repr([_telling(sample) for sample in shown]).encode())
    return digest.hexdigest()


def _described(column: Column) -> str:
    if isinstance(column, Tensor | Rows):
        shape = ", ".join(map(str, column.shape[1:]))
        mapped = " in a file" if isinstance(column, Mapped | Rows) else ""
        return f"{str(column.dtype).removeprefix('torch.')}[{shape}]{mapped}"
    return f"{type(column).__name__} of {type(column[0]).__name__}"


def _telling(sample: Any) -> Any:
    if isinstance(sample, os.PathLike):
        return os.fspath(sample)
    return sample if isinstance(sample, str | int | float | bytes) else type(sample)


def _is_array(item: Any) -> bool:
    return (isinstance(item, Tensor | np.ndarray) and item.ndim > 0) or hasattr(item, "iloc")


def _as_column(data: Any, name: str) -> Column:
    if isinstance(data, Mapped | Rows):
        return data
    if isinstance(data, Tensor):
        if data.ndim == 0:
            raise ValueError(f"{name} must have a leading sample axis, got a tensor without axes")
        return data.detach()
    data = table_column(data, name)
    if isinstance(data, np.ndarray):
        if data.ndim == 0:
            raise ValueError(f"{name} must have a leading sample axis, got an array without axes")
        if isinstance(data, np.ma.MaskedArray):
            if n_masked := int(np.ma.getmaskarray(data).sum()):
                raise ValueError(f"{name} must have a value for each sample, {n_masked} are masked: fill or drop them")
            data = data.data
        if data.dtype.kind in "mM":
            raise TypeError(f"{name} must hold numbers, got {data.dtype}: say as which number a time counts")
        if data.dtype.kind == "V":
            raise TypeError(f"{name} must hold numbers, got records of {data.dtype}: give each field its name")
        if data.dtype.kind not in "biufc":
            return _as_column(data.tolist(), name)
        if not data.dtype.isnative or any(stride < 0 or stride % data.itemsize for stride in data.strides):
            data = np.ascontiguousarray(data, data.dtype.newbyteorder("="))
        with warnings.catch_warnings():  # a read-only array (a memory map) is only ever read here
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            try:
                tensor = torch.from_numpy(data)
                return tensor.as_subclass(Mapped) if is_mapped(data) else tensor
            except TypeError:
                raise TypeError(f"{name} must have a dtype that torch knows, got {data.dtype}") from None
    if isinstance(data, range):
        return torch.arange(data.start, data.stop, data.step, device="cpu") if len(data) else data
    if isinstance(data, str | bytes | Mapping) or not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
        raise TypeError(f"{name} must be an array, a tensor, a list or a dict of these, got {type(data).__name__}")
    if isinstance(data, list | tuple) and len(data):
        numbers = {kind for kind in set(map(type, data)) if issubclass(kind, bool | int | float | np.number | np.bool_)}
        if numbers and numbers != set(map(type, data)):
            odd = next(i for i, item in enumerate(data) if type(item) not in numbers)
            raise ValueError(f"{name} must hold numbers only or none, got {data[odd]!r} among numbers at place {odd}")
        if numbers:
            return (
                torch.tensor(data, device="cpu") if numbers <= {bool, int, float} else torch.from_numpy(np.array(data))
            )
    return data  # type: ignore[no-any-return]  # any sequence: a list of paths, a lazy column


def _take(column: Column, indices: Tensor, empty: Empty | None = None) -> Column:
    if isinstance(column, Rows):
        part = column.part(indices)
        return part.tensor() if empty is None else gather_into(part.source, part.rows[:], empty)
    if isinstance(column, Tensor):
        if empty is not None and column.device.type == "cpu":
            return gather_into(column, indices, empty)
        return column.index_select(0, indices if indices.device == column.device else indices.to(column.device))
    return [column[index] for index in indices.tolist()]


def _choose(column: Column, indices: Places) -> Column:
    if isinstance(column, Rows):
        return column.part(indices)
    if isinstance(column, Mapped):
        return Rows(column, indices)
    return _take(column, indices) if isinstance(indices, Tensor) else _gathered(column, indices)


def _gathered(column: Column, indices: Places) -> Column:
    """Returns what `_take` does without an index of all samples."""
    stretches = (indices[start : start + _AT_ONCE] for start in range(0, len(indices), _AT_ONCE))
    if not isinstance(column, Tensor):
        return [item for rows in stretches for item in _take(column, rows)]
    gathered = column.new_empty(len(indices), *column.shape[1:])
    start = 0
    for rows in stretches:
        torch.index_select(column, 0, rows.to(column.device), out=gathered[start : start + len(rows)])
        start += len(rows)
    return gathered


def _stretch(column: Column, places: range) -> Column:
    if isinstance(column, Tensor) and places.step > 0:
        part = column[places.start : places.stop : places.step]
        return part.as_subclass(Mapped) if isinstance(column, Mapped) else part
    if isinstance(column, Tensor | Rows):
        return _choose(column, torch.arange(places.start, places.stop, places.step, device="cpu"))
    return [column[place] for place in places]


def _to(column: Column, device: torch.device) -> Column:
    if isinstance(column, Rows) and column.device != device:
        column = column.tensor()
    return column.to(device) if isinstance(column, Tensor) else column
