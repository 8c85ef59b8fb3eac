"""What a run of StyleGAN2 needs, the published set-ups, and the networks that they mean."""

from dataclasses import dataclass
from typing import Literal

from ai.data.batch.seeds import derive_seed
from ai.examples.run_config import RunConfig
from ai.examples.stylegan2.model import Discriminator, Generator


@dataclass(frozen=True, kw_only=True)
class Config(RunConfig):
    """What a run needs; every field is an option of the command line."""

    dataset: Literal["digits", "cifar"] = "digits"
    """Scikit-learn's digits, or CIFAR-10."""
    imsize: int = 16
    """Height and width, a power of 2."""
    conditional: bool = False
    """Whether both networks are told the class; your own images have the class of their folder."""
    trial: str = "stylegan2"
    """The trial's folder, relative to $AI_LAB_PATH (else ./ai-lab) unless absolute."""
    steps: int = 20_000
    """Number of updates of each network."""
    batch_size: int = 32
    """Real images in a batch, and generated ones."""
    nc_base: int = 512
    """A layer at size s has nc_base / s channels …"""
    nc_max: int = 32
    """… but this many at most."""
    z_dim: int = 64
    """Width of latents and styles."""
    n_mapping: int = 4
    """Layers of the mapping network."""
    architecture: Literal["resnet", "orig"] = "resnet"
    """Of the discriminator: with a shortcut at each size, or without."""
    group: int = 4
    """Images that the discriminator compares with each other."""
    learning_rate: float = 2e-3
    """Of both networks; Adam with betas 0 and 0.99."""
    r1_gamma: float = 0.1
    """Weight of R1, every 16 steps."""
    path_weight: float = 2.0
    """Weight of path-length regularisation, every 4 steps."""
    style_mixing: float = 0.9
    """Probability of mixing two styles."""
    ema_images: float = 5_000
    """Half-life of the generator's moving average, in images."""
    augment: bool = True
    """Turn, shift and scale what the discriminator sees a little: for sets of few images."""
    mirror: bool = False
    """Mirror half of the real images."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """What the networks compute in."""
    save_interval: int = 1000
    """Steps between snapshots, samples and measurements."""
    measure: bool = True
    """Measure the distance to the real images (digits only)."""


PRESETS = {
    "tiny": Config(
        imsize=8, nc_base=64, nc_max=8, z_dim=8, n_mapping=2, steps=4, batch_size=8, save_interval=4, measure=False
    ),
    "laptop": Config(),
    "cifar": Config(
        dataset="cifar", imsize=32, conditional=True, steps=1_500_000, batch_size=64, nc_base=32768, nc_max=512,
        z_dim=512, n_mapping=2, architecture="orig", group=32, learning_rate=2.5e-3, r1_gamma=0.01, path_weight=0.0,
        style_mixing=0.0,
        ema_images=500_000, augment=False, precision="bf16", save_interval=10_000, measure=False, device="cuda",
    ),
    "faces": Config(
        data="faces", imsize=256, steps=780_000, nc_base=16384, nc_max=512, z_dim=512, n_mapping=8, r1_gamma=0.4,
        learning_rate=2.5e-3, ema_images=20_000, augment=False, mirror=True, precision="bf16", save_interval=5_000,
        measure=False, device="cuda",
    ),
    "paper": Config(
        data="faces", imsize=1024, steps=780_000, nc_base=32768, nc_max=512, z_dim=512, n_mapping=8, r1_gamma=10.0,
        ema_images=10_000, augment=False, mirror=True, precision="bf16", save_interval=5_000, measure=False,
        device="cuda",
    ),
}  # fmt: skip
DESCRIPTIONS = {
    "tiny": "a test: seconds",
    "laptop": "digits of 16 pixels on one core: under an hour",
    "cifar": "the class-conditional CIFAR-10 set-up of StyleGAN2-ADA, without its adaptive augmentation",
    "faces": "a folder of images at 256 pixels, with half the published channels; give --data FOLDER",
    "paper": "configuration F of StyleGAN2: a folder of images at 1024 pixels, 25 million seen; give --data FOLDER",
}


def build(config: Config, nc_img: int, n_classes: int = 0) -> tuple[Generator, Discriminator]:
    """Returns both networks with fresh weights; they are told the class if there are `n_classes`."""
    size = {"nc_base": config.nc_base, "nc_max": config.nc_max, "n_classes": n_classes}
    generator = Generator(
        config.imsize, nc_img, z_dim=config.z_dim, w_dim=config.z_dim, n_mapping=config.n_mapping, **size
    )
    discriminator = Discriminator(config.imsize, nc_img, group=config.group, architecture=config.architecture, **size)
    return generator.init(seed=config.seed), discriminator.init(seed=derive_seed(config.seed, 1))
