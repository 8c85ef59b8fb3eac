"""Images from a trained generator: samples, a walk between styles, a table of mixed styles."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ai.examples import figures
from ai.examples.stylegan2.model import Generator


@torch.no_grad()
def generate(
    generator: Generator, seeds: Sequence[int], *, truncation: float = 1.0, label: int | None = None
) -> Tensor:
    """Returns `(len(seeds), channels, height, width)` images in [-1, 1]; a seed gives the same image in any company.

    Args:
        generator: In evaluation mode its noise is fixed.
        seeds: One for each image.
        truncation: 1 takes styles as they come, 0 their mean.
        label: Class of all images, for a conditional generator.
    """
    return _in_batches(generator, styles(generator, seeds, truncation=truncation, label=label))


@torch.no_grad()
def interpolate(
    generator: Generator, seeds: Sequence[int], *, n_frames: int = 24, truncation: float = 1.0, label: int | None = None
) -> Tensor:
    """Returns the frames of a closed walk through the styles of `seeds`, `n_frames` from each to the next.

    The walk is straight in the space of styles, which the path-length regulariser keeps even.
    """
    if len(seeds) < 2:
        raise ValueError(f"seeds must name at least 2 images to walk between, got {len(seeds)}")
    w = styles(generator, seeds, truncation=truncation, label=label)
    return _in_batches(generator, figures.interpolate(w, n_frames))


@torch.no_grad()
def style_mix(
    generator: Generator,
    rows: Sequence[int],
    columns: Sequence[int],
    *,
    layers: range | None = None,
    truncation: float = 1.0,
    label: int | None = None,
) -> Tensor:
    """Returns a table of `(len(rows) + 1) * (len(columns) + 1)` images, row by row.

    The first row and column show the images of the seeds, the corner is blank. The image at a crossing takes the styles
    of `layers` from its column and all others from its row.

    Args:
        generator: The network.
        rows: Seeds that give the coarse styles.
        columns: Seeds that give the styles of `layers`.
        layers: Which style inputs come from the column, 0 the coarsest; the finer half when None.
        truncation: As in `generate`.
        label: As in `generate`.
    """
    n = generator.n_styles
    layers = range(n // 2, n) if layers is None else layers
    if not len(layers) or layers[0] < 0 or layers[-1] >= n:
        raise ValueError(f"layers must lie within the {n} style inputs, 0 to {n - 1}, got {layers}")
    w_rows = styles(generator, rows, truncation=truncation, label=label)
    w_columns = styles(generator, columns, truncation=truncation, label=label)
    mixed = w_rows[:, None].repeat(1, len(columns), 1, 1)
    mixed[:, :, list(layers)] = w_columns[None, :, list(layers)]
    made = _in_batches(generator, torch.cat([w_columns, w_rows, mixed.flatten(0, 1)]))
    top, left, inside = made.tensor_split([len(columns), len(columns) + len(rows)])
    table = [torch.ones_like(top[:1]), top]
    for i in range(len(rows)):
        table += [left[i : i + 1], inside[i * len(columns) : (i + 1) * len(columns)]]
    return torch.cat(table)


@torch.no_grad()
def styles(generator: Generator, seeds: Sequence[int], *, truncation: float = 1.0, label: int | None = None) -> Tensor:
    """Returns `(len(seeds), layers, w_dim)`, the truncated styles of one latent for each seed."""
    device = generator.mapping.w_avg.device
    if label is None and generator.n_classes:
        raise ValueError(f"label must be given: the generator knows {generator.n_classes} classes")
    if label is not None and not 0 <= label < generator.n_classes:
        known = f"lie in [0, {generator.n_classes})" if generator.n_classes else "be left out: the generator knows none"
        raise ValueError(f"label must {known}, got {label}")
    draws = [torch.Generator().manual_seed(seed) for seed in seeds]
    z = torch.stack([torch.randn(generator.z_dim, generator=each, device="cpu") for each in draws])
    labels = None if label is None else torch.full((len(z),), label, device=device)
    return generator.styles(z.to(device), labels, truncation=truncation)


def _in_batches(generator: Generator, w: Tensor, size: int = 64) -> Tensor:
    training = generator.training
    generator.eval()
    try:
        return torch.cat([generator.synthesis(part) for part in torch.split(w, size)])
    finally:
        generator.train(training)
