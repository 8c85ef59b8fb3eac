"""Labels of image files: from their folders or a table, and as numbers that keep what they mean."""

import csv
import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ai.data.images.folder import Found, is_image_name


@dataclass
class Labels:
    """The labels of a folder's images.

    Args:
        of: the label of each image, in the order of the folder's files.
        files: these.
        every: all labels that there are: a folder without images and a row of a table without a file count too, so that
            a part keeps the numbers of the whole.
        named: they are names whatever they look like, as those of folders.
        where: what an error calls their source.
    """

    of: list[str]
    files: list[str]
    every: set[str]
    named: bool
    where: str

    def as_classes(self, classes: Sequence[str] | int | None) -> tuple[np.ndarray, tuple[str, ...]]:
        """Returns the number of each file's label, its place among the classes, and the classes.

        Args:
            classes: their order; a number n stands for the labels 0 … n - 1; None sorts all labels, numbers by value.

        Raises:
            ValueError: a label is not among `classes`; or, without these, numbers in a table that are not 0 … n - 1.
        """
        if classes is None:
            names = self._sorted()
        elif isinstance(classes, int):
            names = tuple(str(number) for number in range(classes))
        else:
            names = tuple(classes)
        place = {name: number for number, name in enumerate(names)}
        if len(place) < len(names) or not names:
            raise ValueError(f"classes must name each class once, got {_shown(names)}")
        try:
            numbers = np.fromiter(map(place.__getitem__, self.of), np.int64, len(self.of))
        except KeyError as error:
            label = error.args[0]
            raise ValueError(
                f"classes must hold every label in {self.where}, {label!r} of {self.files[self.of.index(label)]} is "
                f"not among {_shown(names)}"
            ) from None
        return numbers.astype(np.uint8 if len(names) <= 256 else np.int64), names

    def as_numbers(self) -> np.ndarray:
        """Returns the labels as numbers: float32.

        Raises:
            ValueError: one is no finite number.
        """
        for name, label in zip(self.files, self.of, strict=True):
            if not math.isfinite(_number(label)):
                raise ValueError(
                    f"targets='numbers' needs a finite number for each image, {self.where} has {label!r} for {name}"
                )
        return np.array(list(map(float, self.of)), np.float32)

    def _sorted(self) -> tuple[str, ...]:
        if all(map(_is_whole, self.every)):
            names = sorted(self.every, key=int)
            # A number in a table may stand for itself or be a name; a part that lacks one must not shift the others.
            if self.named or names == [str(number) for number in range(len(names))]:
                return tuple(names)
            raise ValueError(
                f"the numbers in {self.where} must be 0 … n - 1 to be classes, got {_shown(names)}: give classes, a "
                "number n if each stands for itself or the names in order, or targets='numbers'"
            )
        if not self.named and not any(math.isnan(_number(name)) for name in self.every):
            odd = next(name for name in sorted(self.every) if not _is_whole(name))
            raise ValueError(
                f"labels must be names or whole numbers to be classes, {self.where} has {odd}: give "
                "targets='numbers', or classes with their names"
            )
        return tuple(sorted(self.every))


def read_labels(root: Path, found: Found, labels: str | os.PathLike[str]) -> Labels:
    """Returns the labels of the images that were found in `root`.

    Args:
        root: the folder.
        found: what it holds.
        labels: `folder`, or a CSV or JSON file as `ImgDataset` describes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is malformed, or an image has no label.
    """
    if labels == "folder":
        if flat := [name for name in found.files if "/" not in name]:
            raise ValueError(f"labels='folder' needs every image in a subfolder of {root}, {flat[0]} is in none")
        first_folders = [name[: name.index("/")] for name in found.files]
        return Labels(first_folders, found.files, set(found.folders), True, f"the folder {root}")
    path = Path(labels) if Path(labels).is_file() else root / labels
    if not path.is_file():
        raise FileNotFoundError(f"labels must be 'folder' or a CSV or JSON file, there is no file {path}")
    table = _table(path)
    if missing := [name for name in found.files if name not in table]:
        raise ValueError(f"{path} has no label for {len(missing)} of the {len(found.files)} images, e.g. {missing[0]}")
    return Labels([table[name] for name in found.files], found.files, set(table.values()), False, str(path))


def _is_whole(name: str) -> bool:
    return re.fullmatch("0|[1-9][0-9]*", name) is not None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f", … ({len(names)})" if len(names) > 8 else "")


def _table(path: Path) -> dict[str, str]:
    if path.suffix.lower() == ".csv":
        with open(path, newline="", encoding="utf-8-sig") as file:
            pairs: list[Any] = [row[:2] for row in csv.reader(file) if len(row) > 1 and is_image_name(row[0])]
    elif path.suffix.lower() == ".json":
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            content = content.get("labels", content)
            pairs = [(name, label) for name, label in (content.items() if isinstance(content, dict) else content)]
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} must hold {{file: label}} or {{'labels': [[file, label], …]}}: {error}"
            ) from error
    else:
        raise ValueError(f"labels must be 'folder' or a file that ends in .csv or .json, got {path}")
    table: dict[str, str] = {}
    for name, label in pairs:
        if isinstance(label, bool) or not isinstance(label, str | int | float) or not isinstance(name, str):
            raise ValueError(f"{path} must give each file a text or a number as its label, {name!r} has {label!r}")
        if table.setdefault(name, str(label)) != str(label):
            raise ValueError(f"{path} gives {name} two labels, {table[name]} and {label}")
    return table
