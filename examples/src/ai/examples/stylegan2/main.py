"""Trains StyleGAN2, records it, and draws what it learned.

Commands, each with `--help`:

    python -m ai.examples.stylegan2 [tiny | laptop | cifar | faces | paper] [--option value …]
    python -m ai.examples.stylegan2 generate | interpolate | style-mix --trial PATH [--option value …]
"""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ai.data import Dataset, cifar_dataset, digits_dataset
from ai.examples.augment import affine
from ai.examples.cli import read_config
from ai.examples.metrics import Task, frechet_task, yardstick
from ai.examples.metrics.digits import digits_classifier, digits_features
from ai.examples.own_data import class_names, own_images
from ai.examples.stylegan2 import commands, pictures
from ai.examples.stylegan2.config import DESCRIPTIONS, PRESETS, Config, build
from ai.examples.stylegan2.loss import StyleGAN2Loss
from ai.examples.stylegan2.model import Generator
from ai.train import MultiTrainer, opt


def run(config: Config, dataset: Dataset | None = None) -> dict[str, float]:
    """Trains, records and draws; returns what was measured of the generator with averaged weights.

    Args:
        config: What to do.
        dataset: Images of your own, `x` `(1 or 3, imsize, imsize)` in [-1, 1], instead of those that the configuration
            names; with classes `y` for conditional networks. They are drawn from, not measured.
    """
    torch.manual_seed(config.seed)  # noise within the layers and the like; the rest is seeded by itself
    real = load(config, dataset)
    classes = class_names(real) if config.conditional else []
    loader = real.loader(config.batch_size, config.device, train=True, seed=config.seed)
    nc_img = real[0]["x"].shape[0]
    generator, discriminator = (network.to(config.device) for network in build(config, nc_img, len(classes)))
    models = {"d": discriminator, "g": generator}
    optimisers = {key: opt.adam(model, config.learning_rate, betas=(0.0, 0.99)) for key, model in models.items()}
    loss = StyleGAN2Loss(
        r1_gamma=config.r1_gamma,
        path_weight=config.path_weight,
        style_mixing=config.style_mixing,
        mirror=config.mirror,
        augment=_little_affine if config.augment else None,
        seed=config.seed,
    )
    measured = config.measure and config.dataset == "digits" and not config.data and dataset is None
    task = digits_task(real, config.imsize) if measured else None
    trial = config.record(
        config.save_interval,
        dataset,
        sampler=lambda models, step: samples(models["g"], 64),
        task=None if task is None else lambda models, step: task(models["g"], step),
        log_interval=100,
    )
    config.keep(trial, "classes", classes)
    step = trial.resume(models, optimisers, loader) if config.resume else 0
    trainer = MultiTrainer(
        loss,
        loader,
        ema=0.5 ** (config.batch_size / config.ema_images),
        precision=None if config.precision == "fp32" else config.precision,
    )
    trainer.train(models, optimisers, trial.hook(), step=step, steplimit=config.steps, timelimit=config.timelimit)

    commands.draw_all(trial.path)
    numbers = {}
    if task is not None:
        numbers = task(commands.averaged(trial.path, config.device), config.steps) | yardstick(task)
    print(f"recorded in {os.path.relpath(trial.path)}: metrics.jsonl, snapshots, samples, PNG and GIF pictures")
    for name, value in numbers.items():
        print(f"  {name} {value:.4g}")
    return numbers


def reproduce(*, seed: int = 0, minutes: float = 45.0, steps: int = 20_000) -> dict[str, float]:
    """Trains on digits of 16 pixels, and measures the distance to the real ones and the rarest digit's share.

    Args:
        seed: Of everything.
        minutes: Training stops then at the latest.
        steps: Updates of each network, at most.
    """
    config = replace(PRESETS["laptop"], trial="reproduce/stylegan2", seed=seed, minutes=minutes, steps=steps)
    return run(config)


def load(config: Config, dataset: Dataset | None = None) -> Dataset:
    """Returns the real images, `(channels, imsize, imsize)` in [-1, 1]."""
    own = own_images(config.data, dataset, config.imsize, labelled=config.conditional)
    if own is not None:
        return own
    if config.dataset == "digits":
        return digits_dataset(size=config.imsize)
    return cifar_dataset().split()[0]


def samples(generator: Generator, n: int) -> Tensor:
    """Returns `n` images of fixed seeds; class by class in turn, for a conditional generator."""
    if not generator.n_classes:
        return pictures.generate(generator, range(n))
    return torch.cat([pictures.generate(generator, [seed], label=seed % generator.n_classes) for seed in range(n)])


def digits_task(dataset: Dataset, imsize: int, n: int = 2000) -> Task:
    """Returns a measurement against all real digits by a classifier that was trained apart from the generator.

    Its numbers: Fréchet and kernel distances in the classifier's features, and the smallest share of a class among `n`
    images, as the classifier sees them.
    """
    features = digits_features(imsize)
    judge = digits_classifier(imsize)
    real = dataset.sample(len(dataset))["x"]

    def sample(model: nn.Module, n: int, start: int = 0) -> Tensor:
        assert isinstance(model, Generator)
        return pictures.generate(model, range(start, start + n)).clamp(-1, 1)

    distance = frechet_task(features, real, sample, n=n, reference=f"digits, all {len(real)} images", batch_size=n)

    def measure(model: nn.Module) -> dict[str, float]:
        classes = judge(sample(model, n)).argmax(1)
        shares = torch.bincount(classes, minlength=10) / n
        return distance.measure(model) | {"smallest_class_share": shares.min().item()}

    return Task(measure, distance.protocol)


def _little_affine(images: Tensor, generator: torch.Generator) -> Tensor:
    return affine(6, 0.06, 0.08)(images, generator)


def main() -> None:
    """Trains, or makes pictures from a trained trial, as the command line says."""
    import tyro

    makers: dict[str, Callable[..., Path]] = {
        "generate": commands.generate,
        "interpolate": commands.interpolate,
        "style-mix": commands.style_mix,
    }
    if len(sys.argv) > 1 and sys.argv[1] in makers:
        name = sys.argv.pop(1)
        path: Path = tyro.cli(makers[name], prog=f"{Path(sys.argv[0]).name} {name}")
        print(f"wrote {path}")
    else:
        run(read_config(PRESETS, DESCRIPTIONS, __doc__))
