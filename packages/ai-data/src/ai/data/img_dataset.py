"""A folder of images as a dataset."""

import os
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ai.data.arguments import check_path, elsewhere
from ai.data.batch.transform import Applied, Transform, bytes_to_unit_range
from ai.data.dataset import Dataset, Split, check_split
from ai.data.images.decode import Decoder, Filter, Fit
from ai.data.images.folder import find_images
from ai.data.images.labels import read_labels
from ai.data.images.pack import open_pack
from ai.data.storage.paths import dataset_folder, expanded
from ai.data.storage.remote import RemoteFolder, local_path


class ImgDataset(Dataset):
    """Images of a folder, decoded once into a memory-mapped array and from then on read at memory speed.

    Batches hold `x`: `(batch, channels, height, width)` float32 in [-1, 1], and with labels `y`: `(batch,)` uint8
    (int64 for more than 256 classes). `classes` names the labels, `files` the file of each image.

    Opening looks at every file, but reads and decodes only what changed: a local file is known by its size, its inode
    and the time of its last change (ctime), which no program can set back; behind a URL a file is known by what its
    store tells contents apart by, such as an ETag, and read where that is nothing. A file that only was touched,
    renamed or copied is read, and its pixels are kept.

    An image is a regular file whose ending is that of a format which Pillow decodes, in any subfolder. Names that begin
    with a dot, and `__MACOSX`, are passed over; links are followed, to files and to folders.

    Args:
        path: a folder, searched with its subfolders, in sorted order; relative to `$AI_DATASETS_PATH`, else to
            `~/.cache/ai/datasets`, unless it exists relative to the working directory; or the URL of one that fsspec
            reads, such as `s3://…` or `zip://pictures::https://…/all.zip`.
        imsize: height and width in pixels, one number for both.
        mode: `L`, `RGB` or `RGBA`.
        fit: `crop` covers the size and cuts off the sides equally, `stretch` changes the aspect ratio, `pad` shows the
            whole image on black.
        filter: of resizing, with antialiasing: `bilinear` or `bicubic`.
        labels: None; `folder` takes the first folder of a file's path; else a CSV file of two columns (file, label) or
            a JSON file (`{file: label}` or `{"labels": [[file, label], …]}`) with paths relative to the folder, itself
            in the folder, elsewhere, or at a URL.
        classes: the names of the labels in the order of their numbers, to fix what a number means across folders; a
            number n says that the labels are 0 … n - 1. None takes all labels in sorted order, whole numbers by their
            value, also of folders and rows without an image; numbers in a table must be 0 … n - 1 then.
        targets: `classes`, or `numbers` for labels that are quantities: `y` is float32 then, without classes.
        on_error: for files that are no whole image: `raise`, or `skip` with a warning.
        postprocess: as of `Dataset`; None means to [-1, 1].
        default_split: as of `Dataset`.
        cache: folder of the packs; None means `packs` in the datasets folder.

    Raises:
        FileNotFoundError: no such folder or label file.
        ValueError: the folder holds no images, a file is none, or an image has no label.
    """

    @elsewhere(
        image_size="imsize",
        root="path",
        size="imsize",
        target_transform="postprocess={'y': function}",
        transform="postprocess={'x': function}",
    )
    def __init__(
        self,
        path: str | os.PathLike[str],
        imsize: int | tuple[int, int],
        *,
        mode: Literal["L", "RGB", "RGBA"] = "RGB",
        fit: Fit = "crop",
        filter: Filter = "bilinear",
        labels: str | os.PathLike[str] | None = None,
        classes: Sequence[str] | int | None = None,
        targets: Literal["classes", "numbers"] = "classes",
        on_error: Literal["raise", "skip"] = "raise",
        postprocess: Transform | None = None,
        default_split: Split | None = None,
        cache: str | os.PathLike[str] | None = None,
    ) -> None:
        check_path(path=path)
        check_path(or_none=True, cache=cache, labels=labels)
        check_split(default_split)
        if postprocess is not None:  # before the pack, which may take hours
            Applied(postprocess, "postprocess")
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error must be 'raise' or 'skip', got {on_error!r}")
        if targets not in ("classes", "numbers"):
            raise ValueError(f"targets must be 'classes' or 'numbers', got {targets!r}")
        if classes is not None and (labels is None or targets == "numbers"):
            raise ValueError("classes needs labels that name classes: give labels, and leave targets='classes'")
        height, width = imsize if isinstance(imsize, tuple | list) and len(imsize) == 2 else (imsize, imsize)
        if any(isinstance(side, bool) or not isinstance(side, Integral) for side in (height, width)):
            raise ValueError(f"imsize must be a whole number of pixels or (height, width), got {imsize!r}")
        decoder = Decoder((int(height), int(width)), mode, fit, filter)
        root = _folder(path)
        found = find_images(root)
        if not found.files:
            raise ValueError(f"{root} holds no files with an image's ending")
        read = None if labels is None else read_labels(root, found, labels)
        names: tuple[str, ...] | None = None
        y = None
        if read is not None:  # before the pack, which may take hours
            if targets == "numbers":
                y = read.as_numbers()
            else:
                y, names = read.as_classes(classes)
        folder = dataset_folder("packs") if cache is None else expanded(cache)
        self.files: list[str]
        images, self.files = open_pack(folder, root, found, decoder, on_error)
        data: dict[str, Any] = {"x": images}
        if y is not None:
            if len(self.files) < len(y):  # some were skipped
                kept = set(self.files)
                y = y[[name in kept for name in found.files]]
            data["y"] = y
        super().__init__(
            data, None, {"x": bytes_to_unit_range} if postprocess is None else postprocess, default_split, names
        )

    def subset(self, indices: Sequence[int] | Tensor) -> "ImgDataset":
        """Returns the dataset of the images at `indices`, in that order."""
        part = super().subset(indices)
        part.files = [
            self.files[i]
            for i in (indices if isinstance(indices, range) else torch.as_tensor(indices, device="cpu").tolist())
        ]
        return part

    def concat(self, *others: Dataset) -> "ImgDataset":
        """Returns the images of this dataset followed by those of `others`."""
        whole = super().concat(*others)
        whole.files = [name for part in (self, *others) for name in getattr(part, "files", [""] * len(part))]
        return whole


def _folder(path: str | os.PathLike[str]) -> Path | RemoteFolder:
    local = local_path(path)
    if local is None:
        remote = RemoteFolder(str(path))
        if not remote.is_dir():
            raise FileNotFoundError(f"path must be a folder of images, {remote} is not a folder")
        return remote
    for root in (local, dataset_folder(local)):
        if root.is_dir():
            return root
    also = "" if root == local else f", nor is {root}"
    raise FileNotFoundError(f"path must be a folder of images, {local} is not a folder{also}")
