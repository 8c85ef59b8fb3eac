"""Trains an image autoencoder, and draws what it keeps of an image and what lies between two.

Command: `ai-examples autoencoder`, or `python -m ai.examples.autoencoder --help` for presets and options.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ai.data import DataLoader, Dataset, digits_dataset, mnist_dataset
from ai.examples.autoencoder.linear import pca_error
from ai.examples.autoencoder.losses import LossName, make_loss
from ai.examples.autoencoder.model import ImgAutoencoder
from ai.examples.cli import read_config
from ai.examples.figures import grid, interpolate, save_animation, save_grid
from ai.examples.own_data import own_images
from ai.examples.run_config import RunConfig
from ai.examples.saved import load_averaged
from ai.train import Reconstruct, Trainer, loss, opt, schedule


@dataclass(frozen=True, kw_only=True)
class Config(RunConfig):
    """What a run needs; every field is an option of the command line."""

    dataset: Literal["digits", "mnist"] = "digits"
    """Scikit-learn's digits, of any size, or MNIST, framed to 32 pixels."""
    trial: str = "autoencoder"
    """The trial's folder, relative to $AI_LAB_PATH (else ./ai-lab) unless absolute."""
    imsize: int = 32
    """Side of the images."""
    bottleneck: int = 4
    """Side of the code; a power of two below `imsize`."""
    nc_min: int = 16
    """Channels at full size."""
    nc_max: int = 64
    """Most channels at any size."""
    nc_code: int | None = 2
    """Channels of the code; None leaves it as wide as the encoder ends."""
    loss: LossName = "pixel"
    """What a reconstruction is compared with its original by."""
    steps: int = 1500
    """Number of updates."""
    batch_size: int = 32
    """Images in a batch."""
    learning_rate: float = 3e-3
    """Peak learning rate; warmed up, then cosine to zero."""
    ema: float | None = 0.99
    """Decay of the moving average of the weights that is validated and saved beside them."""
    precision: Literal["bf16"] | None = None
    """Of the activations while training; None is float32."""
    compile: bool = False
    """Compile the model."""
    interval: int = 250
    """Steps between validations, pictures and snapshots."""


PRESETS = {
    "tiny": Config(imsize=8, nc_min=4, nc_max=8, steps=4, batch_size=8, interval=2),
    "laptop": Config(),
    "photos": Config(
        data="photos",
        imsize=256,
        bottleneck=8,
        nc_min=32,
        nc_max=512,
        nc_code=16,
        loss="pixel+perceptual",
        steps=100_000,
        batch_size=32,
        learning_rate=1e-3,
        ema=0.999,
        precision="bf16",
        compile=True,
        interval=2000,
        device="cuda",
    ),
}
DESCRIPTIONS = {
    "tiny": "seconds; for tests",
    "laptop": "scikit-learn's digits at 32 pixels in 32 numbers, minutes on a CPU",
    "photos": "a folder of images at 256 pixels in a code a 192nd of their size, on a GPU; give --data FOLDER",
}


def load(config: Config, dataset: Dataset | None = None) -> tuple[Dataset, Dataset]:
    """Returns images to train on and held-out ones; batches hold `x` in [-1, 1]."""
    own = own_images(config.data, dataset, config.imsize)
    if own is not None:
        if len(own) < 30:
            what = f"data ({config.data})" if config.data else "dataset"
            raise ValueError(f"{what} must hold at least 30 images, of which two are held out, got {len(own)}")
        train_set, held_out = own.split(0.95, 0.05)
        return train_set, held_out
    train_set, held_out = (digits_dataset(config.imsize) if config.dataset == "digits" else mnist_dataset()).split()
    return train_set, held_out


def build(config: Config, nc_img: int) -> ImgAutoencoder:
    """Returns the model of a configuration, for images of `nc_img` channels."""
    return ImgAutoencoder(
        config.imsize, config.bottleneck, nc_img, config.nc_min, config.nc_max, nc_code=config.nc_code
    )


