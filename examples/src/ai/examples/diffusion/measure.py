"""How good samples are: 8 gaussians against their centres, digits in the eyes of a classifier of their own."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ai.data import Dataset
from ai.examples.metrics import Task, frechet_task
from ai.examples.metrics.digits import digits_classifier, digits_features

Sampler = Callable[[nn.Module, int, Tensor | None], Tensor]


def gaussians_task(sample: Sampler, *, n: int = 20_000, std: float = 0.05) -> Task:
    """Returns a measurement of samples of the 8 gaussians on the unit circle.

    Its numbers: `far`, the share of samples farther than 4 standard deviations from every centre (0.034 % for the true
    density), `smallest_share` of a gaussian among the others (0.125), and `spread`, the standard deviation within a
    gaussian over the true one (1).

    Args:
        sample: `(model, n, labels) -> samples`.
        n: Number of samples.
        std: Of each gaussian.
    """

    def measure(model: nn.Module) -> dict[str, float]:
        return measure_gaussians(sample(model, n, None).cpu(), std)

    return Task(measure, {"metric": "distance from the centres of 8 gaussians", "n": n, "std": std})


def measure_gaussians(x: Tensor, std: float) -> dict[str, float]:
    """Returns the numbers of `gaussians_task` for `(n, 2)` samples.

    Example:
        >>> angle = torch.arange(8) * math.pi / 4
        >>> centres = torch.stack([angle.cos(), angle.sin()], 1)
        >>> numbers = measure_gaussians(torch.cat([centres, torch.zeros(2, 2)]), 0.05)
        >>> round(numbers["far"], 3), round(numbers["smallest_share"], 3), round(numbers["spread"], 3)
        (0.2, 0.1, 0.0)
    """
    angle = torch.arange(8, device=x.device) * math.pi / 4
    centres = torch.stack([angle.cos(), angle.sin()], 1)
    distance, nearest = torch.cdist(x.double(), centres.double()).min(1)
    near = distance <= 4 * std
    shares = torch.bincount(nearest[near], minlength=8) / len(x)
    spread = (distance[near].square().mean() / 2).sqrt() / std
    return {
        "far": (~near).double().mean().item(),
        "smallest_share": shares.min().item(),
        "spread": spread.item(),
    }


def digits_task(dataset: Dataset, imsize: int, sample: Sampler, *, conditional: bool, n: int = 1000) -> Task:
    """Returns a measurement of digits by a classifier that was trained apart from the model.

    Its numbers: Fréchet and kernel distances to all real digits in the classifier's features; `recognised`, the share
    of samples that it takes for the class that was asked for; and the smallest share of a class.

    Args:
        dataset: The real digits.
        imsize: Their size.
        sample: `(model, n, labels) -> images`.
        conditional: Whether the model is told the class; then each is asked for equally often.
        n: Number of samples.
    """
    judge = digits_classifier(imsize)
    real = dataset.sample(len(dataset))["x"]
    asked = torch.arange(n, device="cpu") % 10

    def draw(model: nn.Module, n: int) -> Tensor:
        return sample(model, n, asked[:n] if conditional else None).cpu().clamp(-1, 1)

    drawn: list[Tensor] = []  # one set of samples serves both measurements

    def draw_once(model: nn.Module, n: int) -> Tensor:
        drawn[:] = [draw(model, n)]
        return drawn[0]

    distance = frechet_task(
        digits_features(imsize), real, draw_once, n=n, reference=f"digits, all {len(real)} images", batch_size=n
    )

    def measure(model: nn.Module) -> dict[str, float]:
        numbers = distance.measure(model)
        seen = judge(drawn[0]).argmax(1)
        if conditional:
            numbers["recognised"] = (seen == asked).double().mean().item()
        numbers["smallest_class_share"] = (torch.bincount(seen, minlength=10) / n).min().item()
        return numbers

    return Task(measure, distance.protocol)
