"""What a batch weighs where losses of several batches are averaged: the number of its rows, proved or refused."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any


class UnknownWeight(ValueError):  # noqa: N818  (where the weight does not matter it is no error)
    """A batch whose rows cannot be told from its form."""


def rows(batch: Any) -> float:
    """How many rows a batch has: the leading axis that all its tensors and arrays have in common.

    Looked at recursively in dicts and other mappings, dataclasses, tuples and lists. A list of dicts, dataclasses,
    tuples or plain values is a list of samples and has as many rows as items.

    Raises:
        UnknownWeight: nothing in it has a leading axis, or the axes differ, or it could as well be a list of samples.

    >>> import torch
    >>> rows({'x': torch.zeros(5, 2), 'y': {'mask': torch.zeros(5)}}), rows([{'x': torch.zeros(3)}] * 2)
    (5.0, 2.0)
    """
    if isinstance(batch, list) and batch and not _has_axis(batch[0]):
        return float(len(batch))
    if isinstance(batch, list) and len(batch) > 2 and len({tuple(getattr(item, "shape", ())) for item in batch}) == 1:
        raise UnknownWeight(
            f"a list of {len(batch)} tensors of one shape may be samples or fields: {_FIX}, or make it a tuple"
        )
    sizes = set(_leading(batch))
    if len(sizes) == 1:
        return float(sizes.pop())
    found = f"leading axes of {', '.join(map(str, sorted(sizes)))}" if sizes else "nothing with a leading axis"
    raise UnknownWeight(f"the rows of a batch ({type(batch).__name__}) cannot be told, it has {found}: {_FIX}")


_FIX = "have the environment return (loss, weight)"


def _leading(value: Any) -> Iterator[int]:
    """The leading axis of every tensor and array in it; where there is none, the length of lists of plain values."""
    if _has_axis(value):
        yield int(value.shape[0])
        return
    items = _items(value)
    sizes = [size for item in items for size in _leading(item)]
    if not sizes and isinstance(value, list) and all(isinstance(item, (str, bytes, int, float)) for item in value):
        sizes = [len(value)] if value else []
    elif isinstance(value, Mapping) and len(set(sizes)) > 1:  # plain lists (names of classes) count for less than axes
        sizes = [size for item in items if not _is_plain_list(item) for size in _leading(item)]
    yield from sizes


def _items(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        return list(value.values())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, field.name) for field in dataclasses.fields(value)]
    return list(value) if isinstance(value, (tuple, list)) else []


def _has_axis(value: Any) -> bool:
    return len(getattr(value, "shape", ())) > 0


def _is_plain_list(value: Any) -> bool:
    return isinstance(value, list) and not any(_has_axis(item) for item in value)
