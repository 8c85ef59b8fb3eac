"""Random changes of image batches, on the batch's device, each image its own.

Each function returns a postprocess for `Dataset.then`, which passes it a seeded generator. Images are
`(batch, channels, height, width)` float in [-1, 1]; where another type or range would give wrong pixels it is refused,
the range at the first batch. Normalise by mean and deviation after them, by another `then`.

Example:
    >>> import torch
    >>> from ai.data import Dataset, augment
    >>> ds = Dataset({"x": torch.rand(64, 3, 32, 32) * 2 - 1, "y": torch.arange(64) % 10})
    >>> ds = ds.then({"x": augment.crop(4)}).then({"x": augment.flip()}).then(augment.mixup(10))
    >>> batch = next(iter(ds.loader(16, train=True)))
    >>> batch["x"].shape, batch["y"].shape
    (torch.Size([16, 3, 32, 32]), torch.Size([16, 10]))
"""

from ai.data.augment.changes import color, crop, cutout, flip, random_resized_crop
from ai.data.augment.mixing import cutmix, mixup
from ai.data.augment.policies import aug_mix, rand_augment

__all__ = [
    "aug_mix",
    "color",
    "crop",
    "cutmix",
    "cutout",
    "flip",
    "mixup",
    "rand_augment",
    "random_resized_crop",
]
