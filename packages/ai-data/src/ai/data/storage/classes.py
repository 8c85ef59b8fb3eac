"""What the numbers in a dataset's `y` mean: checked, and kept the same where datasets are joined."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ai.data.storage.columns import Columns
from ai.data.storage.memory_mapped import Mapped, Rows


def checked_classes(classes: Sequence[str] | None, data: Columns) -> tuple[str, ...] | None:
    """Returns the class names as a tuple.

    Raises:
        ValueError: names that repeat, no column `y`, or labels in it beyond the names.
    """
    if classes is None:
        return None
    if not isinstance(classes, Iterable) or getattr(classes, "ndim", 1) != 1:
        raise TypeError(f"classes must be a list of names, got {classes!r}")
    names = tuple(classes)
    if isinstance(classes, str) or len(set(names)) < len(names) or not names:
        raise ValueError(f"classes must name each class once, got {classes!r}")
    if odd := [name for name in names if not isinstance(name, str)]:
        raise ValueError(f"classes must be names, got {odd[0]!r}: of numbers give the text, such as '{odd[0]}'")
    y = data.get("y") if isinstance(data, dict) else None
    if y is None:
        have = sorted(data) if isinstance(data, dict) else "a single column"
        raise ValueError(f"classes name the labels in data['y'], the data has {have}")
    if isinstance(y, Tensor) and not isinstance(y, Mapped) and _are_numbers(y):
        low, high = int(y.min()), int(y.max())
        if low < 0 or high >= len(names):
            raise ValueError(
                f"data['y'] must lie in [0, {len(names)}), as classes says, got {low if low < 0 else high}"
            )
    return names


def same_classes(
    parts: Sequence[tuple[Columns, tuple[str, ...] | None]],
) -> tuple[list[Columns], tuple[str, ...] | None]:
    """Returns the columns of datasets with labels that mean the same, and the classes of all.

    The first one's numbers stand; classes that only others have follow them.

    Raises:
        ValueError: only some have classes, or classes differ where `y` is not one whole number a sample.
    """
    named = [classes for _, classes in parts]
    if all(classes == named[0] for classes in named):
        return [data for data, _ in parts], named[0]
    if None in named:
        raise ValueError(
            "datasets must all have classes or none: what the numbers in y mean is known for some only, "
            "give the others classes"
        )
    union = tuple(dict.fromkeys(name for classes in named for name in classes or ()))
    place = {name: number for number, name in enumerate(union)}
    joined: list[Columns] = []
    for data, classes in parts:
        y = data.get("y") if isinstance(data, dict) else None
        y = y.tensor() if isinstance(y, Rows) else y
        if not isinstance(data, dict) or not isinstance(y, Tensor) or not _are_numbers(y):
            raise ValueError(f"datasets of different classes need y as one whole number a sample, got {_shown(y)}")
        labels = y.to(torch.int64)
        if bool((labels < 0).any()) or bool((labels >= len(classes or ())).any()):
            low, high = int(labels.min()), int(labels.max())
            raise ValueError(
                f"data['y'] must lie in [0, {len(classes or ())}), as classes says, got {low if low < 0 else high}"
            )
        numbers = torch.tensor([place[name] for name in classes or ()], device=y.device)[labels]
        joined.append({**data, "y": numbers.to(torch.uint8 if len(union) <= 256 else torch.int64)})
    return joined, union


def named_by_torch(torch_dataset: Any) -> tuple[str, ...] | None:
    """Returns the classes of a dataset of torchvision or of a part of one; None where nothing proves them.

    That is where `class_to_idx` gives each of `classes` its place, and no `target_transform` changes the labels.
    """
    while type(torch_dataset).__module__ == "torch.utils.data.dataset" and hasattr(torch_dataset, "dataset"):
        torch_dataset = torch_dataset.dataset  # a Subset
    names, places = getattr(torch_dataset, "classes", None), getattr(torch_dataset, "class_to_idx", None)
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) for name in names):
        return None
    proven = places == {name: place for place, name in enumerate(names)}  # names that repeat have other places
    unchanged = getattr(torch_dataset, "target_transform", None) is None
    return tuple(names) if proven and unchanged else None


def _are_numbers(y: Tensor) -> bool:
    return y.ndim == 1 and y.dtype != torch.bool and not y.is_floating_point() and not y.is_complex()


def _shown(y: Any) -> str:
    return f"{y.dtype} of shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
