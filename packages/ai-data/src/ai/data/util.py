"""A loader over any dataset of `torch.utils.data`."""

from typing import Any

import torch
from torch.utils.data import Dataset as TorchDataset

from ai.data.dataset import Dataset
from ai.data.loader import DataLoader
from ai.data.transform import Transform


def create_data_loader(
    torch_dataset: TorchDataset[Any],
    batch_size: int,
    device: str | torch.device = "cpu",
    *,
    postprocess: Transform | None = None,
    **options: Any,
) -> DataLoader:
    """Returns a `DataLoader` over a map-style torch dataset, whose `__getitem__` the workers run.

    Args:
        torch_dataset: shipped once to each worker process.
        batch_size: samples a batch.
        device: where batches go.
        postprocess: called on each batch on its device.
        **options: `train`, `n_workers`, `seed`, … of `DataLoader`.

    Raises:
        ValueError: the dataset is empty.

    Example:
        >>> pairs = torch.utils.data.TensorDataset(torch.arange(5), torch.arange(5) * 2)
        >>> loader = create_data_loader(pairs, 4, n_workers=0)
        >>> [y.tolist() for x, y in loader]
        [[0, 2, 4, 6], [8]]
    """
    dataset = Dataset(range(len(torch_dataset)), torch_dataset.__getitem__, postprocess)  # type: ignore[arg-type]
    return dataset.loader(batch_size, device, **options)
