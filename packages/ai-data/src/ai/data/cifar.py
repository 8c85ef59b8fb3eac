"""CIFAR-10 and CIFAR-100 from their files, downloaded when they are not there."""

import os
import tarfile
from pathlib import Path

import numpy as np

from ai.data.cifar_pickle import read_cifar_names, read_cifar_pickle
from ai.data.dataset import Dataset
from ai.data.download import download
from ai.data.mnist import bytes_to_unit_range
from ai.data.paths import dataset_folder

_URL = "https://www.cs.toronto.edu/~kriz/"
_IMAGE_BYTES = 3 * 32 * 32


def cifar_dataset(n_classes: int = 10, path: str | os.PathLike[str] | None = None) -> Dataset:
    """Returns CIFAR: 60,000 photographs, split 50,000 / 10,000 by `.split()`.

    Batches hold `x`: `(batch, 3, 32, 32)` float32 in [-1, 1] and `y`: `(batch,)` uint8.

    Args:
        n_classes: 10 or 100 (the fine labels).
        path: a folder that holds the binary version, as `cifar-10-binary.tar.gz` or its files, or the files that
            torchvision extracts (`cifar-10-batches-py`); relative to `$AI_DATASETS_PATH`, else to
            `~/.cache/ai/datasets`; None means `cifar10` or `cifar100`. If none is there, the binary version is
            downloaded.

    Raises:
        FileNotFoundError: the files are missing and the download failed.
        ValueError: another n_classes, or a malformed file.

    Source: Krizhevsky, 2009, Learning Multiple Layers of Features from Tiny Images.
    """
    if n_classes not in (10, 100):
        raise ValueError(f"n_classes must be 10 or 100, got {n_classes}")
    folder = dataset_folder(path or f"cifar{n_classes}")
    archive = f"cifar-{n_classes}-binary.tar.gz"
    if n_classes == 10:
        inner, md5 = "cifar-10-batches-bin", "c32a1d4ab5d03f1284b67883e8d87530"
        train, test, names = [f"data_batch_{i}.bin" for i in range(1, 6)], "test_batch.bin", "batches.meta.txt"
    else:
        inner, md5 = "cifar-100-binary", "03b5dce01913d631647c71ecec9e9cb8"
        train, test, names = ["train.bin"], "test.bin", "fine_label_names.txt"
    if (pickles := folder / ("cifar-10-batches-py" if n_classes == 10 else "cifar-100-python")).is_dir():
        label_key, names_key, meta = (
            ("labels", "label_names", "batches.meta")
            if n_classes == 10
            else ("fine_labels", "fine_label_names", "meta")
        )
        parts = [read_cifar_pickle(pickles / name.removesuffix(".bin"), label_key) for name in (*train, test)]
        classes = read_cifar_names(pickles / meta, names_key)
    else:
        files = _read(folder, archive, inner, [*train, test, names], md5)
        parts = [_records(folder / name, files[name], n_classes) for name in (*train, test)]
        classes = tuple(files[names].decode().split())
    dataset = Dataset(
        {"x": np.concatenate([x for x, _ in parts]), "y": np.concatenate([y for _, y in parts])},
        postprocess={"x": bytes_to_unit_range},
        default_split=(sum(len(y) for _, y in parts[:-1]), len(parts[-1][1])),
    )
    dataset.classes = classes
    return dataset


def _records(path: Path, content: bytes, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns images and labels of one file: the label bytes (coarse and fine, for 100 classes), then the pixels."""
    n_labels = 1 if n_classes == 10 else 2
    size = n_labels + _IMAGE_BYTES
    if not content or len(content) % size:
        raise ValueError(f"{path} is truncated or malformed: {len(content)} bytes are no multiple of {size}")
    rows = np.frombuffer(content, np.uint8).reshape(-1, size)
    labels = rows[:, n_labels - 1].copy()
    if labels.max() >= n_classes:
        raise ValueError(f"{path} is malformed: it holds the label {labels.max()}, labels must be below {n_classes}")
    return rows[:, n_labels:].reshape(-1, 3, 32, 32).copy(), labels


def _read(folder: Path, archive: str, inner: str, names: list[str], md5: str) -> dict[str, bytes]:
    """Returns the content of the files, from the folder or the archive in it."""
    for place in (folder, folder / inner):
        if all((place / name).is_file() for name in names):
            return {name: (place / name).read_bytes() for name in names}
    if not (folder / archive).is_file():
        try:
            download([_URL + archive], folder / archive, md5)
        except OSError as error:
            raise FileNotFoundError(
                f"CIFAR is not in {folder} and could not be downloaded ({error}); put {archive} there, or its files "
                f"{', '.join(names)}"
            ) from error
    try:
        with tarfile.open(folder / archive) as tar:
            found = {Path(member.name).name: member for member in tar if member.isfile()}
            if missing := [name for name in names if name not in found]:
                raise ValueError(f"{folder / archive} lacks {', '.join(missing)}")
            return {name: tar.extractfile(found[name]).read() for name in names}  # type: ignore[union-attr]
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{folder / archive} is truncated or malformed: {error}") from error
