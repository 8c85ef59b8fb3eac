"""Datasets, generators and loaders that are fast and exactly resumable.

Names resolve on first use, so a worker process that needs numpy alone does not pay for importing torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ai.data import augment as augment
    from ai.data import sampling as sampling
    from ai.data import toy as toy
    from ai.data import util as util
    from ai.data.batch.padding import padded as padded
    from ai.data.builtin.cifar import cifar_dataset as cifar_dataset
    from ai.data.builtin.digits import digits_dataset as digits_dataset
    from ai.data.builtin.mnist import fashion_mnist_dataset as fashion_mnist_dataset
    from ai.data.builtin.mnist import mnist_dataset as mnist_dataset
    from ai.data.datagen import Datagen as Datagen
    from ai.data.datagen import DatagenLoader as DatagenLoader
    from ai.data.dataset import Dataset as Dataset
    from ai.data.episodes.packing import Episode as Episode
    from ai.data.episodes.packing import Packed as Packed
    from ai.data.episodes.returns import lambda_returns as lambda_returns
    from ai.data.episodes.returns import vtrace_returns as vtrace_returns
    from ai.data.generation.draws import Draws as Draws
    from ai.data.generation.hindsight import Hindsight as Hindsight
    from ai.data.generation.source import Source as Source
    from ai.data.images.pack_list import packs as packs
    from ai.data.img_dataset import ImgDataset as ImgDataset
    from ai.data.loader import DataLoader as DataLoader
    from ai.data.loading.preprocess import PreprocessError as PreprocessError
    from ai.data.replay_buffer import ReplayBuffer as ReplayBuffer
    from ai.data.shards.stream import Shards as Shards
    from ai.data.shards.writing import write_shards as write_shards
    from ai.data.tokens import block_mask as block_mask
    from ai.data.tokens import packed_tokens as packed_tokens
    from ai.data.workers.on_ray.engine import Ray as Ray
    from ai.data.workers.worker import WorkerFailedError as WorkerFailedError

# Public name -> the module that defines it.
_OWNERS = {
    "DataLoader": "loader",
    "Datagen": "datagen",
    "DatagenLoader": "datagen",
    "Dataset": "dataset",
    "block_mask": "tokens",
    "cifar_dataset": "builtin.cifar",
    "digits_dataset": "builtin.digits",
    "Draws": "generation.draws",
    "Episode": "episodes.packing",
    "Hindsight": "generation.hindsight",
    "ImgDataset": "img_dataset",
    "Packed": "episodes.packing",
    "PreprocessError": "loading.preprocess",
    "Ray": "workers.on_ray.engine",
    "ReplayBuffer": "replay_buffer",
    "Shards": "shards.stream",
    "Source": "generation.source",
    "WorkerFailedError": "workers.worker",
    "fashion_mnist_dataset": "builtin.mnist",
    "lambda_returns": "episodes.returns",
    "mnist_dataset": "builtin.mnist",
    "packed_tokens": "tokens",
    "padded": "batch.padding",
    "packs": "images.pack_list",
    "vtrace_returns": "episodes.returns",
    "write_shards": "shards.writing",
}
_MODULES = ("augment", "sampling", "toy", "util")


# What torchvision, torch and Lightning call a thing -> ours, for whoever asks by their name.
_ELSEWHERE = {
    "ImageFolder": "ai.data.ImgDataset(folder, imsize, labels='folder')",
    "LightningDataModule": "a loader for each part: Dataset.split, then loader(batch_size)",
    "MNIST": "ai.data.mnist_dataset()",
    "TensorDataset": "ai.data.Dataset({'x': X, 'y': Y})",
    "mnist": "ai.data.mnist_dataset()",
    "random_split": "Dataset.split(0.8, 0.2)",
}

# A type checker goes by the imports above: `__getattr__` would type every misspelling as Any, and a computed `__all__`
# leaves nothing to `import *`.
if not TYPE_CHECKING:
    __all__ = [*_OWNERS, *_MODULES]

    def __getattr__(name: str) -> Any:
        if name in _MODULES:
            return import_module(f"ai.data.{name}")
        if name not in _OWNERS:
            hint = f": what others call so is {_ELSEWHERE[name]}" if name in _ELSEWHERE else ""
            raise AttributeError(f"module 'ai.data' has no attribute {name!r}{hint}")
        value = getattr(import_module(f"ai.data.{_OWNERS[name]}"), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
