"""A loader over any dataset of `torch.utils.data`."""

from typing import Any, Unpack

import torch
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import IterableDataset

from ai.data.arguments import check_instance, check_whole
from ai.data.batch.transform import Transform
from ai.data.dataset import Dataset
from ai.data.loader import DataLoader
from ai.data.loading.options import LoaderOptions
from ai.data.loading.stream import StreamLoader


def create_data_loader(
    torch_dataset: TorchDataset[Any],
    batch_size: int,
    device: str | torch.device = "cpu",
    *,
    postprocess: Transform | None = None,
    shuffle: int = 0,
    **options: Unpack[LoaderOptions],
) -> DataLoader | StreamLoader:
    """Returns a loader over a torch dataset.

    A map-style dataset is shipped once to each worker, which runs its `__getitem__`; its loader is a `DataLoader` with
    all that it promises. An iterable dataset is read in order, see `StreamLoader`.

    Args:
        torch_dataset: map-style or iterable.
        batch_size: samples a batch.
        device: where batches go.
        postprocess: called on each batch on its device.
        shuffle: as of `StreamLoader`, for an iterable dataset; a map-style one is shuffled whole by `train`.
        **options: see `LoaderOptions`; a stream is read by processes, and cannot be `resident`.

    Raises:
        TypeError: the dataset is neither map-style nor iterable.
        ValueError: the dataset is empty, or an option is out of range.

    Example:
        >>> pairs = torch.utils.data.TensorDataset(torch.arange(5), torch.arange(5) * 2)
        >>> loader = create_data_loader(pairs, 4, n_workers=0)
        >>> [y.tolist() for x, y in loader]
        [[0, 2, 4, 6], [8]]
    """
    check_instance(torch_dataset=torch_dataset)
    map_style = hasattr(torch_dataset, "__getitem__") and not isinstance(torch_dataset, IterableDataset)
    if not map_style:
        if not hasattr(torch_dataset, "__iter__"):
            raise TypeError(f"torch_dataset must be map-style or iterable, got {type(torch_dataset).__name__}")
        return StreamLoader(torch_dataset, batch_size, device, postprocess=postprocess, shuffle=shuffle, **options)
    check_whole(shuffle=shuffle)
    if shuffle:
        raise ValueError(
            f"shuffle ({shuffle}) is for iterable datasets: a map-style one is shuffled whole by train=True"
        )
    places = _Places(len(torch_dataset))  # type: ignore[arg-type]
    return Dataset(places, torch_dataset.__getitem__, postprocess).loader(batch_size, device, **options)


class _Places:
    """The numbers 0 … n - 1 as Python's own, which every `__getitem__` takes; a range would become a tensor.

    Args:
        n: how many.
    """

    def __init__(self, n: int) -> None:
        self._n = n

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, index: int) -> int:
        return index
