"""Shards of a dataset: preprocessed once, by many workers, into files that are read in a row."""

import copy
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from torch import Tensor

from ai.data.arguments import check_flag, check_n_workers, check_path, check_whole
from ai.data.dataset import Dataset
from ai.data.loader import DataLoader
from ai.data.shards.stream import INDEX, Shards
from ai.data.storage.atomic_file import write_atomic
from ai.data.storage.paths import expanded

_BATCH = 64


def write_shards(
    dataset: Dataset,
    folder: str | os.PathLike[str],
    *,
    per_shard: int = 1024,
    n_workers: int | None = None,
    seed: int = 0,
    resume: bool = False,
) -> Shards:
    """Returns the samples of a dataset as shards, `.npz` files of up to `per_shard` samples each in a folder.

    Its `preprocess` runs in workers, now and never again; its `postprocess` is for those who read. What is written does
    not depend on the number of workers. A shard lies in memory while it is written, and while it is read.

    Args:
        dataset: whose preprocessed samples are dicts of numbers, or one array each, of one shape.
        folder: made where it is missing.
        per_shard: samples in each but the last.
        n_workers: as of `Dataset.loader`.
        seed: of what `preprocess` draws.
        resume: go on with what an interrupted call of these arguments has written; that `preprocess` is still the same
            is for you to know.

    Raises:
        FileExistsError: the folder holds shards already.
        ValueError: with `resume`, those are of other data or arguments; or columns that are no numbers.

    Example:
        >>> import tempfile
        >>> from ai.data.util import create_data_loader
        >>> ds = Dataset({"x": np.arange(5)}, {"x": lambda x: x * 10})
        >>> shards = write_shards(ds, tempfile.mkdtemp(), per_shard=2, n_workers=0)
        >>> [batch["x"].tolist() for batch in create_data_loader(shards, 4, n_workers=0)]
        [[0, 10, 20, 30], [40]]
    """
    check_whole(per_shard=per_shard, seed=seed)
    check_n_workers(n_workers, or_none=True)
    check_flag(resume=resume)
    check_path(folder=folder)
    if not isinstance(dataset, Dataset):
        raise TypeError(f"dataset must be an ai.data.Dataset, got {type(dataset).__name__}")
    per_shard, seed = int(per_shard), int(seed)  # of any library
    if per_shard < 1:
        raise ValueError(f"per_shard must be at least 1 sample, got {per_shard}")
    root = expanded(folder)
    n_shards = -(-len(dataset) // per_shard)
    index = {
        "format": 1,
        "data": dataset.fingerprint(),
        "n": len(dataset),
        "n_shards": n_shards,
        "per_shard": per_shard,
        "seed": seed,
        "classes": dataset.classes,
    }
    root.mkdir(parents=True, exist_ok=True)
    n_done = _written(root, json.loads(json.dumps(index)), resume)
    stored = copy.copy(dataset)
    stored.postprocess = None
    batch_size = max(size for size in range(1, _BATCH + 1) if per_shard % size == 0)
    with stored.loader(batch_size, n_workers=n_workers, seed=seed) as loader:
        for number, columns in enumerate(_pieces(loader, per_shard // batch_size, n_done), n_done):
            path = root / f"{number:06}.npz"
            write_atomic(path, lambda file, columns=columns: _save(file, columns))  # type: ignore[misc]
    return Shards(root)


def _written(root: Path, index: dict[str, Any], resume: bool) -> int:
    """Returns how many shards the folder holds already, and leaves there what the others will be."""
    told = root / INDEX
    if not told.exists():
        if stray := sorted(root.glob("*.npz")):
            raise FileExistsError(f"folder must hold no other files that end in .npz, there is {stray[0]}")
        write_atomic(told, lambda file: file.write(json.dumps(index).encode()))
        return 0
    if not resume:
        raise FileExistsError(f"{root} holds shards already: give another folder, or resume=True to go on with them")
    theirs = json.loads(told.read_text())
    for key, value in index.items():
        if theirs.get(key) != value:
            raise ValueError(f"resume=True needs the shards' own {key}, {root} has {theirs.get(key)!r}, got {value!r}")
    for left_over in root.glob(".*.npz.*"):  # of a process that was killed
        left_over.unlink()
    numbers = [int(path.stem) for path in sorted(root.glob("*.npz"))]
    return next((place for place, number in enumerate(numbers) if place != number), len(numbers))


def _pieces(loader: DataLoader, n_batches: int, n_done: int) -> Iterator[dict[str, np.ndarray]]:
    """Yields the columns of shard after shard, after those that are done."""
    if n_done:
        state = loader.state_dict()
        loader.load_state_dict({**state, "batch": n_done * n_batches})
    batches: list[dict[str, np.ndarray]] = []
    for batch in loader:
        batches.append(_as_columns(batch))
        if len(batches) == n_batches:
            yield _joined(batches)
            batches = []
    if batches:
        yield _joined(batches)


def _save(file: IO[bytes], columns: dict[str, np.ndarray]) -> None:
    """Writes what `np.savez` does, which takes no column of the name `file`."""
    with zipfile.ZipFile(file, "w") as packed:
        for name, column in columns.items():
            with packed.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array(entry, column, allow_pickle=False)


def _joined(batches: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def _as_columns(batch: Any) -> dict[str, np.ndarray]:
    columns = batch if isinstance(batch, dict) else {"x": batch}
    arrays = {}
    for name, column in columns.items():
        if not isinstance(column, Tensor):
            raise ValueError(f"shards hold numbers, column {name!r} is made of {type(column).__name__}")
        try:
            arrays[str(name)] = column.numpy()
        except TypeError:
            raise ValueError(f"shards hold numbers of numpy's types, column {name!r} is {column.dtype}") from None
    return arrays
