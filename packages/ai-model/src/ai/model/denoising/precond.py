"""What a network is given of noisy data, and what its output means: preconditionings of a denoiser.

Data are x = x₀ + σ·n. A denoiser is D = c_skip·x + c_out·net(c_in·x, noise).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ai.model.noise_schedule import ddpm_time


@dataclass(frozen=True)
class Scales:
    """The factors at given noise levels, and what the network is told of them."""

    skip: Tensor
    out: Tensor
    into: Tensor
    noise: Tensor


def edm(sigma: Tensor, sigma_data: float) -> Scales:
    """Input, output and target of unit variance. Source: Karras et al., 2022, table 1."""
    total = sigma.square() + sigma_data**2
    return Scales(sigma_data**2 / total, sigma * sigma_data * total.rsqrt(), total.rsqrt(), sigma.log() / 4)


def ddpm(sigma: Tensor, sigma_data: float) -> Scales:
    """The network predicts the noise. Source: Ho, Jain and Abbeel, 2020, equation 14."""
    return Scales(torch.ones_like(sigma), -sigma, (sigma.square() + 1).rsqrt(), ddpm_time(sigma))


def v(sigma: Tensor, sigma_data: float) -> Scales:
    """The network predicts v = α·n - σ·x₀ of data scaled to α² + σ² = 1. Source: Salimans and Ho, 2022, appendix D."""
    root = (sigma.square() + 1).rsqrt()
    return Scales(root.square(), -sigma * root, root, ddpm_time(sigma))


def flow(sigma: Tensor, sigma_data: float) -> Scales:
    """The network predicts the velocity n - x₀ of (1 - t)·x₀ + t·n. Source: Liu et al., 2023, Rectified Flow."""
    kept = 1 / (1 + sigma)
    return Scales(kept, -sigma * kept, kept, sigma * kept)


PRECONDITIONINGS: dict[str, Callable[[Tensor, float], Scales]] = {"edm": edm, "ddpm": ddpm, "v": v, "flow": flow}
