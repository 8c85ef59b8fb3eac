"""Distances between generated and real images, in the features of any given network."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ai.examples.metrics.frechet import Statistics, frechet_distance, split_distance
from ai.examples.metrics.kernel import kernel_distance
from ai.examples.metrics.task import Protocol, Task


@dataclass(frozen=True)
class Features:
    """A network that images are compared by.

    Args:
        network: Takes `(batch, channels, height, width)` float images in [-1, 1], returns `(batch, dim)` features.
        name: Which network, with what weights: part of every number's protocol.
        resize: What it does to the size of images.
    """

    network: Callable[[Tensor], Tensor]
    name: str
    resize: str = "none"


def frechet_task(
    features: Features,
    real: Tensor | Iterable[Tensor | Mapping[str, Tensor]],
    sample: Callable[[nn.Module, int], Tensor],
    *,
    n: int = 2000,
    reference: str,
    value_range: tuple[float, float] = (-1.0, 1.0),
    batch_size: int = 250,
    n_subsets: int = 20,
    name: str = "frechet",
) -> Task:
    """Returns a trial's task that compares `n` samples of a generator with real images.

    Its numbers: `NAME`, the Fréchet distance; `NAME_kernel` and `NAME_kernel_std`, the kernel distance. Its protocol
    holds what they depend on, and `real_vs_real`: the Fréchet distance between random halves of the real images.

    Args:
        features: What the images are compared by.
        real: Real images `(n_real, channels, height, width)`, or batches of them (tensors, or dicts with a key `x`).
        sample: `sample(model, n) -> images`; should draw from its own seeded generator, so that two measurements of
            one model agree.
        n: Number of samples.
        reference: Which images the real ones are, for example `digits, train split, 1,437 images`.
        value_range: The range of both real and generated images. Samples are clamped to it, as a saved picture is.
        batch_size: Images at a time; `sample` is asked for at most as many.
        n_subsets: Draws of 1,000 that the kernel distance averages.
        name: Prefix of the numbers.

    Raises:
        ValueError: The real images leave `value_range` or fill less than half of it; later, when measuring: more than
            a tenth of the samples' values lie outside, or the sampler returns another number of images.
    """
    if n < 2 or batch_size < 1:
        raise ValueError(f"n must be at least 2 and batch_size at least 1, got {n} and {batch_size}")
    if not isinstance(real, Tensor):
        real = torch.cat([(batch["x"] if isinstance(batch, Mapping) else batch).cpu() for batch in real])
    images = real
    _check_reference(images, value_range)
    real_features = _embed(features, images, value_range, batch_size)
    real_statistics = Statistics.of(real_features)

    def measure(model: nn.Module) -> dict[str, float]:
        parts = []
        for start in range(0, n, batch_size):
            wanted = min(batch_size, n - start)
            drawn = sample(model, wanted)
            if len(drawn) != wanted:
                raise ValueError(f"sample must return the {wanted} images asked for, it returned {len(drawn)}")
            _check_samples(drawn, value_range)
            parts.append(_embed(features, drawn, value_range, batch_size))
        drawn_features = torch.cat(parts)
        kernel, deviation = kernel_distance(drawn_features, real_features, n_subsets=n_subsets)
        return {
            name: frechet_distance(Statistics.of(drawn_features), real_statistics),
            f"{name}_kernel": kernel,
            f"{name}_kernel_std": deviation,
        }

    protocol: Protocol = {
        "metric": "Fréchet and kernel distance",
        "features": features.name,
        "resize": features.resize,
        "range": list(value_range),
        "n": n,
        "reference": reference,
        "n_reference": len(images),
        "image_shape": str(tuple(images.shape[1:])),
        "kernel_subsets": n_subsets,
        "real_vs_real": split_distance(real_features),
    }
    return Task(measure, protocol)


@torch.no_grad()
def _embed(features: Features, images: Tensor, value_range: tuple[float, float], batch_size: int) -> Tensor:
    low, high = value_range
    parts = []
    for start in range(0, len(images), batch_size):
        part = images[start : start + batch_size].float().clamp(low, high)
        parts.append(features.network((part - low) * (2 / (high - low)) - 1).flatten(1).cpu())
    return torch.cat(parts)


def _check_reference(images: Tensor, value_range: tuple[float, float]) -> None:
    low, high = value_range
    least, most = images.min().item(), images.max().item()
    slack = 1e-3 * (high - low)
    if least < low - slack or most > high + slack or most - least < (high - low) / 2:
        raise ValueError(f"real images must fill value_range [{low:g}, {high:g}], theirs is [{least:g}, {most:g}]")


def _check_samples(images: Tensor, value_range: tuple[float, float]) -> None:
    low, high = value_range
    outside = ((images < low) | (images > high)).float().mean().item()
    if outside > 0.1 or not images.isfinite().all():
        raise ValueError(
            f"samples must lie in value_range [{low:g}, {high:g}], theirs is [{images.min():g}, {images.max():g}] "
            f"with {outside:.0%} outside"
        )
