"""A researcher's own images or text, from a folder or file or given, and what they must be to be learnt from."""

import os
import warnings
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ai.data import Dataset, ImgDataset

# Of samples that must be preprocessed first, which may take as long as an epoch, so many batches are looked at.
_BATCHES_PREPROCESSED = 4
# Folders of these names are parts of a set: their own folders are its classes.
_PARTS = {"train", "training", "val", "valid", "validation", "test", "testing"}


def own_images(
    data: str, dataset: Dataset | None, imsize: int, *, labelled: bool = False, points: bool = False
) -> Dataset | None:
    """Returns the images in the folder `data`, or those given as `dataset`; None where there are neither.

    All images of a dataset are looked at, or the first of one whose samples must be preprocessed.

    Args:
        data: A folder of images, whose subfolders are the classes if they are to be labelled; or nothing.
        dataset: Images `x` `(1 or 3, imsize, imsize)`, float32 in [-1, 1], with classes `y` if they are to be labelled.
        imsize: Side of the images; those in a folder are cut and resized to it.
        labelled: Whether classes are learnt.
        points: Whether a dataset of points `x` `(2,)` will do too.

    Raises:
        FileNotFoundError: There is no such folder.
        TypeError: The dataset is none of `ai.data`.
        ValueError: Both are given; the folder holds no images, or none in a class; or the dataset's are others.
    """
    if data:
        if dataset is not None:
            raise ValueError(f"data ({data}) must be left out where a dataset is given")
        return _in_folder(data, imsize, labelled)
    if dataset is not None:
        if not isinstance(dataset, Dataset):
            raise TypeError(f"dataset must be a Dataset of ai.data, got {kind(dataset)}{_remedy(dataset)}")
        _check(dataset, imsize, labelled, points)
    return dataset


def train_and_held_out(dataset: Dataset) -> tuple[Dataset, Dataset]:
    """Returns four fifths of each class to train on, and the rest, which is at least one image.

    Raises:
        ValueError: A class has a single image, which cannot be in both; or there are too few for a fifth.
    """
    numbers, counts = torch.unique(_labels(dataset), return_counts=True)
    if (counts == 1).any():
        number = int(numbers[counts == 1][0])
        name = dataset.classes[number] if dataset.classes else number
        raise ValueError(f"dataset must have 2 images of each class or more, one to hold out, got 1 of {name}")
    if len(dataset) < 3:
        raise ValueError(f"dataset must have at least 3 images, of which one is held out, got {len(dataset)}")
    train_set, held_out = dataset.split(0.8, 0.2, stratify="y")
    return train_set, held_out


def own_text(data: str) -> str:
    """Returns the text in the file `data`, without a byte order mark, its lines ended by line feeds.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no text in UTF-8.
    """
    if not os.path.exists(data):
        raise FileNotFoundError(f"data must be a text file, there is no {data}")
    if not os.path.isfile(data):
        raise ValueError(f"data must be a text file, {data} is {'a folder' if os.path.isdir(data) else 'none'}")
    try:
        return Path(data).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"data must be a text file in UTF-8, {data} is not: {error}") from error


def class_names(*parts: Dataset, at_least: int = 1) -> list[str]:
    """Returns what the classes of a dataset in parts are called; by their numbers, if nobody told.

    Raises:
        ValueError: There are fewer than `at_least`; or numbers without names that are not 0 … n - 1.

    Example:
        >>> import torch
        >>> parts = Dataset({"x": torch.zeros(4), "y": [0, 2, 1, 1]}).split(3, 1)
        >>> class_names(*parts)
        ['0', '1', '2']
    """
    names = list(parts[0].classes or [])
    if not names:
        numbers = torch.unique(torch.cat([_labels(part) for part in parts])).tolist()
        if numbers != list(range(len(numbers))):  # a gap may be a class without an image, or a number that is no class
            shown = ", ".join(map(str, numbers[:8])) + (f", … ({len(numbers)})" if len(numbers) > 8 else "")
            raise ValueError(
                f"dataset must have classes y that count from 0 without a gap, got {shown}: "
                "or name them, Dataset(…, classes=[…])"
            )
        names = list(map(str, numbers))
    if len(names) < at_least:
        raise ValueError(f"dataset must have at least {at_least} classes to tell apart, got {', '.join(names)}")
    return names


def kind(value: object) -> str:
    """Returns how an error calls a value that is no data: by its type, or as it is where that says more."""
    if isinstance(value, type):
        return f"the class {value.__name__} itself"
    return repr(value) if isinstance(value, int | float | os.PathLike) else f"a {type(value).__name__}"


