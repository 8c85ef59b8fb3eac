"""A dataset that is held in memory: arrays, or a list of whatever leads to the samples."""

import copy
import operator
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from numbers import Integral, Real
from typing import Any, Self, TypeAlias, Unpack

import numpy as np
import torch
from torch import Tensor

from ai.data.arguments import check_at_least, check_callable, check_whole, elsewhere
from ai.data.batch.collate import collate, like
from ai.data.batch.seeds import derive_seed
from ai.data.batch.shuffle import Stretch, shuffled
from ai.data.batch.transform import Applied, Chain, Transform
from ai.data.loader import DataLoader
from ai.data.loading.options import LoaderOptions
from ai.data.loading.preprocess import sample_at
from ai.data.storage import columns as cols
from ai.data.storage.classes import checked_classes, named_by_torch, same_classes
from ai.data.storage.memory_mapped import Rows

# Parts of up to so many samples are drawn as lists, of 128 MB; of more, each place is looked up when it is read.
_INDEXED = 1 << 24

Split: TypeAlias = Sequence[float] | Sequence[int] | Sequence[Sequence[int] | Tensor]


class Dataset:
    """Samples in memory, with what turns them into batches.

    Args:
        data: an array, a tensor, a list (of paths, …) or a dict of these with equal lengths; also a table of pyarrow,
            pandas, polars or HuggingFace, whose columns keep their names. Arrays and tensors are shared, not copied;
            memory-mapped arrays and parts of them stay in the file. A list holds one entry a sample, arrays too; x and
            y go in a dict, `{"x": X, "y": Y}`: as a tuple, or as a list of two or three arrays that are longer than
            the list, they are refused. So are missing values, times and numbers mixed with anything else.
        preprocess: called by the data workers on each stored sample (for example: load an image from its path), a
            callable or a dict of callables by key. A parameter named `rng` receives a `numpy.random.Generator`, one
            named `generator` a `torch.Generator`, and the global generators are seeded as well, all by
            (seed, epoch, index).
        postprocess: called on each batch on its device (for example: to float32 and normalise), a callable or a dict of
            callables by key. A parameter named `generator` receives a seeded `torch.Generator` on that device; the
            functions of a dict draw alike, so that an image and its mask are changed together.
        default_split: what `.split()` without arguments does, in any form that `.split` takes.
        classes: the names of the labels in `y`, in the order of their numbers; kept by every part, and told apart
            where datasets are joined.

    Raises:
        TypeError: data, preprocess or postprocess of another type, or columns without names.
        ValueError: no samples, columns of different lengths, or a transform of a key that is not there.

    Example:
        >>> ds = Dataset({"x": torch.arange(10.), "y": list(range(10))}, postprocess={"x": lambda x: x / 10})
        >>> len(ds), ds.length(4), [batch["x"].shape[0] for batch in ds.loader(4)]
        (10, 8, [4, 4, 2])
    """

    @elsewhere(target_transform="preprocess={'y': function}", transform="preprocess={'x': function}")
    def __init__(
        self,
        data: Any,
        preprocess: Transform | None = None,
        postprocess: Transform | None = None,
        default_split: Split | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        cols.refuse_unnamed_columns(data)
        self.data = cols.as_columns(data)
        have = list(self.data) if isinstance(self.data, dict) else []
        if isinstance(preprocess, Tensor | np.ndarray | list | tuple):
            raise TypeError(
                "Dataset takes all columns as its first argument, Dataset({'x': X, 'y': Y}), not one by one"
            )
        if preprocess is not None:
            Applied(preprocess, "preprocess")
            _refuse_unknown_keys("preprocess", preprocess, have)
        if postprocess is not None:
            Applied(postprocess, "postprocess")
            if have and _keeps_keys(preprocess):
                _refuse_unknown_keys("postprocess", postprocess, have)
        check_split(default_split)
        self.preprocess = preprocess
        self.postprocess = postprocess
        self.default_split = default_split
        self._classes = checked_classes(classes, self.data)

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The names of the labels in `y`, in the order of their numbers; None where nobody told."""
        return self._classes

    def __repr__(self) -> str:
        names = f", {len(self.classes)} classes: {_few(self.classes)}" if self.classes else ""
        return f"{type(self).__name__}({len(self)} samples, {cols.described(self.data)}{names})"

    def __len__(self) -> int:
        return cols.n_samples(self.data)

    def __getitem__(self, index: int | slice) -> Any:
        """Returns one sample as a loader's batch would hold it, or the dataset of a slice."""
        if isinstance(index, slice):
            return self.subset(range(*index.indices(len(self))))
        try:
            place = operator.index(index)  # a tensor of one number too: those of a permutation, say
        except TypeError:
            raise TypeError(f"index must be a whole number or a slice, got {index!r}") from None
        if not -len(self) <= place < len(self):
            raise IndexError(f"index ({place}) is out of range for {len(self)} samples")
        return _first(next(iter(self.subset([place % len(self)]).loader(1, n_workers=0))))

    def length(self, batch_size: int) -> int:
        """Returns the number of samples in an epoch whose incomplete last batch is dropped."""
        check_at_least(1, batch_size=batch_size)
        return len(self) - len(self) % batch_size

    def loader(
        self,
        batch_size: int,
        device: str | torch.device = "cpu",
        **options: Unpack[LoaderOptions],
    ) -> DataLoader:
        """Returns a `DataLoader` over this dataset, its workers launched; the options are those of `LoaderOptions`."""
        return DataLoader(self, batch_size, device, **options)

    def sample(self, n: int, device: str | torch.device = "cpu", *, seed: int = 0) -> Any:
        """Returns a batch of `n` different samples drawn by `seed`."""
        check_whole(n=n, seed=seed)
        if not 1 <= n <= len(self):
            raise ValueError(f"n must lie in [1, {len(self)}], got {n}")
        chosen = self.subset(shuffled(torch.arange(n, device="cpu"), len(self), seed, 0))
        return next(iter(chosen.loader(n, device, n_workers=0, seed=seed)))

    @elsewhere(
        generator="seed",
        random_state="seed",
        shuffle="what fractions do, and counts do not",
        test_size="a fraction of its own, split(0.8, 0.2)",
        train_size="a fraction of its own, split(0.8, 0.2)",
    )
    def split(
        self, *ratio: float | int | Sequence[int] | Tensor, seed: int = 0, stratify: str | None = None
    ) -> tuple[Self, ...]:
        """Returns this dataset in parts.

        Args:
            *ratio: fractions that sum to 1 (parts are drawn by `seed`), counts that sum to the length (parts follow the
                stored order), or the indices of each part; none takes the dataset's default split.
            seed: of the draw.
            stratify: a column of whole numbers, such as `y`, whose values every part is to have in equal shares; with
                fractions.

        Raises:
            ValueError: the sum is wrong, a part would be empty, or there is no default split.

        Example:
            >>> [len(part) for part in Dataset(torch.arange(10)).split(.8, .2)]
            [8, 2]
        """
        parts: Sequence[Any] | None = ratio or self.default_split
        if parts is None:
            raise ValueError("this dataset has no default split: give ratios, for example split(.9, .1)")
        check_whole(seed=seed)
        if _all_fractions(parts):
            return self._split_by_ratio(parts, seed, stratify)
        if stratify is not None:
            raise ValueError(f"stratify needs fractions that sum to 1, got {tuple(parts)}")
        if all(isinstance(part, Integral) and not isinstance(part, bool) for part in parts):
            if sum(parts) != len(self) or min(parts) < 1:
                raise ValueError(f"counts must be positive and sum to the {len(self)} samples, got {tuple(parts)}")
            bounds = np.cumsum([0, *parts]).tolist()
            return tuple(self.subset(range(*pair)) for pair in pairwise(bounds))
        if any(isinstance(part, Real | str) for part in parts):
            raise ValueError(f"a split must be all fractions, all counts or all index lists, got {tuple(parts)}")
        if len(parts) == 1 and isinstance(parts[0], list | tuple) and all(isinstance(n, float) for n in parts[0]):
            raise ValueError(f"ratios are arguments of their own: split{tuple(parts[0])}, got them in one list")
        return tuple(self.subset(part) for part in parts)

    def subset(self, indices: Sequence[int] | Tensor) -> Self:
        """Returns the dataset of the samples at `indices`, in that order.

        A `range` shares the tensors' memory; other indices copy the samples, except those of a memory-mapped array,
        which stay in its file and are read batch by batch.
        """
        if not hasattr(indices, "__getitem__") or isinstance(indices, str | Mapping) or not _has_length(indices):
            raise TypeError(f"indices must be one row of whole numbers, got {indices!r}")
        if len(indices) == 0:
            raise ValueError("indices must name at least one sample, got none")
        if isinstance(indices, range):
            low, high = min(indices[0], indices[-1]), max(indices[0], indices[-1])
        else:
            try:
                rows = torch.as_tensor(indices, device="cpu")
            except (TypeError, ValueError, RuntimeError):
                raise TypeError(f"indices must be one row of whole numbers, got {indices!r}") from None
            if rows.ndim != 1 or rows.dtype == torch.bool or rows.is_floating_point():
                raise ValueError(
                    f"indices must be one row of whole numbers, got {rows.dtype} of shape {tuple(rows.shape)}"
                )
            low, high = int(rows.min()), int(rows.max())
        if low < 0 or high >= len(self):
            raise IndexError(f"indices must lie in [0, {len(self)}), got {low if low < 0 else high}")
        if isinstance(indices, range):
            data = cols.stretch(self.data, indices)
        else:
            data = cols.choose(self.data, rows.to(torch.int64))
        if isinstance(indices, range) and indices == range(len(self)):
            return self._with(data, self.default_split)
        return self._reordered(data)

    def map(self, function: Callable[[Any], Any]) -> Self:
        """Returns the dataset whose stored samples are `function(stored sample)`, computed now and kept in memory."""
        check_callable(function=function)
        mapped = self._with(_stored([function(sample_at(self.data, i)) for i in range(len(self))]), self.default_split)
        checked_classes(self.classes, mapped.data)
        return mapped

    def filter(self, keep: Callable[[Any], bool]) -> Self:
        """Returns the dataset of the stored samples for which `keep(stored sample)` is true."""
        check_callable(keep=keep)
        kept = [i for i in range(len(self)) if keep(sample_at(self.data, i))]
        if not kept:
            raise ValueError(f"keep must accept at least one of the {len(self)} samples, it accepted none")
        return self.subset(kept)

    def concat(self, *others: "Dataset") -> Self:
        """Returns the samples of this dataset followed by those of `others`, with this one's transforms.

        Where classes differ, the numbers of this one stand, and the labels of the others are numbered to match.

        Raises:
            ValueError: columns that do not fit, or classes that only some of the datasets have.
        """
        for k, other in enumerate(others):
            if not isinstance(other, Dataset):
                raise TypeError(f"others[{k}] must be an ai.data.Dataset, got {_kind(other)}")
        everyone: list[Dataset] = [self, *others]
        parts, classes = same_classes([(dataset.data, dataset.classes) for dataset in everyone])
        joined: Any
        if isinstance(self.data, dict):
            for part in parts:
                if not isinstance(part, dict) or part.keys() != self.data.keys():
                    have = sorted(part) if isinstance(part, dict) else "a single column"
                    raise ValueError(f"datasets must have equal columns, got {sorted(self.data)} and {have}")
            joined = {key: cols.join([part[key] for part in parts], key) for key in self.data}  # type: ignore[call-overload,index]
        elif any(isinstance(part, dict) for part in parts):
            raise ValueError("datasets must have equal columns, got a single column and a dict of columns")
        else:
            joined = cols.join(parts, "data")  # type: ignore[arg-type]
        whole = self._reordered(joined)
        whole._classes = classes
        return whole

    def then(self, postprocess: Transform) -> Self:
        """Returns this dataset with `postprocess` called on each batch after its own, for example to augment.

        Example:
            >>> from ai.data import augment
            >>> train = Dataset({"x": torch.zeros(8, 3, 4, 4)}).then({"x": augment.flip()})
        """
        Applied(postprocess, "postprocess")
        if isinstance(self.data, dict) and _keeps_keys(self.preprocess) and _keeps_keys(self.postprocess):
            _refuse_unknown_keys("postprocess", postprocess, list(self.data))
        other = copy.copy(self)
        other.postprocess = postprocess if self.postprocess is None else Chain(self.postprocess, postprocess)
        return other

    @classmethod
    def from_torch(cls, torch_dataset: Any, **options: Any) -> Self:
        """Returns a map-style torch dataset read into memory once.

        Args:
            torch_dataset: its samples may be tuples (the first two entries become `x` and `y`), dicts or single
                values.
            **options: `preprocess`, `postprocess`, `default_split` and `classes`; without `classes` the names that a
                dataset of torchvision has count, or a part of one, where its labels are not transformed.

        Example:
            >>> pairs = torch.utils.data.TensorDataset(torch.zeros(5, 2), torch.arange(5))
            >>> sorted(Dataset.from_torch(pairs).data)
            ['x', 'y']
        """
        if isinstance(torch_dataset, type | Mapping | str) or not (
            hasattr(torch_dataset, "__getitem__") and _has_length(torch_dataset)
        ):
            raise TypeError(f"torch_dataset must be a map-style dataset, got {_kind(torch_dataset)}")
        samples = [torch_dataset[i] for i in range(len(torch_dataset))]
        if not samples:
            raise ValueError("torch_dataset must hold at least one sample, got an empty one")
        if isinstance(samples[0], tuple | list):
            names = ["x", "y", *(f"item{i}" for i in range(2, len(samples[0])))]
            samples = [dict(zip(names, sample, strict=False)) for sample in samples]
        stored = _stored(samples)
        if "classes" not in options and isinstance(stored, dict) and "y" in stored:
            options["classes"] = named_by_torch(torch_dataset)
        return cls(stored, **options)

    def fingerprint(self) -> str:
        """Returns a short hash that tells this data from other data, kept in loader states."""
        return cols.fingerprint(self.data)

    def _split_by_ratio(self, ratios: Sequence[float], seed: int, stratify: str | None) -> tuple[Self, ...]:
        if not (all(ratio > 0 for ratio in ratios) and abs(sum(ratios) - 1) <= 1e-6):
            raise ValueError(f"ratios must be positive and sum to 1, got {tuple(ratios)} with sum {sum(ratios):g}")
        bounds = [0, *(round(bound * len(self)) for bound in np.cumsum(ratios).tolist())]
        if any(a == b for a, b in pairwise(bounds)):
            raise ValueError(f"ratios {tuple(ratios)} leave a part of the {len(self)} samples empty")
        if stratify is None and len(self) > _INDEXED and type(self).subset is Dataset.subset:
            stretches = [Stretch(len(self), *pair, seed, 1) for pair in pairwise(bounds)]
            return tuple(self._reordered(cols.choose(self.data, stretch)) for stretch in stretches)
        generator = torch.Generator().manual_seed(derive_seed(seed, 1))
        order = torch.randperm(len(self), generator=generator, device="cpu")
        if stratify is None:
            return tuple(self.subset(order[a:b]) for a, b in pairwise(bounds))
        part_of = self._stratified(stratify, order, ratios)
        return tuple(self.subset(order[part_of == part]) for part in range(len(ratios)))

    def _stratified(self, key: str, order: Tensor, ratios: Sequence[float]) -> Tensor:
        """Returns the part of each sample of a drawn order, in which every value of a column has its share.

        The samples stand in one line, value after value. Each part takes its share of every value's stretch, rounded so
        that what it took up to any value is its share of the line so far, and the next part goes along what is left.
        """
        labels = self.data.get(key) if isinstance(self.data, dict) and isinstance(key, str) else None
        labels = labels.tensor() if isinstance(labels, Rows) else labels
        if not isinstance(labels, Tensor) or labels.ndim != 1 or labels.is_floating_point():
            raise ValueError(f"stratify must name a column of one whole number a sample, got {key!r}")
        values, counts = torch.unique(labels, return_counts=True)
        line = torch.sort(torch.searchsorted(values, labels[order].contiguous()), stable=True).indices
        part_of = torch.full((len(order),), len(ratios) - 1, device="cpu")
        left = 1.0
        for part, ratio in enumerate(ratios[:-1]):
            stops = counts.cumsum(0)
            share, left = ratio / left, left - ratio
            taken = (stops * share).round().long().diff(prepend=torch.zeros(1, dtype=torch.int64, device="cpu"))
            place = torch.arange(len(line), device="cpu") - torch.repeat_interleave(stops - counts, counts)
            takes = place < torch.repeat_interleave(taken, counts)
            part_of[line[takes]] = part
            line, counts = line[~takes], counts - taken
        return part_of

    def _reordered(self, data: Any) -> Self:
        # An official split tells the order of the samples, so it holds for all of them in that order only.
        return self._with(data, self.default_split if _all_fractions(self.default_split) else None)

    def _with(self, data: Any, default_split: Split | None) -> Self:
        other = copy.copy(self)  # keeps the subclass and whatever its instances carry
        other.data = cols.as_columns(data)
        other.default_split = default_split
        return other


def check_split(default_split: Any) -> None:
    """Raises `TypeError` for what is no row of parts; None passes."""
    if default_split is not None and (isinstance(default_split, str) or not isinstance(default_split, Sequence)):
        raise TypeError(f"default_split must be a tuple of fractions, counts or index lists, got {default_split!r}")


def _stored(samples: Sequence[Any]) -> Any:
    batch = collate(samples)
    if isinstance(batch, tuple):
        raise TypeError("stored samples must be single values or dicts, got tuples or lists: name their entries")
    return batch


def _all_fractions(split: Split | None) -> bool:
    return split is not None and all(isinstance(part, Real) and not isinstance(part, Integral) for part in split)


def _keeps_keys(transform: Transform | None) -> bool:
    """Returns whether a batch surely has the same keys after a transform: a function's result is not known."""
    return transform is None or isinstance(transform, dict)


def _refuse_unknown_keys(name: str, transform: Transform, have: Sequence[Any]) -> None:
    if isinstance(transform, dict) and (unknown := [key for key in transform if key not in have]):
        raise ValueError(f"{name} names the keys {unknown}, the data has {sorted(have, key=str)}")


def _has_length(value: Any) -> bool:
    try:
        len(value)
    except TypeError:
        return False
    return True


def _kind(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", …" if len(names) > 4 else "")


def _first(batch: Any) -> Any:
    if isinstance(batch, dict):
        return {key: _first(value) for key, value in batch.items()}
    if isinstance(batch, tuple):
        return like(batch, [_first(value) for value in batch])
    return batch[0]
