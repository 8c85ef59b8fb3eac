"""Trains a Vision Transformer, and draws where it looks.

Command: `ai-examples vit`, or `python -m ai.examples.vit --help` for presets and options.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from ai.data import DataLoader, Dataset
from ai.examples.cli import read_config
from ai.examples.figures import save_attention
from ai.examples.metrics import accuracy_task
from ai.examples.mnist.figures import confusion_matrix, save_confusion
from ai.examples.own_data import class_names, own_images
from ai.examples.run_config import RunConfig
from ai.examples.saved import load_averaged
from ai.examples.vit import data
from ai.examples.vit.attention import attention_rollout
from ai.examples.vit.model import Model
from ai.train import Classify, Trainer, opt, schedule


@dataclass(frozen=True, kw_only=True)
class Config(RunConfig):
    """What a run needs; every field is an option of the command line."""

    dataset: Literal["digits", "cifar10", "cifar100"] = "digits"
    """The digits that ship with scikit-learn, or CIFAR."""
    trial: str = "vit"
    """The trial's folder, relative to $AI_LAB_PATH (else ./ai-lab) unless absolute."""
    imsize: int = 16
    """Side of the images; CIFAR's is 32."""
    patch_size: int = 4
    """Side of a patch; divides `imsize`."""
    dim: int = 64
    """Width of the model."""
    depth: int = 4
    """Number of blocks."""
    num_heads: int = 4
    """Attention heads in a block."""
    pool: Literal["cls", "mean"] = "mean"
    """What is classified: an added token, or the mean of all patches."""
    drop_path: float = 0.1
    """Stochastic depth: the last block's chance to be skipped for an image; it grows linearly from 0."""
    dropout: float = 0.0
    """Share of activations dropped."""
    augment: bool = True
    """Turn, shift, scale and slant the digits, and hide a box of some; CIFAR has its own recipe."""
    mixup: float = 0.0
    """Mixing of images (CIFAR only): the parameter of its Beta distribution; 0 is off."""
    cutmix: float = 0.0
    """Pasting of boxes (CIFAR only), in turn with mixup; 0 is off."""
    label_smoothing: float = 0.1
    """Share of the target spread over all classes."""
    steps: int = 6000
    """Number of updates."""
    batch_size: int = 64
    """Images in a batch."""
    learning_rate: float = 2e-3
    """Peak learning rate; warmed up, then cosine to zero."""
    warmup: int = 400
    """Steps until the peak."""
    weight_decay: float = 0.05
    """Decay of matrices; norms, biases and the position embedding are left alone."""
    layer_decay: float = 1.0
    """Each block's learning rate over that of the next block; below 1 for fine-tuning."""
    ema: float | None = 0.998
    """Decay of the moving average of the weights that is validated and saved beside them."""
    precision: Literal["bf16"] | None = None
    """Of the activations while training; None is float32."""
    compile: bool = False
    """Compile the model."""
    weights: str | None = None
    """A file of weights to start from, for fine-tuning; names that do not fit are reported."""
    interval: int = 500
    """Steps between validations and snapshots."""


# Touvron et al. 2021, table 9, at 300 epochs of 50,000 images in batches of 1,024; DeiT-Ti with patches of 4
_DEIT_STEPS_PER_EPOCH = 50_000 // 1024
PRESETS = {
    "tiny": Config(
        imsize=8, dim=12, depth=2, num_heads=2, steps=4, batch_size=8, warmup=1, interval=2, ema=None, label_smoothing=0
    ),
    "laptop": Config(),
    "cifar": Config(
        dataset="cifar10",
        imsize=32,
        patch_size=4,
        dim=192,
        depth=12,
        num_heads=3,
        pool="cls",
        drop_path=0.1,
        mixup=0.8,
        cutmix=1.0,
        label_smoothing=0.1,
        steps=300 * _DEIT_STEPS_PER_EPOCH,
        batch_size=1024,
        learning_rate=5e-4 * 1024 / 512,
        warmup=5 * _DEIT_STEPS_PER_EPOCH,
        weight_decay=0.05,
        ema=0.99996,
        precision="bf16",
        compile=True,
        interval=10 * _DEIT_STEPS_PER_EPOCH,
        device="cuda",
    ),
}
DESCRIPTIONS = {
    "tiny": "seconds; for tests",
    "laptop": "scikit-learn's digits, minutes on a CPU",
    "cifar": "CIFAR-10 from scratch by the DeiT recipe, on a GPU",
}


def load(config: Config, dataset: Dataset | None = None) -> tuple[Dataset, Dataset]:
    """Returns the training and the held-out set."""
    own = own_images(config.data, dataset, config.imsize, labelled=True)
    if own is not None:
        return data.own(own, augment=config.augment)
    if config.dataset == "digits":
        return data.digits(config.imsize, augment=config.augment)
    if config.imsize != 32:
        raise ValueError(f"imsize must be 32, that of CIFAR's images, got {config.imsize}")
    n_classes = int(config.dataset.removeprefix("cifar"))
    return data.cifar(n_classes, mixup_alpha=config.mixup, cutmix_alpha=config.cutmix)


