"""Trains a digit classifier, records it, and draws what it learned.

Command: `hatch run demo`, or `python -m ai.examples.mnist --help` for the options.
"""

import os
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from ai.data import DataLoader, Dataset, digits_dataset, mnist_dataset
from ai.examples.mnist.figures import confusion_matrix, save_confusion, save_predictions
from ai.examples.mnist.model import ConvNet, Model
from ai.examples.own_data import class_names, own_images, train_and_held_out
from ai.examples.run_config import RunConfig
from ai.train import Classify, Trainer, opt, schedule

IntArray: TypeAlias = NDArray[np.integer]
FloatArray: TypeAlias = NDArray[np.floating]


@dataclass(frozen=True, kw_only=True)
class Config(RunConfig):
    """What a run needs; every field is an option of the command line."""

    dataset: Literal["auto", "mnist", "digits"] = "auto"
    """`auto` takes MNIST if it is there or can be downloaded, else the digits that ship with scikit-learn."""
    imsize: int = 28
    """Side of your own images."""
    network: Literal["conv", "mlp"] = "conv"
    """A small convolutional network, or a multi-layer perceptron."""
    trial: str = "mnist"
    """The trial's folder, relative to $AI_LAB_PATH (else ./ai-lab) unless absolute."""
    steps: int = 600
    """Number of updates."""
    batch_size: int = 64
    """Images in a batch."""
    learning_rate: float = 3e-3
    """Peak learning rate; warmed up, then cosine to zero."""
    save_interval: int = 100
    """Steps between snapshots."""


def load(name: str) -> tuple[Dataset, str]:
    """Returns the images, `(1, 28, 28)` in [-1, 1] with labels, and the name of the set that was taken."""
    if name == "digits":
        return digits_dataset(size=28), "digits"
    try:
        return mnist_dataset(), "MNIST"
    except FileNotFoundError:
        if name == "mnist":
            raise
    print("MNIST is neither here nor to be downloaded: training on scikit-learn's 1,797 handwritten digits instead.")
    return digits_dataset(size=28), "digits"


def run(config: Config, dataset: Dataset | None = None) -> dict[str, float]:
    """Trains, validates and draws; returns `accuracy` (0 to 1) and `loss` on the held-out images.

    Args:
        config: What to do.
        dataset: Labelled images of your own, `x` `(1 or 3, imsize, imsize)` in [-1, 1] and `y` a class, instead of
            digits; a fifth of each class is held out.
    """
    own = own_images(config.data, dataset, config.imsize, labelled=True)
    if own is None:
        known, name = load(config.dataset)
        train_set, held_out = known.split()
    else:
        name = config.data or "your images"
        train_set, held_out = train_and_held_out(own)
    classes = class_names(train_set, held_out, at_least=2)
    loader = train_set.loader(config.batch_size, config.device, train=True, seed=config.seed)
    validation = held_out.loader(256, config.device)

    shape = held_out[0]["x"].shape
    n = len(classes)
    model = ConvNet(shape[0], n) if config.network == "conv" else Model(shape, n)
    model.init(seed=config.seed).to(config.device)
    optimiser = opt.adamw(model, lr=config.learning_rate)
    trial = config.record(
        config.save_interval,
        dataset,
        val_data=validation,
        sampler=lambda model, step: framed_answers(model, held_out, config.device),
    )
    config.keep(trial, "classes", classes)
    step = trial.resume(model, optimiser, loader) if config.resume else 0
    trainer = Trainer(Classify(label_smoothing=0.1), loader)  # few images: smoothing keeps the answers modest
    plan = schedule.cosine(config.steps, warmup=config.steps // 10)
    trainer.train(
        model, optimiser, trial.hook(), step=step, steplimit=config.steps, timelimit=config.timelimit, schedule=plan
    )

    loss = trainer.validate(model, validation)
    labels, probabilities, images = answers(model, validation)
    predicted = probabilities.argmax(1)
    accuracy = float((predicted == labels).mean())
    title = f"{name}: {accuracy:.2%} of {len(labels)} held-out images"
    save_confusion(trial.path / "confusion.png", confusion_matrix(labels, predicted, n), title)
    wrong = np.flatnonzero(predicted != labels)[:20]
    shown = np.concatenate([wrong, np.flatnonzero(predicted == labels)[: 50 - len(wrong)]])
    save_predictions(
        trial.path / "predictions.png",
        images[shown].mean(1),
        [classes[label] for label in labels[shown]],
        [classes[answer] for answer in predicted[shown]],
        probabilities.max(1)[shown].tolist(),
        title,
    )
    print(title)
    print(f"recorded in {os.path.relpath(trial.path)}: metrics.jsonl, snapshots, confusion.png, predictions.png")
    return {"accuracy": accuracy, "loss": loss}


@torch.no_grad()
def answers(model: torch.nn.Module, data: DataLoader) -> tuple[IntArray, FloatArray, FloatArray]:
    """Returns labels `(n,)`, probabilities `(n, classes)` and images `(n, channels, height, width)` of an epoch."""
    model.eval()
    rows = [(batch["y"].cpu(), model(batch["x"]).softmax(1).cpu(), batch["x"].cpu()) for batch in data]
    labels, probabilities, images = (torch.cat(column).numpy() for column in zip(*rows, strict=True))
    return labels, probabilities, images


@torch.no_grad()
def framed_answers(model: torch.nn.Module, dataset: Dataset, device: str, n: int = 64) -> torch.Tensor:
    """Returns up to `n` held-out images, `(n, 3, height, width)`, framed green where the model is right, else red."""
    batch = dataset.sample(min(n, len(dataset)), device)
    right = model(batch["x"]).argmax(1) == batch["y"]
    images: torch.Tensor = batch["x"].expand(-1, 3, -1, -1).clone()
    frame = torch.stack(
        [torch.where(right, -1.0, 1.0), torch.where(right, 0.6, -1.0), -torch.ones_like(right * 1.0)], 1
    )
    for edge in (images[..., 0, :], images[..., -1, :], images[..., 0], images[..., -1]):
        edge.copy_(frame[..., None])
    return images


def main() -> None:
    """Runs the example with a typed command line."""
    import tyro

    run(tyro.cli(Config, description=__doc__))
