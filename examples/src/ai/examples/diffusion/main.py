"""Trains a diffusion model on points or images, records it, samples it, and animates the sampling.

Command: `python -m ai.examples.diffusion [tiny | laptop | digits | cifar] [--option value …]`; `--help` lists options.
"""

import os
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

import ai.model as m
from ai.data import Dataset, digits_dataset, toy
from ai.examples.cli import read_config
from ai.examples.diffusion.config import DESCRIPTIONS, N_CLASSES, POINTS, PRESETS, Config, build
from ai.examples.diffusion.figures import draw_points
from ai.examples.diffusion.measure import digits_task, gaussians_task
from ai.examples.figures import grid, save_animation
from ai.examples.metrics import Task, yardstick
from ai.examples.saved import load_averaged
from ai.lab import Trial
from ai.lab.config import from_plain
from ai.train import Diffusion, Trainer, opt, schedule


def run(config: Config) -> dict[str, float]:
    """Trains, records and draws; returns what was measured of the model with averaged weights."""
    torch.manual_seed(config.seed)  # noise within the layers and the like; the rest is seeded by itself
    dataset = load(config)
    loader = dataset.loader(config.batch_size, config.device, train=True, seed=config.seed)
    first = dataset.sample(min(len(dataset), 1000))["x"]
    model = build(config, first[0].shape, sigma_data=first.std().item())
    model.init(seed=config.seed).to(config.device)
    optimiser = opt.adam(model, lr=config.learning_rate)
    task = measurement(config, dataset)
    trial = Trial(
        config.trial,
        clean=not config.resume,
        config=config,
        sampler=lambda model, step: picture(drawn(model, config), config)[None].transpose(0, 3, 1, 2),
        save_snapshots=True,
        log_interval=100,
        sample_interval=config.save_interval,
        save_interval=config.save_interval,
    )
    step = trial.resume(model, optimiser, loader) if config.resume else 0
    trainer = Trainer(
        Diffusion(conditional=config.conditional),
        loader,
        ema=config.ema,
        precision=None if config.precision == "fp32" else config.precision,
    )
    then = schedule.cosine(config.steps) if config.decay else schedule.constant()
    plan = schedule.warm_up(config.warmup, then)
    limit = config.minutes * 60 or None
    trainer.train(model, optimiser, trial.hook(), step=step, steplimit=config.steps, timelimit=limit, schedule=plan)

    model = averaged(trial.path, config.device)
    states = drawn(model, config, frames=True)
    widths = states.flatten(1).std(1)  # early states are mostly noise: shown as wide as the data, or they would not fit
    frames = [
        picture(state * min(1.0, widths[-1] / width), config) for state, width in zip(states, widths, strict=True)
    ]
    save_animation(trial.path / "sampling.gif", [*frames, *[frames[-1]] * 20], fps=12)
    Image.fromarray(frames[-1]).save(trial.path / "samples.png")
    numbers = {} if task is None else task(model, config.steps) | yardstick(task)
    print(f"recorded in {os.path.relpath(trial.path)}: metrics.jsonl, snapshots, samples, samples.png, sampling.gif")
    for name, value in numbers.items():
        print(f"  {name} {value:.4g}")
    return numbers


def load(config: Config) -> Dataset:
    """Returns what is learned: points `(2,)`, or images in [-1, 1]."""
    if config.dataset in POINTS:
        makers = {
            "moons": toy.moons_dataset,
            "gaussians": toy.gaussians_dataset,
            "checkerboard": toy.checkerboard_dataset,
        }
        return makers[config.dataset](100_000, seed=config.seed)
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
    n = n or (2000 if config.dataset in POINTS else 80)
    if labels is None and config.conditional:
        labels = torch.arange(n) % N_CLASSES[config.dataset]
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


def picture(data: Tensor, config: Config) -> NDArray[np.uint8]:
    """Returns samples as one `(height, width, 3)` picture."""
    if config.dataset in POINTS:
        return draw_points(data, limit=1.5)
    return grid(data, columns=10, scale=max(1, 48 // data.shape[-1]))


def measurement(config: Config, dataset: Dataset) -> Task | None:
    """Returns what is measured of a model, if anything is."""

    def sample(model: nn.Module, n: int, labels: Tensor | None) -> Tensor:
        return drawn(model, config, n=n, labels=labels)

    if config.measure and config.dataset == "gaussians":
        return gaussians_task(sample)
    if config.measure and config.dataset == "digits":
        return digits_task(dataset, config.imsize, sample, conditional=config.conditional)
    return None


def averaged(path: str | os.PathLike[str], device: str = "cpu") -> m.DiffusionModel:
    """Returns the model of a trial's last snapshot with averaged weights."""
    trial = Trial(path)
    config = from_plain(Config, trial.config)
    first = load(config).sample(1000)["x"]
    model = build(config, first[0].shape, sigma_data=first.std().item())
    load_averaged(model, trial)
    return model.to(device)


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