def run(config: Config, dataset: Dataset | None = None) -> dict[str, float]:
    """Trains, validates and draws; returns `accuracy` (0 to 1) and `loss` on the held-out images.

    Args:
        config: What to do.
        dataset: Labelled images of your own, `x` `(nc, imsize, imsize)` in [-1, 1] and `y` a class, instead of those
            that the configuration names; a fifth of each class is held out.
    """
    train_set, held_out = load(config, dataset)
    classes = class_names(train_set, held_out, at_least=2)
    loader = train_set.loader(config.batch_size, config.device, train=True, seed=config.seed)
    validation = held_out.loader(256, config.device)
    model = Model(
        config.imsize,
        config.patch_size,
        held_out[0]["x"].shape[0],
        len(classes),
        dim=config.dim,
        depth=config.depth,
        num_heads=config.num_heads,
        pool=config.pool,
        drop_path=config.drop_path,
        dropout=config.dropout,
    )
    model.init(seed=config.seed)
    if config.weights:
        model.init(config.weights, strict=False)
    model.to(config.device)
    optimiser = opt.adamw(
        model, lr=config.learning_rate, weight_decay=config.weight_decay, groups=groups(model, config.layer_decay)
    )
    name = "your images" if dataset is not None else config.data or config.dataset
    report = Report(validation, held_out, config.device, classes, name)
    trial = config.record(
        config.interval, dataset, val_data=validation, task=lambda model, step: report(model, step, trial.path)
    )
    config.keep(trial, "classes", classes)
    step = trial.resume(model, optimiser, loader) if config.resume else 0
    trainer = Trainer(
        Classify(label_smoothing=config.label_smoothing),
        loader,
        precision=config.precision,
        compile=config.compile,
        ema=config.ema,
    )
    plan = schedule.cosine(config.steps, warmup=config.warmup)
    trainer.train(
        model, optimiser, trial.hook(), step=step, steplimit=config.steps, timelimit=config.timelimit, schedule=plan
    )
    if not report.numbers:  # there was nothing left to train: measure what was saved
        load_averaged(model, trial)
        report(model, config.steps, trial.path)
    report.accuracy.write(trial.path / "accuracy.json")
    print(f"{name}: {report.numbers['accuracy']:.2%} of {len(held_out)} held-out images")
    print(f"recorded in {os.path.relpath(trial.path)}: metrics.jsonl, snapshots, confusion.png, attention.png")
    return report.numbers


class Report:
    """The trial's task: measures the (averaged) model on all held-out images, and draws it into the trial's folder."""

    def __init__(self, validation: DataLoader, held_out: Dataset, device: str, classes: list[str], name: str) -> None:
        self.accuracy = accuracy_task(validation, reference=f"{name}, {len(held_out)} held-out images")
        self.validation = validation
        self.classes = classes
        self.shown = held_out.sample(min(16, len(held_out)), device)
        self.numbers: dict[str, float] = {}

    def __call__(self, model: Model, step: int, folder: Path) -> dict[str, float]:
        """Returns `accuracy`, after writing `confusion.png` and `attention.png`."""
        self.numbers = self.accuracy(model, step)
        title = f"step {step}: {self.numbers['accuracy']:.2%} right"
        labels, answers = [], []
        with torch.no_grad():
            for batch in self.validation:
                labels.append(batch["y"].cpu().long())
                answers.append(model(batch["x"]).argmax(1).cpu())
            said = [self.classes[answer] for answer in model(self.shown["x"]).argmax(1)]
        counts = confusion_matrix(torch.cat(labels).numpy(), torch.cat(answers).numpy(), model.n_classes)
        save_confusion(folder / "confusion.png", counts, title)
        truth = [self.classes[label] for label in self.shown["y"]]
        captions = [a if a == t else f"{a} not {t}" for a, t in zip(said, truth, strict=True)]
        maps = attention_rollout(model, self.shown["x"])
        save_attention(folder / "attention.png", self.shown["x"], maps, captions, title=f"attention, {title}")
        return self.numbers


def groups(model: Model, layer_decay: float) -> opt.Groups:
    """Returns the rule of parameter groups: norms, biases and embeddings undecayed, and slower towards the input."""
    if layer_decay == 1:
        return opt.no_decay(skip=lambda name, parameter: name.startswith(("positions", "cls")))
    return opt.layerwise_decay(layer_decay, model.layer_of)


def reproduce(*, seed: int = 0, minutes: float = 10) -> dict[str, float]:
    """Trains the `laptop` preset on the digits for a few minutes; `accuracy` is to reach 0.97."""
    return run(replace(PRESETS["laptop"], seed=seed, minutes=minutes, trial="reproduce/vit"))


def main() -> None:
    """Runs the example with a typed command line."""
    run(read_config(PRESETS, DESCRIPTIONS, __doc__))
