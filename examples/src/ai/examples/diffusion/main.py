"""Trains a diffusion model on points or images, records it, samples it, and animates the sampling.

Command: `python -m ai.examples.diffusion [tiny | laptop | digits | cifar] [--option value …]`; `--help` lists options.
"""

import os
from dataclasses import replace
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

import ai.model as m
from ai.data import Dataset, digits_dataset, toy
from ai.data.batch.device import checked_device
from ai.examples.cli import read_config
from ai.examples.diffusion.config import DESCRIPTIONS, PRESETS, Config, build
from ai.examples.diffusion.figures import draw_points
from ai.examples.diffusion.measure import digits_task, gaussians_task
from ai.examples.diffusion.model import MLP, UNet
from ai.examples.figures import grid, save_animation
from ai.examples.metrics import Task, yardstick
from ai.examples.own_data import class_names, own_images
from ai.examples.saved import averaged_model
from ai.train import Diffusion, Trainer, opt, schedule


def run(config: Config, dataset: Dataset | None = None) -> dict[str, float]:
    """Trains, records and draws; returns what was measured of the model with averaged weights.

    Args:
        config: What to do.
        dataset: Images of your own, `x` `(1 or 3, imsize, imsize)` in [-1, 1], or points, `x` `(2,)`, instead of what
            the configuration names; with classes `y` for a conditional model. They are drawn from, not measured.
    """
    torch.manual_seed(config.seed)  # noise within the layers and the like; the rest is seeded by itself
    task = None if config.data or dataset is not None else measurement(config)
    real = load(config, dataset)
    classes = class_names(real) if config.conditional else []
    loader = real.loader(config.batch_size, config.device, train=True, seed=config.seed)
    first = real.sample(min(len(real), 1000))["x"]
    model = build(config, first[0].shape, len(classes), sigma_data=first.std().item())
    model.init(seed=config.seed).to(config.device)
    optimiser = opt.adam(model, lr=config.learning_rate)
    trial = config.record(
        config.save_interval,
        dataset,
        sampler=lambda model, step: picture(drawn(model, config))[None].transpose(0, 3, 1, 2),
        log_interval=100,
    )
    config.keep(trial, "classes", classes)
    step = trial.resume(model, optimiser, loader) if config.resume else 0
    trainer = Trainer(
        Diffusion(conditional=config.conditional),
        loader,
        ema=config.ema,
        precision=None if config.precision == "fp32" else config.precision,
    )
    then = schedule.cosine(config.steps) if config.decay else schedule.constant()
    plan = schedule.warm_up(config.warmup, then)
    trainer.train(
        model, optimiser, trial.hook(), step=step, steplimit=config.steps, timelimit=config.timelimit, schedule=plan
    )

    model = averaged(trial.path, config.device)
    states = drawn(model, config, frames=True)
    widths = states.flatten(1).std(1)  # early states are mostly noise: shown as wide as the data, or they would not fit
    frames = [picture(state * min(1.0, widths[-1] / width)) for state, width in zip(states, widths, strict=True)]
    save_animation(trial.path / "sampling.gif", [*frames, *[frames[-1]] * 20], fps=12)
    Image.fromarray(frames[-1]).save(trial.path / "samples.png")
    numbers = {} if task is None else task(model, config.steps) | yardstick(task)
    print(f"recorded in {os.path.relpath(trial.path)}: metrics.jsonl, snapshots, samples, samples.png, sampling.gif")
    for name, value in numbers.items():
        print(f"  {name} {value:.4g}")
    return numbers


def load(config: Config, dataset: Dataset | None = None) -> Dataset:
    """Returns what is learned: points `(2,)`, or images in [-1, 1]."""
    own = own_images(config.data, dataset, config.imsize, labelled=config.conditional, points=True)
    if own is not None:
        return own
    points = {
        "moons": toy.moons_dataset,
        "gaussians": toy.gaussians_dataset,
        "checkerboard": toy.checkerboard_dataset,
    }
    if config.dataset in points:
        return points[config.dataset](100_000, seed=config.seed)
    if config.dataset == "digits":
        return digits_dataset(size=config.imsize)
    from ai.data import cifar_dataset, mnist_dataset

    dataset = mnist_dataset() if config.dataset == "mnist" else cifar_dataset()
    return dataset.split()[0]


def drawn(
    model: nn.Module, config: Config, *, n: int | None = None, labels: Tensor | None = None, frames: bool = False
) -> Tensor:
    """Returns `n` samples of a fixed seed, of all classes in turn where `labels` are not given.

    With `frames`, the steps on the way to them come first: `(steps, n, …)`.
    """
    assert isinstance(model, m.DiffusionModel)
    n = n or (2000 if len(model.shape) == 1 else 80)
    n_classes = cast(MLP | UNet, model.net).condition.n_classes
    if labels is None and n_classes:
        labels = torch.arange(n, device="cpu") % n_classes
    if labels is not None:
        labels = labels.to(config.device)
    return model.sample(
        n,
        steps=config.sample_steps,
        seed=0,
        label=labels,
        guidance=config.guidance,
        sampler=config.sampler,
        frames=frames,
    )


def picture(data: Tensor) -> NDArray[np.uint8]:
    """Returns samples, points or images, as one `(height, width, 3)` picture."""
    if data.ndim == 2:
        return draw_points(data, limit=1.5)
    return grid(data, columns=10, scale=max(1, 48 // data.shape[-1]))


def measurement(config: Config) -> Task | None:
    """Returns what is measured of a model, if anything is."""

    def sample(model: nn.Module, n: int, labels: Tensor | None) -> Tensor:
        return drawn(model, config, n=n, labels=labels)

    if config.measure and config.dataset == "gaussians":
        return gaussians_task(sample)
    if config.measure and config.dataset == "digits":
        return digits_task(digits_dataset(config.imsize), config.imsize, sample, conditional=config.conditional)
    return None


def averaged(path: str | os.PathLike[str], device: str = "cpu") -> m.DiffusionModel:
    """Returns the model of a trial's last snapshot with averaged weights."""
    checked_device(device)
    return cast(m.DiffusionModel, averaged_model(path)).to(device)


def reproduce_points(*, seed: int = 0, minutes: float = 0.0) -> dict[str, float]:
    """Trains the MLP on 8 gaussians, and counts samples that belong to none of them.

    Args:
        seed: Of everything.
        minutes: Training stops then at the latest; 0 for no limit.
    """
    return run(replace(PRESETS["laptop"], trial="reproduce/diffusion", seed=seed, minutes=minutes))


def reproduce_digits(*, seed: int = 0, minutes: float = 0.0) -> dict[str, float]:
    """Trains the UNet on digits, class by class, and has a classifier recognise its samples.

    Args:
        seed: Of everything.
        minutes: Training stops then at the latest; 0 for no limit.
    """
    return run(replace(PRESETS["digits"], trial="reproduce/diffusion-digits", seed=seed, minutes=minutes))


def main() -> None:
    """Runs the example with a typed command line."""
    run(read_config(PRESETS, DESCRIPTIONS, __doc__))
