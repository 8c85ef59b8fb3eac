"""Noise levels: which σ a sampler goes through, and which step of DDPM a σ belongs to.

ᾱ is the share of the signal's variance that DDPM keeps; σ² = (1 - ᾱ) / ᾱ.
"""

import math

import torch
from torch import Tensor

from ai.model.arguments import check_real

SCHEDULES = ("edm", "linear", "cosine", "flow")
N_TRAIN_STEPS = 1000


def noise_levels(
    steps: int, schedule: str = "edm", *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> list[float]:
    """Returns `steps + 1` falling noise levels, the last one zero.

    Sources: `edm` Karras et al., 2022, equation 5; `linear` Ho et al., 2020, section 4 (β from 1e-4 to 0.02 in 1000
    steps); `cosine` Nichol and Dhariwal, 2021, equation 17, with β at most 0.999; `flow` Liu et al., 2023, Rectified
    Flow, equal steps of t = σ / (1 + σ), from that of `sigma_max` to zero.

    >>> [round(sigma, 3) for sigma in noise_levels(3)]
    [80.0, 2.515, 0.002, 0.0]
    """
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule ({schedule!r}) must be one of {', '.join(SCHEDULES)}")
    check_real(sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
    if not 0 < sigma_min < sigma_max < math.inf:
        raise ValueError(f"sigma_min ({sigma_min}) must be above 0 and below sigma_max ({sigma_max}), a finite number")
    if not rho > 0:
        raise ValueError(f"rho ({rho}) must be above 0")
    if rho != 7.0 and schedule != "edm":
        raise ValueError(f"rho ({rho}) must be left alone with schedule {schedule!r}: it is of edm alone")
    if sigma_min != 0.002 and schedule == "flow":
        raise ValueError(f"sigma_min ({sigma_min}) must be left alone with schedule 'flow', whose steps are equal")
    last = max(steps - 1, 1)
    if schedule == "edm":
        high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
        return [*((high + i / last * (low - high)) ** rho for i in range(steps)), 0.0]
    if schedule == "flow":
        times = [sigma_max / (1 + sigma_max) * (1 - i / steps) for i in range(steps)]
        return [*(t / (1 - t) for t in times), 0.0]
    table = ddpm_sigmas(schedule)
    table = table[(table >= sigma_min) & (table <= sigma_max)]
    if steps > len(table):
        raise ValueError(f"steps ({steps}) must be at most {len(table)}, the levels of {schedule!r} within the bounds")
    places = torch.linspace(len(table) - 1, 0, steps, device="cpu").round().long()
    return [*table[places].tolist(), 0.0]


def ddpm_sigmas(schedule: str = "linear", device: torch.device | str = "cpu") -> Tensor:
    """Returns the noise levels of DDPM's 1000 training steps, rising, in float64."""
    if schedule == "linear":
        beta = torch.linspace(1e-4, 0.02, N_TRAIN_STEPS, dtype=torch.float64, device=device)
    else:
        t = torch.arange(N_TRAIN_STEPS + 1, dtype=torch.float64, device=device) / N_TRAIN_STEPS
        kept = torch.cos((t + 0.008) / 1.008 * math.pi / 2).square()
        beta = (1 - kept[1:] / kept[:-1]).clamp(max=0.999)
    alpha_bar = torch.cumprod(1 - beta, 0)
    return ((1 - alpha_bar) / alpha_bar).sqrt()


def ddpm_time(sigma: Tensor) -> Tensor:
    """Returns the step, 0 … 999, of the linear schedule at which noise has the level `sigma`; fractions in between."""
    # Computed where it is needed: a table that is copied to a device waits for all that the device has to do.
    device = "cpu" if sigma.device.type == "mps" else sigma.device  # Apple's GPUs have no float64
    table = ddpm_sigmas(device=device).log().to(device=sigma.device, dtype=sigma.dtype)
    level = sigma.log().clamp(table[0], table[-1])
    right = torch.searchsorted(table, level).clamp(1, N_TRAIN_STEPS - 1)
    left = right - 1
    return left + (level - table[left]) / (table[right] - table[left])
