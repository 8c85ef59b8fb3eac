"""A digit classifier that needs no download: an independent judge of generated digits, and features to compare by."""

import os
from pathlib import Path

from torch import Tensor

import ai.model as m
from ai.data import digits_dataset
from ai.data.storage.paths import dataset_folder
from ai.examples.augment import affine
from ai.examples.metrics.images import Features
from ai.train import Classify, Trainer, opt, schedule

_STEPS = 1500


class DigitsClassifier(m.Model):
    """A convolutional network from `(batch, 1, size, size)` digits in [-1, 1] to `(batch, 10)` logits.

    `.features(x)` are the `(batch, 128)` activations before the last layer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = m.seq(
            m.conv(1, 32, norm="batch", actv="relu"),
            m.conv(32, 64, stride=2, norm="batch", actv="relu"),
            m.conv(64, 128, stride=2, norm="batch", actv="relu"),
            m.global_avg(),
        )
        self.head = m.fc(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits."""
        return self.head(self.features(x))  # type: ignore[no-any-return]


def digits_classifier(
    size: int = 32, *, seed: int = 0, steps: int = _STEPS, path: str | os.PathLike[str] | None = None
) -> DigitsClassifier:
    """Returns the classifier for digits of `size` pixels, in evaluation mode, trained on first use (about a minute).

    It learns from the training part of `digits_dataset(size)` alone, slightly turned, shifted and scaled.

    Args:
        size: Of the images, at least 8.
        seed: Of weights and data order.
        steps: Number of updates.
        path: The file that keeps the weights; None is `digits-classifier/…` in the datasets folder.

    Raises:
        ValueError: `size` below 8.
    """
    if size < 8:
        raise ValueError(f"size must be at least 8 pixels, the digits' own, got {size}")
    name = f"size{size}-seed{seed}-steps{steps}.safetensors"
    file = Path(path) if path is not None else dataset_folder("digits-classifier") / name
    model = DigitsClassifier()
    if file.exists():
        return model.init(file).eval()
    _train(model.init(seed=seed), size, seed, steps)
    file.parent.mkdir(parents=True, exist_ok=True)
    model.save(file)
    return model.eval()


def digits_features(size: int = 32, *, seed: int = 0) -> Features:
    """Returns the features of `digits_classifier(size, seed=seed)`, to compare digits of that size by."""
    model = digits_classifier(size, seed=seed)
    name = f"digits classifier, {size} pixels, seed {seed}, {_STEPS} steps, 128 features before the last layer"
    return Features(model.features, name)


def _train(model: DigitsClassifier, size: int, seed: int, steps: int) -> None:
    train_set, _ = digits_dataset(size).split()
    data = train_set.then({"x": affine()}).loader(64, train=True, seed=seed)
    plan = schedule.cosine(steps, warmup=steps // 10)
    Trainer(Classify(), data).train(model, opt.adamw(model, lr=3e-3), steplimit=steps, schedule=plan)
