"""Labels of image files: from their folders or a table, and as numbers that keep what they mean."""

import csv
import io
import json
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from ai.data.images.folder import Found, is_image_name
from ai.data.storage.paths import expanded
from ai.data.storage.remote import RemoteFolder, is_url, opened


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
        elif isinstance(classes, bool | str) or not isinstance(classes, Integral | Sequence):
            raise TypeError(f"classes must be a whole number or a list of names, got {classes!r}")
        elif isinstance(classes, Integral):
            names = tuple(map(str, range(int(classes))))
        elif odd := [name for name in classes if not isinstance(name, str)]:
            raise TypeError(f"classes must be names, got {odd[0]!r}: give a number n for the labels 0 … n - 1")
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
            if not (_is_number(label) and math.isfinite(float(label))):
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
        if not self.named and all(map(_is_number, self.every)):
            odd = next(name for name in sorted(self.every) if not _is_whole(name))
            raise ValueError(
                f"labels must be names or whole numbers to be classes, {self.where} has {odd}: give "
                "targets='numbers', or classes with their names"
            )
        return tuple(sorted(self.every))


def read_labels(root: Path | RemoteFolder, found: Found, labels: str | os.PathLike[str]) -> Labels:
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
        if sum(found.folders.values()) < len(found.files):
            flat = next(name for name in found.files if "/" not in name)
            raise ValueError(f"labels='folder' needs every image in a subfolder of {root}, {flat} is in none")
        first_folders = [name for name, n in found.folders.items() for _ in range(n)]
        return Labels(first_folders, found.files, set(found.folders), True, f"the folder {root}")
    path, content = _read(root, labels)
    table = _table(path, content)
    if missing := [name for name in found.files if name not in table]:
        raise ValueError(f"{path} has no label for {len(missing)} of the {len(found.files)} images, e.g. {missing[0]}")
    return Labels([table[name] for name in found.files], found.files, set(table.values()), False, str(path))


def _read(root: Path | RemoteFolder, labels: str | os.PathLike[str]) -> tuple[str, bytes]:
    """Returns the path or URL of a file of labels, and what it holds."""
    if is_url(labels):
        path = str(labels)
        with opened(path) as file:
            return path, file.read()
    if (there := expanded(labels)).is_file():
        return str(there), there.read_bytes()
    path = f"{root}/{os.fspath(labels)}"
    if isinstance(root, RemoteFolder) and root.is_file(os.fspath(labels)):
        return path, root.read(os.fspath(labels))
    if isinstance(root, Path) and (root / labels).is_file():
        return str(root / labels), (root / labels).read_bytes()
    raise FileNotFoundError(f"labels must be 'folder' or a CSV or JSON file, there is no file {path}")


def _is_whole(name: str) -> bool:
    return re.fullmatch("0|[1-9][0-9]*", name) is not None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _shown(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f", … ({len(names)})" if len(names) > 8 else "")


def _table(path: str, content: bytes) -> dict[str, str]:
    if (kind := os.path.splitext(path)[1].lower()) not in _TABLES:
        raise ValueError(f"labels must be 'folder' or a file that ends in .csv or .json, got {path}")
    read, holds = _TABLES[kind]
    try:
        pairs = read(content.decode("utf-8-sig"))
    except (ValueError, TypeError, RecursionError, csv.Error) as error:
        raise ValueError(f"{path} must hold {holds}: {error}") from error
    table: dict[str, str] = {}
    for name, label in pairs:
        if isinstance(label, bool) or not isinstance(label, str | int | float) or not isinstance(name, str):
            raise ValueError(f"{path} must give each file a text or a number as its label, {name!r} has {label!r}")
        if label == "":
            raise ValueError(f"{path} must give each file a label, {name} has none")
        if table.setdefault(name, str(label)) != str(label):
            raise ValueError(f"{path} gives {name} two labels, {table[name]} and {label}")
    return table


def _csv_pairs(content: str) -> list[list[str]]:
    lines = csv.reader(io.StringIO(content, newline=""))
    rows = [row for row in lines if len(row) > 1 and is_image_name(row[0])]
    for row in rows:
        if len(row) > 2:  # one-hot labels, say, of which the first column would be a class
            raise ValueError(f"there are {len(row)} columns for {row[0]}")
    return rows


def _json_pairs(text: str) -> list[tuple[Any, Any]]:
    # As pairs, since a name that comes twice would replace the one before it in a dict.
    content = json.loads(text, object_pairs_hook=_Pairs)
    if isinstance(content, _Pairs):
        content = next((value for name, value in content if name == "labels"), content)
    if not isinstance(content, list):
        raise ValueError(f"got {content!r:.80}")
    return [(name, label) for name, label in content]


class _Pairs(list[tuple[str, Any]]):
    """What stands in braces."""


_TABLES: dict[str, tuple[Callable[[str], Sequence[Any]], str]] = {
    ".csv": (_csv_pairs, "rows of a file and its label"),
    ".json": (_json_pairs, "{file: label} or {'labels': [[file, label], …]}"),
}
