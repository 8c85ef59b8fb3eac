import gzip
import struct
from pathlib import Path

import numpy as np
import pytest


def write_idx(path: Path, array: np.ndarray) -> None:
    """Writes unsigned bytes in the format of the MNIST files."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wb") as file:
        file.write(header + array.tobytes())


@pytest.fixture(scope="session")
def datasets(tmp_path_factory):
    """A folder for $AI_DATASETS_PATH with a set of MNIST's size and format: noise, each label drawn in it."""
    root = tmp_path_factory.mktemp("datasets")
    (root / "mnist").mkdir()
    rng = np.random.default_rng(0)
    for part, count in (("train", 60_000), ("t10k", 10_000)):
        labels = rng.integers(0, 10, count, dtype=np.uint8)
        images = rng.integers(0, 64, (count, 28, 28), dtype=np.uint8)
        images[0, 0, :2] = 0, 255  # the full range, as in the real set
        images[np.arange(count), 2 * labels + 4, :] = 255
        write_idx(root / "mnist" / f"{part}-images-idx3-ubyte", images)
        write_idx(root / "mnist" / f"{part}-labels-idx1-ubyte", labels)
    return root
