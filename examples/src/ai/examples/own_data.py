"""A researcher's own images or text, from a folder or file or given, and what they must be to be learnt from."""

from pathlib import Path

import torch
from torch import Tensor

from ai.data import Dataset, ImgDataset


def own_images(
    data: str, dataset: Dataset | None, imsize: int, *, labelled: bool = False, points: bool = False
) -> Dataset | None:
    """Returns the images in the folder `data`, or those given as `dataset`; None where there are neither.

    Args:
        data: A folder of images, whose subfolders are the classes if they are to be labelled; or nothing.
        dataset: Images `x` `(1 or 3, imsize, imsize)` in [-1, 1], with classes `y` if they are to be labelled.
        imsize: Side of the images; those in a folder are cut and resized to it.
        labelled: Whether classes are learnt.
        points: Whether a dataset of points `x` `(2,)` will do too.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: Both are given; the folder holds no images, or none in a class; or the dataset's are others.
    """
    if data:
        if dataset is not None:
            raise ValueError(f"data ({data}) must be left out where a dataset is given")
        return ImgDataset(data, imsize, labels="folder" if labelled else None)
    if dataset is not None:
        _check(dataset[0], imsize, labelled, points)
    return dataset


def own_text(data: str) -> str:
    """Returns the text in the file `data`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no text in UTF-8.
    """
    if not Path(data).exists():
        raise FileNotFoundError(f"data must be a text file, there is no {data}")
    if not Path(data).is_file():
        raise ValueError(f"data must be a text file, {data} is a folder")
    try:
        return Path(data).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"data must be a text file in UTF-8, {data} is not: {error}") from error


def class_names(*parts: Dataset, at_least: int = 1) -> list[str]:
    """Returns what the classes of a dataset in parts are called; by their numbers, up to the highest, if nobody told.

    Raises:
        ValueError: There are fewer than `at_least`, or labels below 0.

    Example:
        >>> import torch
        >>> parts = Dataset({"x": torch.zeros(4), "y": [0, 3, 1, 1]}).split(3, 1)
        >>> class_names(*parts)
        ['0', '1', '2', '3']
    """
    names = list(parts[0].classes or [])
    if not names:
        labels = torch.cat([batch["y"].cpu().long() for part in parts for batch in part.loader(1024, n_workers=0)])
        if labels.min() < 0:
            raise ValueError(f"dataset must have classes y that count from 0, got {labels.min()}")
        names = [str(label) for label in range(int(labels.max()) + 1)]
    if len(names) < at_least:
        raise ValueError(f"dataset must have at least {at_least} classes to tell apart, got {', '.join(names)}")
    return names


def _check(row: object, imsize: int, labelled: bool, points: bool) -> None:
    if not isinstance(row, dict) or "x" not in row or (labelled and "y" not in row):
        raise ValueError(f"dataset must have images x{' and classes y' if labelled else ''}")
    if labelled and (row["y"].ndim or row["y"].is_floating_point()):
        raise ValueError(f"dataset must have one whole number y an image, got {row['y'].dtype} {tuple(row['y'].shape)}")
    x: Tensor = row["x"]
    if points and tuple(x.shape) == (2,):
        return
    if x.ndim != 3 or x.shape[0] not in (1, 3):
        raise ValueError(f"dataset must have images of 1 or 3 channels, got {tuple(x.shape)}")
    if tuple(x.shape[1:]) != (imsize, imsize):
        raise ValueError(f"dataset must have images of imsize ({imsize}), got {tuple(x.shape)}")
    if not x.is_floating_point() or x.abs().max() > 1.001:
        raise ValueError(f"dataset must have images in [-1, 1], got {x.dtype} from {x.min():g} to {x.max():g}")
