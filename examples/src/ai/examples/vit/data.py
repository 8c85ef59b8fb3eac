"""The images that the Vision Transformer learns from, each with its way of making more of few."""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ai.data import Dataset, cifar_dataset, digits_dataset
from ai.data.mnist import bytes_to_unit_range
from ai.examples.augment import cutmix, mixup, random_affine, random_crop_flip, random_erase

Batch = Mapping[str, Tensor]


def digits(size: int, *, augment: bool) -> tuple[Dataset, Dataset]:
    """Returns scikit-learn's digits, `(1, size, size)`, to train on (turned, shifted, scaled) and held out."""
    train_set, held_out = digits_dataset(size).split()

    def postprocess(batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        x = bytes_to_unit_range(batch["x"])
        if augment:
            x = random_affine(x, generator, degrees=12, shift=0.1, scale=0.15)
        return {"x": x, "y": batch["y"]}

    return Dataset(train_set.data, postprocess=postprocess), held_out


def cifar(n_classes: int, *, mixup_alpha: float, cutmix_alpha: float) -> tuple[Dataset, Dataset]:
    """Returns CIFAR-10 or -100 to train on as DeiT does, and its test set.

    Workers draw two operations of RandAugment for each image; whole batches are then cropped, mirrored, mixed and
    partly erased on their device. Labels come as probabilities.

    Source: Touvron et al. 2021, Training data-efficient image transformers, table 9. Left out: repeated augmentation,
    which pays with batches far larger than one device takes.
    """
    from torchvision.transforms import v2  # type: ignore[import-untyped]

    train_set, held_out = cifar_dataset(n_classes).split()
    policy = v2.RandAugment(num_ops=2, magnitude=9)

    def postprocess(batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        x = random_erase(random_crop_flip(bytes_to_unit_range(batch["x"]), generator), generator)
        y = F.one_hot(batch["y"].long(), n_classes).to(x.dtype)
        first = torch.rand((), generator=generator, device=x.device) < 0.5
        if mixup_alpha and (first or not cutmix_alpha):
            x, y = mixup(x, y, generator, alpha=mixup_alpha)
        elif cutmix_alpha:
            x, y = cutmix(x, y, generator, alpha=cutmix_alpha)
        return {"x": x, "y": y}

    preprocess: dict[str, Callable[[Tensor], Tensor]] = {"x": policy}
    return Dataset(train_set.data, preprocess=preprocess, postprocess=postprocess), held_out