def run(config: Config, dataset: Dataset | None = None) -> dict[str, float]:
    """Trains, measures and draws; returns `mse`, `ssim` and `pca_mse` on the held-out images, and `code_size`.

    Args:
        config: What to do.
        dataset: Images of your own, `x` `(1 or 3, imsize, imsize)` in [-1, 1], instead of those that the configuration
            names; a twentieth is held out, and `pca_mse` is left out, since large ones have more pixels than
            components can be taken of.
    """
    train_set, held_out = load(config, dataset)
    loader = train_set.loader(config.batch_size, config.device, train=True, seed=config.seed)
    validation = held_out.loader(256, config.device)
    nc_img = next(iter(validation))["x"].shape[1]
    model = build(config, nc_img).init(seed=config.seed).to(config.device)
    optimiser = opt.adamw(model, lr=config.learning_rate)
    report = Report(validation, held_out.sample(min(24, len(held_out)), config.device)["x"])
    trial = config.record(
        config.interval,
        dataset,
        val_data=validation,
        sampler=lambda model, step: report.pairs(model),
        task=lambda model, step: report(model, trial.path),
    )
    step = trial.resume(model, optimiser, loader) if config.resume else 0
    env = Reconstruct(make_loss(config.loss, nc_img, config.imsize))
    trainer = Trainer(env, loader, precision=config.precision, compile=config.compile, ema=config.ema)
    plan = schedule.cosine(config.steps, warmup=config.steps // 20)
    trainer.train(
        model, optimiser, trial.hook(), step=step, steplimit=config.steps, timelimit=config.timelimit, schedule=plan
    )

    if not report.numbers:  # there was nothing left to train: measure what was saved
        load_averaged(model, trial)
        with torch.no_grad():
            report(model, trial.path)
    result = dict(report.numbers)
    if not config.data and dataset is None:
        train_images = torch.cat([batch["x"].cpu() for batch in train_set.loader(256)])
        held_out_images = torch.cat([batch["x"].cpu() for batch in validation])
        result["pca_mse"] = pca_error(train_images, held_out_images, int(result["code_size"]))
    print(
        f"{len(held_out)} held-out images, each in {int(result['code_size'])} numbers: "
        + ", ".join(f"{name} {value:.4f}" for name, value in result.items() if name != "code_size")
    )
    print(f"recorded in {os.path.relpath(trial.path)}: metrics.jsonl, snapshots, reconstructions.png, walk.gif")
    return result


class Report:
    """The trial's task: measures the (averaged) model on all held-out images, and draws it into the trial's folder."""

    def __init__(self, validation: DataLoader, shown: Tensor) -> None:
        self.validation = validation
        self.shown = shown
        self.numbers: dict[str, float] = {}

    def __call__(self, model: ImgAutoencoder, folder: Path) -> dict[str, float]:
        """Returns `mse`, `ssim` (from 11 pixels on) and `code_size`; draws `reconstructions.png` and `walk.gif`."""
        totals: dict[str, float] = {}
        n = 0
        for batch in self.validation:
            x = batch["x"]
            y = model(x)
            totals["mse"] = totals.get("mse", 0.0) + loss.mse(y, x).item() * len(x)
            if min(x.shape[-2:]) >= 11:
                totals["ssim"] = totals.get("ssim", 0.0) + loss.ssim(y, x).item() * len(x)
            n += len(x)
        codes = model.encode(self.shown)
        self.numbers = {name: total / n for name, total in totals.items()} | {"code_size": float(codes[0].numel())}
        scale = max(1, 96 // self.shown.shape[-1])
        save_grid(folder / "reconstructions.png", self.pairs(model), columns=12, scale=scale)
        path = interpolate(codes[:6], 12)
        frames = (grid(image[None], scale=scale) for image in model.decode(path).cpu())
        save_animation(folder / "walk.gif", frames, fps=12)
        return self.numbers

    def pairs(self, model: ImgAutoencoder) -> Tensor:
        """Returns rows of 12 originals, each above the row of their reconstructions."""
        rows = zip(torch.split(self.shown, 12), torch.split(model(self.shown), 12), strict=True)
        return torch.cat([image for pair in rows for image in pair])


def reproduce(*, seed: int = 0, minutes: float = 5) -> dict[str, float]:
    """Trains the `laptop` preset for a few minutes; `mse` is to reach 0.01, `pca_mse` is what a linear code reaches."""
    return run(replace(PRESETS["laptop"], seed=seed, minutes=minutes, trial="reproduce/autoencoder"))


def main() -> None:
    """Runs the example with a typed command line."""
    run(read_config(PRESETS, DESCRIPTIONS, __doc__))
