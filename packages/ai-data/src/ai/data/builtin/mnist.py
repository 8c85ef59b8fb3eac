"""MNIST and Fashion-MNIST from their IDX files, downloaded when they are not there."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ai.data.batch.transform import bytes_to_unit_range
from ai.data.builtin.download import download
from ai.data.builtin.idx import read_idx
from ai.data.dataset import Dataset
from ai.data.storage.paths import dataset_folder

_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def mnist_dataset(path: str | os.PathLike[str] = "mnist") -> Dataset:
    """Returns MNIST: 70,000 handwritten digits, split 60,000 / 10,000 by `.split()`.

    Batches hold `x`: `(batch, 1, 28, 28)` float32 in [-1, 1] and `y`: `(batch,)` uint8.

    Args:
        path: a folder that holds the four IDX files, plain or gzipped, itself or in `MNIST/raw`; relative to
            `$AI_DATASETS_PATH`, else to `~/.cache/ai/datasets`. Files that are missing are downloaded into it.

    Raises:
        FileNotFoundError: files are missing and the download failed.
        ValueError: a file is truncated or malformed, or the files do not fit together.

    Source: LeCun, Bottou, Bengio and Haffner, 1998, Gradient-based learning applied to document recognition.
    """
    return _idx_dataset(dataset_folder(path), "MNIST", tuple(str(digit) for digit in range(10)))


def fashion_mnist_dataset(path: str | os.PathLike[str] = "fashion_mnist") -> Dataset:
    """Returns Fashion-MNIST: 70,000 pictures of clothing in the form of `mnist_dataset`.

    Args:
        path: as of `mnist_dataset`; also `FashionMNIST/raw` is looked into.

    Raises:
        FileNotFoundError: files are missing and the download failed.
        ValueError: a file is truncated or malformed, or the files do not fit together.

    Source: Xiao, Rasul and Vollgraf, 2017, Fashion-MNIST.
    """
    return _idx_dataset(dataset_folder(path), "FashionMNIST", _FASHION_CLASSES)


def _idx_dataset(folder: Path, torchvision_name: str, classes: Sequence[str]) -> Dataset:
    found = _find(folder, torchvision_name)
    if len(found) < len(_FILES):
        _download(folder, torchvision_name, [name for name in _FILES if name not in found])
        found = _find(folder, torchvision_name)
    images, labels = [], []
    for images_name, labels_name in (_FILES[:2], _FILES[2:]):
        x, y = read_idx(found[images_name]), read_idx(found[labels_name])
        if x.ndim != 3 or x.dtype != np.uint8:
            raise ValueError(f"{found[images_name]} must hold uint8 images, got {x.dtype} of shape {x.shape}")
        if y.shape != x.shape[:1] or y.dtype != np.uint8:
            raise ValueError(
                f"{found[labels_name]} must hold one uint8 label for each of the {len(x)} images of "
                f"{found[images_name].name}, got {y.dtype} of shape {y.shape}"
            )
        images.append(x)
        labels.append(y)
    if images[0].shape[1:] != images[1].shape[1:]:
        raise ValueError(f"the images in {folder} differ in size: {images[0].shape[1:]} and {images[1].shape[1:]}")
    return Dataset(
        {"x": np.concatenate(images)[:, None], "y": np.concatenate(labels)},
        postprocess={"x": bytes_to_unit_range},
        default_split=(len(labels[0]), len(labels[1])),
        classes=classes,
    )


def _find(folder: Path, torchvision_name: str) -> dict[str, Path]:
    """Returns the path of each IDX file that is there."""
    places = [folder, folder / torchvision_name / "raw", folder / "raw"]
    candidates = {n: [p / f"{n}{end}" for p in places for end in ("", ".gz")] for n in _FILES}
    return {
        n: next(p for p in paths if p.is_file()) for n, paths in candidates.items() if any(map(Path.is_file, paths))
    }


def _download(folder: Path, torchvision_name: str, names: list[str]) -> None:
    import torchvision.datasets  # type: ignore[import-untyped]

    source = getattr(torchvision.datasets, torchvision_name)
    checksums = dict(source.resources)
    try:
        for name in names:
            urls = [f"{mirror}{name}.gz" for mirror in source.mirrors]
            download(urls, folder / f"{name}.gz", checksums[f"{name}.gz"])
    except OSError as error:
        raise FileNotFoundError(
            f"{torchvision_name} is not in {folder} and could not be downloaded ({error}); put the files "
            f"{', '.join(_FILES)} there, plain or as .gz"
        ) from error
