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
from ai.lab import Trial
from ai.train import Classify, Trainer, opt, schedule

IntArray: TypeAlias = NDArray[np.integer]
FloatArray: TypeAlias = NDArray[np.floating]


@dataclass(frozen=True)
class Config:
    """What a run needs; every field is an option of the command line."""

    dataset: Literal["auto", "mnist", "digits"] = "auto"
    """`auto` takes MNIST if it is there or can be downloaded, else the digits that ship with scikit-learn."""
    network: Literal["conv", "mlp"] = "conv"
    """A small convolutional network, or a multi-layer perceptron."""
    trial: str = "mnist"
    """The trial's folder, relative to $AI_LAB_PATH (else ./ai-lab) unless absolute."""
    resume: bool = False
    """Go on from the trial's last snapshot instead of starting anew."""
    steps: int = 600
    """Number of updates."""
    batch_size: int = 64
    """Images in a batch."""
    learning_rate: float = 3e-3
    """Peak learning rate; warmed up, then cosine to zero."""
    save_interval: int = 100
    """Steps between snapshots."""
    seed: int = 0
    """Seeds the weights and the order of the data."""
    device: str = "cpu"
    """A torch device."""


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


def run(config: Config) -> dict[str, float]:
    """Trains, validates and draws; returns `accuracy` (0 to 1) and `loss` on the held-out images."""
    dataset, name = load(config.dataset)
    train_set, held_out = dataset.split()
    loader = train_set.loader(config.batch_size, config.device, train=True, seed=config.seed)
    validation = held_out.loader(256, config.device)

    model = (ConvNet() if config.network == "conv" else Model()).init(seed=config.seed).to(config.device)
    optimiser = opt.adamw(model, lr=config.learning_rate)
    trial = Trial(
        config.trial,
        clean=not config.resume,
        config=config,
        val_data=validation,
        sampler=lambda model, step: framed_answers(model, held_out, config.device),
        save_snapshots=True,
        log_interval=20,
        val_interval=config.save_interval,
        sample_interval=config.save_interval,
        save_interval=config.save_interval,
    )
    step = trial.resume(model, optimiser, loader) if config.resume else 0
    trainer = Trainer(Classify(label_smoothing=0.1), loader)  # few images: smoothing keeps the answers modest
    plan = schedule.cosine(config.steps, warmup=config.steps // 10)
    trainer.train(model, optimiser, trial.hook(), step=step, steplimit=config.steps, schedule=plan)

    loss = trainer.validate(model, validation)
    labels, probabilities, images = answers(model, validation)
    predicted = probabilities.argmax(1)
    accuracy = float((predicted == labels).mean())
    title = f"{name}: {accuracy:.2%} of {len(labels)} held-out images"
    save_confusion(trial.path / "confusion.png", confusion_matrix(labels, predicted, 10), title)
    wrong = np.flatnonzero(predicted != labels)[:20]
    shown = np.concatenate([wrong, np.flatnonzero(predicted == labels)[: 50 - len(wrong)]])
    save_predictions(
        trial.path / "predictions.png",
        images[shown, 0],
        labels[shown].tolist(),
        predicted[shown].tolist(),
        probabilities.max(1)[shown].tolist(),
        title,
    )
    print(title)
    print(f"recorded in {os.path.relpath(trial.path)}: metrics.jsonl, snapshots, confusion.png, predictions.png")
    return {"accuracy": accuracy, "loss": loss}


@torch.no_grad()
def answers(model: torch.nn.Module, data: DataLoader) -> tuple[IntArray, FloatArray, FloatArray]:
    """Returns labels `(n,)`, class probabilities `(n, 10)` and images `(n, 1, height, width)` of a loader's epoch."""
    model.eval()
    rows = [(batch["y"].cpu(), model(batch["x"]).softmax(1).cpu(), batch["x"].cpu()) for batch in data]
    labels, probabilities, images = (torch.cat(column).numpy() for column in zip(*rows, strict=True))
    return labels, probabilities, images


@torch.no_grad()
def framed_answers(model: torch.nn.Module, dataset: Dataset, device: str, n: int = 64) -> torch.Tensor:
    """Returns `n` held-out images as `(n, 3, height, width)`, framed green where the model is right, red where not."""
    batch = dataset.sample(n, device)
    right = model(batch["x"]).argmax(1) == batch["y"]
    images: torch.Tensor = batch["x"].repeat(1, 3, 1, 1)
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
