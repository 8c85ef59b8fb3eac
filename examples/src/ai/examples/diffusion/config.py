"""What a diffusion run needs, the set-ups that are offered, and the models that they mean."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

import ai.model as m
from ai.examples.diffusion.model import MLP, UNet
from ai.examples.run_config import RunConfig


@dataclass(frozen=True, kw_only=True)
class Config(RunConfig):
    """What a run needs; every field is an option of the command line."""

    dataset: Literal["moons", "gaussians", "checkerboard", "digits", "mnist", "cifar"] = "gaussians"
    """Points in the plane, or images."""
    imsize: int = 16
    """Height and width of digits, and of your own images."""
    conditional: bool = False
    """Whether the network is told the class; your own images have the class of their folder."""
    label_dropout: float = 0.1
    """How often it is not told after all, so that it can be guided."""
    guidance: float = 1.0
    """Strength of the class in sampling: 0 ignores it, 1 is the plain conditional model."""
    trial: str = "diffusion"
    """The trial's folder, relative to $AI_LAB_PATH (else ./ai-lab) unless absolute."""
    steps: int = 12_000
    """Number of updates."""
    batch_size: int = 256
    """Points or images in a batch."""
    dim: int = 96
    """Width of the MLP."""
    n_layers: int = 3
    """Residual layers of the MLP."""
    nc: int = 32
    """Base number of channels of the UNet."""
    nc_mult: tuple[int, ...] = (1, 2)
    """Channels of each level of the UNet over nc; each level but the first halves the image."""
    n_blocks: int = 2
    """Blocks a level."""
    attn_sizes: tuple[int, ...] = (8,)
    """Image sizes with self-attention."""
    dropout: float = 0.0
    """Probability, within the blocks of the UNet."""
    learning_rate: float = 2e-3
    """Peak learning rate of Adam."""
    warmup: int = 500
    """Steps in which it rises."""
    decay: bool = True
    """Whether it then falls to zero along a cosine."""
    ema: float = 0.999
    """Decay of the moving average that samples are drawn from."""
    precond: Literal["edm", "ddpm"] = "edm"
    """What the network predicts: scaled to unit variance as EDM does, or the noise, at one of DDPM's thousand steps."""
    sampler: Literal["heun", "euler", "ddim", "ddpm", "dpmpp_2m"] = "heun"
    """How samples are drawn."""
    sample_steps: int = 32
    """Steps of the sampler."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """What the network computes in."""
    save_interval: int = 2000
    """Steps between snapshots and samples."""
    measure: bool = True
    """Measure the result (gaussians and digits only)."""


PRESETS = {
    "tiny": Config(steps=4, batch_size=16, dim=8, n_layers=1, save_interval=4, sample_steps=4, measure=False),
    "laptop": Config(),
    "digits": Config(
        dataset="digits", conditional=True, steps=6_000, batch_size=32, n_blocks=1, learning_rate=1e-3, warmup=200,
        sample_steps=12, save_interval=1000,
    ),
    "cifar": Config(
        dataset="cifar", conditional=True, label_dropout=0.0, steps=400_000, batch_size=512, nc=128, nc_mult=(2, 2, 2),
        n_blocks=4, attn_sizes=(16,), dropout=0.13, learning_rate=1e-3, warmup=20_000, decay=False, ema=0.9993,
        sample_steps=18, precision="bf16", save_interval=5_000, measure=False, device="cuda",
    ),
}  # fmt: skip
DESCRIPTIONS = {
    "tiny": "a test: seconds",
    "laptop": "an MLP on 8 gaussians: 3 minutes on one core",
    "digits": "a UNet on digits of 16 pixels, told the class: half an hour on one core",
    "cifar": "the class-conditional CIFAR-10 set-up of EDM (DDPM++), without its augmentation: 200 million images",
}


def build(config: Config, shape: Sequence[int], n_classes: int, *, sigma_data: float) -> m.DiffusionModel:
    """Returns the model for data of `shape` and standard deviation `sigma_data`, its weights not yet drawn.

    Points have an MLP, images a UNet; both are told the class if there are `n_classes`.
    """
    net: nn.Module
    if len(shape) == 1:
        net = MLP(*shape, n_classes=n_classes, dim=config.dim, n_layers=config.n_layers)
    else:
        nc_img, imsize, _ = shape
        net = UNet(
            imsize,
            nc_img,
            n_classes=n_classes,
            nc=config.nc,
            nc_mult=config.nc_mult,
            n_blocks=config.n_blocks,
            attn_sizes=config.attn_sizes,
            dropout=config.dropout,
        )
    return m.DiffusionModel(
        net, shape, sigma_data=sigma_data, precond=config.precond, label_dropout=config.label_dropout
    )
