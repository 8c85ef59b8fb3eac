"""Samplers: each goes from pure noise to data over given noise levels, and yields its state after every step.

All are written for data plus noise, x = x₀ + σ·n, where dx/dσ = (x - D(x, σ)) / σ with D the denoiser. Methods stated
for √ᾱ·x₀ + √(1 - ᾱ)·n are the same with x divided by √ᾱ and σ² = (1 - ᾱ) / ᾱ.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor


@dataclass
class Step:
    """What a sampler's step may use."""

    denoise: Callable[[Tensor, float], Tensor]
    """D: `(x, sigma)` to the estimate of clean data."""
    fresh: Callable[[], Tensor]
    """Draws N(0, 1) of the shape of x."""
    eta: float = 0.0
    churn: float = 0.0
    restored: Callable[[Tensor, float], Tensor] | None = None
    """Puts what is known back into a state of a given noise level."""

    def done(self, x: Tensor, sigma: float) -> Tensor:
        """Returns the state after a step."""
        return x if self.restored is None else self.restored(x, sigma)


def euler(step: Step, x: Tensor, sigmas: Sequence[float]) -> Iterator[Tensor]:
    """Euler's method. Source: Karras et al., 2022, algorithm 1 without the correction."""
    for sigma, following in itertools.pairwise(sigmas):
        x, sigma = _churned(step, x, sigma, len(sigmas) - 1)
        slope = (x - step.denoise(x, sigma)) / sigma
        x = step.done(x + (following - sigma) * slope, following)
        yield x


def heun(step: Step, x: Tensor, sigmas: Sequence[float]) -> Iterator[Tensor]:
    """Heun's second-order method. Source: Karras et al., 2022, algorithms 1 and 2."""
    for sigma, following in itertools.pairwise(sigmas):
        x, sigma = _churned(step, x, sigma, len(sigmas) - 1)
        slope = (x - step.denoise(x, sigma)) / sigma
        guess = x + (following - sigma) * slope
        if following > 0:
            slope = (slope + (guess - step.denoise(guess, following)) / following) / 2
            guess = x + (following - sigma) * slope
        x = step.done(guess, following)
        yield x


def ddim(step: Step, x: Tensor, sigmas: Sequence[float]) -> Iterator[Tensor]:
    """DDIM, and with eta 1 DDPM. Source: Song, Meng and Ermon, 2021, equations 12 and 16."""
    for sigma, following in itertools.pairwise(sigmas):
        clean = step.denoise(x, sigma)
        up = step.eta * following * math.sqrt(1 - (following / sigma) ** 2)
        down = math.sqrt(following**2 - up**2)
        x = clean + (down / sigma) * (x - clean)
        if up > 0:
            x = x + up * step.fresh()
        x = step.done(x, following)
        yield x


def ddpm(step: Step, x: Tensor, sigmas: Sequence[float]) -> Iterator[Tensor]:
    """Ancestral sampling: DDIM with eta 1. Source: Ho, Jain and Abbeel, 2020, equations 6 and 7."""
    yield from ddim(replace(step, eta=1.0), x, sigmas)


def dpmpp_2m(step: Step, x: Tensor, sigmas: Sequence[float]) -> Iterator[Tensor]:
    """DPM-Solver++ of second order with two steps' memory. Source: Lu et al., 2022, DPM-Solver++, algorithm 2."""
    previous: Tensor | None = None
    previous_width = 0.0
    for sigma, following in itertools.pairwise(sigmas):
        clean = step.denoise(x, sigma)
        if following == 0:
            x = clean
        else:
            width = math.log(sigma / following)  # of the step in λ = -ln σ
            ahead = clean
            if previous is not None:
                ahead = clean + (width / (2 * previous_width)) * (clean - previous)
            x = (following / sigma) * x + (1 - following / sigma) * ahead
            previous, previous_width = clean, width
        x = step.done(x, following)
        yield x


def _churned(step: Step, x: Tensor, sigma: float, n_steps: int) -> tuple[Tensor, float]:
    """Adds noise before a step, raising its noise level by at most √2."""
    if step.churn == 0:
        return x, sigma
    raised = sigma * (1 + min(step.churn / n_steps, math.sqrt(2) - 1))
    return x + math.sqrt(raised**2 - sigma**2) * step.fresh(), raised


SAMPLERS: dict[str, Callable[[Step, Tensor, Sequence[float]], Iterator[Tensor]]] = {
    "heun": heun,
    "euler": euler,
    "ddim": ddim,
    "ddpm": ddpm,
    "dpmpp_2m": dpmpp_2m,
}