def _in_folder(data: str, imsize: int, labelled: bool) -> ImgDataset:
    try:
        images = ImgDataset(data, imsize, labels="folder" if labelled else None)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"data ({data}): {error}") from error
    names = images.classes or ()
    if names and _PARTS.issuperset(name.lower() for name in names):
        raise ValueError(f"data ({data}) must have a folder for each class, got {', '.join(names)}: give one of these")
    if empty := set(range(len(names))).difference(_labels(images).tolist() if names else ()):
        raise ValueError(f"data ({data}) must have an image of each class, got none in {names[min(empty)]}")
    return images


def _labels(dataset: Dataset) -> Tensor:
    if isinstance(dataset, ImgDataset) and isinstance(dataset.postprocess, dict) and "y" not in dataset.postprocess:
        stored: Tensor = torch.as_tensor(dataset.data["y"], device="cpu")  # type: ignore[call-overload,index]
        return stored.long()  # as they are: the pictures need not be read
    if dataset.preprocess is not None or isinstance(dataset, ImgDataset):
        print(f"reading {len(dataset):,} samples for their classes")
    return torch.cat([batch["y"].cpu().long() for batch in dataset.loader(1024, n_workers=0)])


def _check(dataset: Dataset, imsize: int, labelled: bool, points: bool) -> None:
    in_memory = dataset.preprocess is None and not isinstance(dataset, ImgDataset)
    low, high = float("inf"), -float("inf")
    for batch in islice(dataset.loader(64, n_workers=0), None if in_memory else _BATCHES_PREPROCESSED):
        x = _checked_x(batch, imsize, points)
        if labelled:
            _check_y(batch)
        low, high = min(low, x.min().item()), max(high, x.max().item())
    if low == high:
        raise ValueError(f"dataset must have x that differ, got {low:g} everywhere")
    if low >= 0 and x.ndim > 2:
        warnings.warn(
            f"dataset should have images in [-1, 1], with black at -1; its numbers go from {low:g} to {high:g}: "
            "of images in [0, 1] make 2 * x - 1",
            stacklevel=4,
        )


def _checked_x(batch: Any, imsize: int, points: bool) -> Tensor:
    what = "images x" + (" or points x" if points else "")
    if not isinstance(batch, dict) or "x" not in batch:
        have = ", ".join(map(str, batch)) if isinstance(batch, dict) else "columns without names"
        raise ValueError(f"dataset must have {what}, got {have}")
    x = batch["x"]
    if not isinstance(x, Tensor) or x.dtype != torch.float32:
        raise ValueError(f"dataset must have {what} in float32, got {x.dtype if isinstance(x, Tensor) else kind(x)}")
    if not x.isfinite().all():
        raise ValueError(f"dataset must have {what} of finite numbers, got {x[~x.isfinite()][0]:g}")
    if points and x.ndim == 2:
        if x.shape[1] != 2:
            raise ValueError(f"dataset must have points x of 2 numbers, got {x.shape[1]}")
        return x
    shape = tuple(x.shape[1:])
    if x.ndim != 4 or shape[0] not in (1, 3):
        raise ValueError(f"dataset must have {what} of 1 or 3 channels, (channels, imsize, imsize), got {shape}")
    if shape[1:] != (imsize, imsize):
        raise ValueError(f"dataset must have images x of imsize ({imsize}), got {shape}")
    if x.abs().max() > 1.001:
        raise ValueError(f"dataset must have images x in [-1, 1], got numbers from {x.min():g} to {x.max():g}")
    return x


def _check_y(batch: dict[str, Any]) -> None:
    if "y" not in batch:
        raise ValueError(f"dataset must have images x and classes y, got {', '.join(map(str, batch))}")
    y = batch["y"]
    if not isinstance(y, Tensor):
        raise ValueError(f"dataset must have one whole number y an image, got {kind(y)}")
    if y.ndim != 1 or y.dtype == torch.bool or y.is_floating_point() or y.is_complex():
        raise ValueError(f"dataset must have one whole number y an image, got {y.dtype} {tuple(y.shape[1:])}")


def _remedy(value: object) -> str:
    if isinstance(value, str | os.PathLike):
        return ": a folder's path goes into the configuration, as data"
    if isinstance(value, torch.utils.data.Dataset):
        return ": Dataset.from_torch(…) makes one of it"
    return ": Dataset(…) makes one of it" if isinstance(value, dict) else ""
