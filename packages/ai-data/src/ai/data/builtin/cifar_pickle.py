"""CIFAR's python version, as torchvision stores it: pickles, read without running anything in them."""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np


def read_cifar_pickle(path: Path, pickled: bytes, label_key: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images `(n, 3, 32, 32)` and labels `(n,)` of one file, both uint8.

    Args:
        path: of the file, for errors.
        pickled: its content.
        label_key: of the labels in it.

    Raises:
        ValueError: the file is malformed, or refers to anything but arrays.
    """
    content = _load(path, pickled)
    try:
        rows, labels = np.asarray(content[b"data"]), np.asarray(content[label_key.encode()], np.uint8)
        if rows.dtype != np.uint8 or rows.shape != (len(labels), 3072):
            raise ValueError(f"{rows.dtype} of shape {rows.shape} for {len(labels)} labels")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{path} is malformed: {error}") from error
    return rows.reshape(-1, 3, 32, 32), labels


def read_cifar_names(path: Path, pickled: bytes, key: str) -> tuple[str, ...]:
    """Returns the class names of a meta file."""
    content = _load(path, pickled)
    try:
        return tuple(name.decode() for name in content[key.encode()])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is malformed: {error}") from error


def _load(path: Path, pickled: bytes) -> Any:
    try:
        return _Unpickler(io.BytesIO(pickled), encoding="bytes").load()
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, IndexError, KeyError) as error:
        raise ValueError(f"{path} is truncated or malformed: {error}") from error


class _Unpickler(pickle.Unpickler):
    """Builds numpy arrays and plain values, and refuses the rest: a pickle may otherwise run any code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return lambda text, encoding: text.encode(encoding)
        if module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray"):
            if name == "_reconstruct":
                return lambda kind, shape, code: np.ndarray(shape, np.uint8)
            if name in ("ndarray", "dtype"):
                return getattr(np, name)
        raise pickle.UnpicklingError(f"it refers to {module}.{name}, which CIFAR's files do not")
