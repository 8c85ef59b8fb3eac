"""The commands that make pictures from a trained trial: `generate`, `interpolate` and `style-mix`."""

import os
from pathlib import Path
from typing import TypedDict, cast

import torch

from ai.data.batch.device import checked_device
from ai.examples.figures import grid, save_animation, save_grid
from ai.examples.saved import averaged_model
from ai.examples.stylegan2 import pictures
from ai.examples.stylegan2.model import Generator


class Options(TypedDict):
    """Options that all pictures have."""

    scale: int
    label: int | None


def generate(
    trial: str = "stylegan2",
    out: Path = Path("samples.png"),
    *,
    n: int = 64,
    first_seed: int = 0,
    truncation: float = 1.0,
    label: int | None = None,
    columns: int = 8,
    scale: int = 1,
) -> Path:
    """Writes a page of images.

    Args:
        trial: The trial's folder.
        out: The picture.
        n: Number of images, of the seeds from `first_seed` on.
        first_seed: The first.
        truncation: 1 takes styles as they come; towards 0 variety is traded for typicality.
        label: Class, for a conditional generator.
        columns: Images in a row.
        scale: Each pixel becomes a square of this many.
    """
    images = pictures.generate(averaged(trial), range(first_seed, first_seed + n), truncation=truncation, label=label)
    save_grid(out, images, columns=columns, scale=scale)
    return out


def interpolate(
    trial: str = "stylegan2",
    out: Path = Path("interpolation.gif"),
    *,
    n: int = 8,
    n_seeds: int = 4,
    n_frames: int = 16,
    first_seed: int = 0,
    truncation: float = 1.0,
    label: int | None = None,
    columns: int = 4,
    scale: int = 1,
) -> Path:
    """Writes an endless animation in which images turn into one another.

    Args:
        trial: The trial's folder.
        out: The animation, `.gif` or `.mp4`.
        n: Images side by side, each on a walk of its own.
        n_seeds: Stations of a walk.
        n_frames: Frames from one station to the next.
        first_seed: The first of the `n * n_seeds` seeds.
        truncation: As in `generate`.
        label: As in `generate`.
        columns: Images in a row.
        scale: Each pixel becomes a square of this many.
    """
    generator = averaged(trial)
    seeds = range(first_seed, first_seed + n * n_seeds)
    walks = [
        pictures.interpolate(generator, seeds[i::n], n_frames=n_frames, truncation=truncation, label=label)
        for i in range(n)
    ]
    save_animation(out, [grid(frame, columns=columns, scale=scale) for frame in torch.stack(walks, 1)])
    return out


def style_mix(
    trial: str = "stylegan2",
    out: Path = Path("style-mix.png"),
    *,
    n_rows: int = 6,
    n_columns: int = 8,
    first_layer: int | None = None,
    first_seed: int = 100,
    truncation: float = 1.0,
    label: int | None = None,
    scale: int = 1,
) -> Path:
    """Writes a table of images with the coarse styles of their row and the fine styles of their column.

    Args:
        trial: The trial's folder.
        out: The picture.
        n_rows: Images that give the coarse styles.
        n_columns: Images that give the fine ones.
        first_layer: Style inputs from this one on come from the column; half of them when None.
        first_seed: Of the rows; those of the columns follow.
        truncation: As in `generate`.
        label: As in `generate`.
        scale: Each pixel becomes a square of this many.
    """
    generator = averaged(trial)
    layers = None if first_layer is None else range(first_layer, generator.n_styles)
    seeds = range(first_seed, first_seed + n_rows + n_columns)
    table = pictures.style_mix(
        generator, seeds[:n_rows], seeds[n_rows:], layers=layers, truncation=truncation, label=label
    )
    save_grid(out, table, columns=n_columns + 1, scale=scale)
    return out


def averaged(path: str | os.PathLike[str], device: str = "cpu") -> Generator:
    """Returns the generator of a trial's last snapshot with averaged weights, its mean style measured for them."""
    checked_device(device)
    generator = cast(Generator, averaged_model(path, key="g"))
    generator.measure_w_avg()
    return generator.to(device)


def draw_all(trial: Path) -> None:
    """Writes into a trial's folder: samples, the same truncated, a walk, and a table of mixed styles."""
    generator = averaged(trial)
    how: Options = {"scale": max(1, 48 // generator.imsize), "label": 0 if generator.n_classes else None}
    for truncation in (1.0, 0.7):
        generate(str(trial), trial / f"samples-psi{truncation:g}.png", truncation=truncation, **how)
    interpolate(str(trial), trial / "interpolation.gif", **how)
    style_mix(str(trial), trial / "style-mix.png", **how)
