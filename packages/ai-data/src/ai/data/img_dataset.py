"""A folder of images as a dataset."""

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ai.data.batch.transform import Transform, bytes_to_unit_range
from ai.data.dataset import Dataset, Split
from ai.data.storage.image_decode import Decoder, Filter, Fit
from ai.data.storage.image_pack import open_pack
from ai.data.storage.paths import dataset_folder


class ImgDataset(Dataset):
    """Images of a folder, decoded once into a memory-mapped array and from then on read at memory speed.

    Batches hold `x`: `(batch, channels, height, width)` float32 in [-1, 1], and with labels `y`: `(batch,)` uint8
    (int64 for more than 256 classes). `classes` names the labels, `files` the file of each image.

    Args:
        path: a folder, searched with its subfolders, in sorted order; relative to `$AI_DATASETS_PATH`, else to
            `~/.cache/ai/datasets`, unless it exists relative to the working directory.
        imsize: height and width in pixels, one number for both.
        mode: `L`, `RGB` or `RGBA`.
        fit: `crop` covers the size and cuts off the sides equally, `stretch` changes the aspect ratio, `pad` shows the
            whole image on black.
        filter: of resizing, with antialiasing: `bilinear` or `bicubic`.
        labels: None; `folder` takes the first folder of a file's path; else a CSV file (file, label) or a JSON file
            (`{file: label}` or `{"labels": [[file, label], …]}`) with paths relative to the folder.
        on_error: for files that are no whole image: `raise`, or `skip` with a warning.
        postprocess: as of `Dataset`; None means to [-1, 1].
        default_split: as of `Dataset`.
        cache: folder of the packs; None means `packs` in the datasets folder.

    Raises:
        FileNotFoundError: no such folder or label file.
        ValueError: the folder holds no images, a file is none, or an image has no label.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        imsize: int | tuple[int, int],
        *,
        mode: Literal["L", "RGB", "RGBA"] = "RGB",
        fit: Fit = "crop",
        filter: Filter = "bilinear",
        labels: str | os.PathLike[str] | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        postprocess: Transform | None = None,
        default_split: Split | None = None,
        cache: str | os.PathLike[str] | None = None,
    ) -> None:
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error must be 'raise' or 'skip', got {on_error!r}")
        decoder = Decoder((imsize, imsize) if isinstance(imsize, int) else imsize, mode, fit, filter)
        root = Path(path) if Path(path).is_dir() else dataset_folder(path)
        if not root.is_dir():
            raise FileNotFoundError(f"path must be a folder of images, {root} is not a folder")
        files = _image_files(root)
        if not files:
            raise ValueError(f"{root} holds no files with an image's ending")
        table = None if labels is None else _labels(root, files, labels)
        folder = dataset_folder("packs") if cache is None else Path(cache)
        images, self.files = open_pack(folder, root, files, decoder, on_error)
        data: dict[str, Any] = {"x": images}
        classes = None
        if table is not None:
            data["y"], classes = _as_classes([table[name] for name in self.files])
        super().__init__(data, None, {"x": bytes_to_unit_range} if postprocess is None else postprocess, default_split)
        self.classes = classes

    def subset(self, indices: Sequence[int]) -> "ImgDataset":
        """Returns the dataset of the images at `indices`, in that order."""
        part = super().subset(indices)
        part.files = [self.files[index] for index in indices]
        return part

    def concat(self, *others: Dataset) -> "ImgDataset":
        """Returns the images of this dataset followed by those of `others`."""
        whole = super().concat(*others)
        whole.files = [name for part in (self, *others) for name in getattr(part, "files", [""] * len(part))]
        return whole


def _image_files(root: Path) -> list[str]:
    from PIL import Image

    Image.init()
    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    found = []
    for folder, _, names in os.walk(root):
        for name in names:
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in endings:
                found.append(Path(folder, name).relative_to(root).as_posix())
    return sorted(found)


def _labels(root: Path, files: Sequence[str], labels: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns the label of each file."""
    if labels == "folder":
        if flat := [name for name in files if "/" not in name]:
            raise ValueError(f"labels='folder' needs every image in a subfolder of {root}, {flat[0]} is in none")
        return {name: name.split("/")[0] for name in files}
    path = Path(labels) if Path(labels).is_file() else root / labels
    if not path.is_file():
        raise FileNotFoundError(f"labels must be 'folder' or a CSV or JSON file, there is no file {path}")
    if path.suffix.lower() == ".json":
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            pairs = content.get("labels", content)
            table = dict(pairs.items() if isinstance(pairs, dict) else pairs)
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{path} must hold {{file: label}} or {{'labels': [[file, label], …]}}: {error}"
            ) from error
    elif path.suffix.lower() == ".csv":
        with open(path, newline="", encoding="utf-8-sig") as file:
            table = {row[0]: row[1] for row in csv.reader(file) if len(row) > 1}
    else:
        raise ValueError(f"labels must be 'folder' or a file that ends in .csv or .json, got {path}")
    if missing := [name for name in files if name not in table]:
        raise ValueError(f"{path} has no label for {len(missing)} of the {len(files)} images, e.g. {missing[0]}")
    return table


def _as_classes(labels: Sequence[Any]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns indices into the sorted label names; whole numbers below a million stand for themselves."""
    texts = [str(label) for label in labels]
    dtype = np.int64
    if all(text.isdecimal() and int(text) < 1_000_000 for text in texts):
        indices = np.array([int(text) for text in texts])
        classes = tuple(str(number) for number in range(int(indices.max()) + 1))
    else:
        classes = tuple(sorted(set(texts)))
        place = {name: index for index, name in enumerate(classes)}
        indices = np.array([place[text] for text in texts])
    return indices.astype(np.uint8 if len(classes) <= 256 else dtype), classes
