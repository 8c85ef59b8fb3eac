"""CIFAR-10 and CIFAR-100 from their files, downloaded when they are not there."""

import os
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ai.data.arguments import check_path, check_whole
from ai.data.batch.transform import bytes_to_unit_range
from ai.data.builtin.cifar_pickle import read_cifar_names, read_cifar_pickle
from ai.data.builtin.download import download
from ai.data.dataset import Dataset
from ai.data.storage.paths import dataset_folder

_IMAGE_BYTES = 3 * 32 * 32


def cifar_dataset(path: str | os.PathLike[str] | None = None, *, n_classes: int = 10) -> Dataset:
    """Returns CIFAR: 60,000 photographs, split 50,000 / 10,000 by `.split()`.

    Batches hold `x`: `(batch, 3, 32, 32)` float32 in [-1, 1] and `y`: `(batch,)` uint8.

    Args:
        path: a folder that holds the python version (torchvision's) or the binary version, as the archive or as the
            files in it; relative to `$AI_DATASETS_PATH`, else to `~/.cache/ai/datasets`; None means `cifar10` or
            `cifar100`. If none is there, the python version is downloaded into it.
        n_classes: 10 or 100 (the fine labels).

    Raises:
        FileNotFoundError: the files are missing and the download failed.
        TypeError: a path that is a number.
        ValueError: another n_classes, or a malformed file.

    Source: Krizhevsky, 2009, Learning Multiple Layers of Features from Tiny Images.
    """
    if isinstance(path, int):
        raise TypeError(f"path must be a folder, got {path}: the number of classes is cifar_dataset(n_classes={path})")
    check_path(or_none=True, path=path)
    check_whole(n_classes=n_classes)
    if n_classes not in (10, 100):
        raise ValueError(f"n_classes must be 10 or 100, got {n_classes}")
    folder = dataset_folder(path or f"cifar{n_classes}")
    python, binary = _VERSIONS[n_classes]
    for version, read in ((python, _from_pickles), (binary, _from_records)):
        if content := _stored(folder, version):
            return read(folder, version, content, n_classes)
    _download(folder, python, n_classes)
    return _from_pickles(folder, python, _stored(folder, python) or {}, n_classes)


@dataclass(frozen=True)
class _Version:
    """What one form of the files is called: an archive, the folder in it, and the files there."""

    archive: str
    inner: str
    train: tuple[str, ...]
    test: str
    names: str

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.train, self.test, self.names)


_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
# By number of classes: the python version, the binary version.
_VERSIONS = {
    10: (
        _Version("cifar-10-python.tar.gz", "cifar-10-batches-py", _BATCHES, "test_batch", "batches.meta"),
        _Version(
            "cifar-10-binary.tar.gz",
            "cifar-10-batches-bin",
            tuple(f"{name}.bin" for name in _BATCHES),
            "test_batch.bin",
            "batches.meta.txt",
        ),
    ),
    100: (
        _Version("cifar-100-python.tar.gz", "cifar-100-python", ("train",), "test", "meta"),
        _Version("cifar-100-binary.tar.gz", "cifar-100-binary", ("train.bin",), "test.bin", "fine_label_names.txt"),
    ),
}


def _from_pickles(folder: Path, version: _Version, content: dict[str, bytes], n_classes: int) -> Dataset:
    prefix = "" if n_classes == 10 else "fine_"
    parts = [
        read_cifar_pickle(folder / version.inner / name, content[name], f"{prefix}labels")
        for name in (*version.train, version.test)
    ]
    names = read_cifar_names(folder / version.inner / version.names, content[version.names], f"{prefix}label_names")
    return _dataset(parts, names)


def _from_records(folder: Path, version: _Version, content: dict[str, bytes], n_classes: int) -> Dataset:
    parts = [
        _records(folder / version.inner / name, content[name], n_classes) for name in (*version.train, version.test)
    ]
    return _dataset(parts, tuple(content[version.names].decode().split()))


def _dataset(parts: list[tuple[np.ndarray, np.ndarray]], names: tuple[str, ...]) -> Dataset:
    return Dataset(
        {"x": np.concatenate([x for x, _ in parts]), "y": np.concatenate([y for _, y in parts])},
        postprocess={"x": bytes_to_unit_range},
        default_split=(sum(len(y) for _, y in parts[:-1]), len(parts[-1][1])),
        classes=names,
    )


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


def _stored(folder: Path, version: _Version) -> dict[str, bytes] | None:
    """Returns the content of the files, from the folder or the archive in it; None where neither is there."""
    for place in (folder, folder / version.inner):
        if all((place / name).is_file() for name in version.files):
            return {name: (place / name).read_bytes() for name in version.files}
    archive = folder / version.archive
    if not archive.is_file():
        return None
    try:
        with tarfile.open(archive) as tar:
            found = {Path(member.name).name: member for member in tar if member.isfile()}
            if missing := [name for name in version.files if name not in found]:
                raise ValueError(f"{archive} lacks {', '.join(missing)}")
            return {name: tar.extractfile(found[name]).read() for name in version.files}  # type: ignore[union-attr]
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{archive} is truncated or malformed: {error}") from error


def _download(folder: Path, version: _Version, n_classes: int) -> None:
    import torchvision.datasets  # type: ignore[import-untyped]

    source = getattr(torchvision.datasets, f"CIFAR{n_classes}")
    try:
        download([source.url], folder / version.archive, source.tgz_md5)
    except OSError as error:
        raise FileNotFoundError(
            f"CIFAR-{n_classes} is not in {folder} and could not be downloaded ({error}); put {version.archive} there, "
            f"or its files {', '.join(version.files)}"
        ) from error
