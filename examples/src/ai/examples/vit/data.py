"""The images that the Vision Transformer learns from, each with its way of making more of few."""

import numpy as np
from torch import Generator, Tensor

from ai.data import Dataset, cifar_dataset, digits_dataset
from ai.data.augment import crop, cutmix, flip, mixup
from ai.examples.augment import affine, erase
from ai.examples.own_data import train_and_held_out


def digits(size: int, *, augment: bool) -> tuple[Dataset, Dataset]:
    """Returns scikit-learn's digits, `(1, size, size)`, to train on and held out.

    Augmented ones are turned, shifted, scaled, slanted, and half of them lack a box.
    """
    train_set, held_out = digits_dataset(size).split()
    if augment:
        for change in (affine(15, 0.1, 0.2, 0.3), erase(0.5, (0.02, 0.2))):
            train_set = train_set.then({"x": change})
    return train_set, held_out


def own(dataset: Dataset, *, augment: bool) -> tuple[Dataset, Dataset]:
    """Returns four fifths of each class to train on, mirrored at random if augmented, and the rest held out."""
    train_set, held_out = train_and_held_out(dataset)
    return train_set.then({"x": flip()}) if augment else train_set, held_out


def cifar(n_classes: int, *, mixup_alpha: float, cutmix_alpha: float) -> tuple[Dataset, Dataset]:
    """Returns CIFAR-10 or -100 to train on as DeiT does, and its test set.

    Workers draw two operations of RandAugment for each image; whole batches are then cropped, mirrored, partly erased
    and mixed on their device, by mixup or cutmix in turn. Mixed labels are probabilities.

    Source: Touvron et al. 2021, Training data-efficient image transformers, table 9. Left out: repeated augmentation,
    which pays with batches far larger than one device takes.
    """
    from torchvision.transforms import v2  # type: ignore[import-untyped]

    train_set, held_out = cifar_dataset(n_classes=n_classes).split()
    train_set = Dataset(train_set.data, {"x": v2.RandAugment(2, 9)}, train_set.postprocess)
    for change in (crop(4, "reflect"), flip(), erase()):
        train_set = train_set.then({"x": change})
    mixes = [mixup(n_classes, mixup_alpha)] if mixup_alpha else []
    mixes += [cutmix(n_classes, cutmix_alpha)] if cutmix_alpha else []

    def mix(batch: dict[str, Tensor], generator: Generator) -> dict[str, Tensor]:
        # From the seed, which is known: to read a number that is drawn on a device would be to wait for it.
        which = np.random.default_rng([generator.initial_seed(), 2]).integers(len(mixes))
        return mixes[which](batch, generator)

    return train_set.then(mix) if mixes else train_set, held_out
