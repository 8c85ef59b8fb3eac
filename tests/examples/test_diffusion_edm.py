"""EDM's loss and samplers against data whose score is known in closed form."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from ai.examples.diffusion.convergence import MIXTURE, errors, exact_model
from ai.examples.diffusion.exact import GaussianMixture
from ai.train import Diffusion


def gaussian(std, dim=2):
    return GaussianMixture([[0.0] * dim], std=std)


@pytest.mark.parametrize(("std", "sigma_data"), [(0.5, 0.5), (0.3, 0.5), (1.5, 0.7)])
def test_loss_of_the_best_denoiser_of_a_gaussian_is_its_integral(std, sigma_data, on_device):
    """The error left at noise σ is s²σ² / (s² + σ²); its weighted mean over ln σ ~ N(-1.2, 1.2²), by quadrature."""
    log_sigma = np.linspace(-1.2 - 12 * 1.2, -1.2 + 12 * 1.2, 200_001)
    density = np.exp(-(((log_sigma + 1.2) / 1.2) ** 2) / 2) / (1.2 * math.sqrt(2 * math.pi))
    sigma = np.exp(log_sigma)
    weight = (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
    error = std**2 * sigma**2 / (std**2 + sigma**2)
    expected = np.trapezoid(density * weight * error, log_sigma)

    torch.manual_seed(0)
    mixture = gaussian(std)
    loss = on_device(Diffusion(sigma_data=sigma_data))(
        exact_model(mixture, sigma_data), mixture.sample(400_000, seed=1), 0
    )
    assert loss.item() == pytest.approx(expected, rel=0.01)


def test_no_denoiser_has_a_lower_loss_than_the_exact_one():
    x = MIXTURE.sample(50_000, seed=0)
    model = exact_model(MIXTURE)

    def loss(denoise):
        torch.manual_seed(1)
        return Diffusion(sigma_data=0.5)(denoise, x, 0).item()

    best = loss(model)
    for change in (0.05, -0.05):
        assert loss(lambda x, sigma, change=change: model(x, sigma) + change * sigma[:, None].clamp(max=0.5)) > best
        assert loss(lambda x, sigma, change=change: (1 + change) * model(x, sigma)) > best


def test_the_exact_network_makes_the_model_the_exact_denoiser(on_device):
    x = 3 * torch.randn(64, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigma = torch.logspace(-2.5, 1.9, 64, dtype=torch.float64)
    torch.testing.assert_close(
        on_device(exact_model(MIXTURE))(x, sigma), MIXTURE.denoise(x, sigma[:, None]), rtol=1e-6, atol=1e-6
    )


@pytest.mark.slow
def test_moments_of_heun_samples_are_those_of_the_data_within_one_percent(on_device):
    """The spread is 5 % too wide at 20 steps, and 0.4 % at 60: the sampler's own error, not the model's."""
    x = on_device(exact_model(MIXTURE).sample)(60_000, steps=64, seed=0)
    scale = MIXTURE.covariance.max().item()
    torch.testing.assert_close(x.mean(0), MIXTURE.mean, atol=0.01 * math.sqrt(scale), rtol=0)
    torch.testing.assert_close(x.T.cov(), MIXTURE.covariance, atol=0.01 * scale, rtol=0)


def test_a_gaussian_follows_its_straight_path(on_device):
    """For one Gaussian the flow is x(0) = x(T) s / √(s² + T²): every sample is a known multiple of its noise."""
    std, sigma_max = 0.3, 80.0
    model = exact_model(gaussian(std))
    frames = on_device(model.sample)(100, steps=200, seed=0, frames=True)
    expected = frames[0] * std / math.sqrt(std**2 + sigma_max**2)
    torch.testing.assert_close(frames[-1], expected, rtol=2e-3, atol=2e-3 * std)


@pytest.mark.parametrize(("sampler", "order"), [("euler", 1), ("heun", 2)])
def test_error_falls_with_the_order_of_the_sampler(sampler, order):
    steps = {"euler": (64, 128, 256), "heun": (32, 64, 128)}[sampler]
    found = [error for _, error in errors(sampler, steps, n=200, reference_steps=1000)]
    slopes = [math.log2(a / b) for a, b in pairwise(found)]
    assert min(slopes) > order - 0.25, slopes
    if order == 1:
        assert max(slopes) < 1.4, slopes


def ddpm_chain(sampler, **options):
    """One point of data, 0.7, under DDPM's own 1000 noise levels: alpha-bar, and the states in DDPM's coordinates."""
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    kept = torch.cumprod(1 - beta, 0)
    point = GaussianMixture([[0.7]], std=1e-9)
    frames = exact_model(point).sample(
        4000, steps=1000, seed=0, sampler=sampler, schedule="linear", sigma_max=200.0, frames=True, **options
    )
    # Frame 0 is step 1000; the last one is clean data.
    states = {1000 - i: frames[i, :, 0] * (kept[999 - i].sqrt() if i < 1000 else 1.0) for i in range(1001)}
    return beta, kept, states


@pytest.mark.slow
def test_ancestral_steps_follow_the_posterior_of_ddpm():
    """Equations 6 and 7 of Ho et al. 2020, in their own notation: mean and variance of x_{t-1} given x_t and x_0."""
    beta, kept, states = ddpm_chain("ddpm")
    for t in (1000, 999, 500, 100, 10, 3):
        now, before = kept[t - 1], kept[t - 2]
        mean = before.sqrt() * beta[t - 1] / (1 - now) * 0.7
        mean = mean + (1 - beta[t - 1]).sqrt() * (1 - before) / (1 - now) * states[t]
        variance = (1 - before) / (1 - now) * beta[t - 1]
        noise = (states[t - 1] - mean) / variance.sqrt()
        assert noise.mean().abs() < 0.06, t
        assert noise.std().item() == pytest.approx(1, abs=0.04), t
        assert torch.stack([noise, states[t]]).corrcoef()[0, 1].abs() < 0.06, t


@pytest.mark.slow
def test_ddim_steps_keep_the_predicted_noise():
    """Equation 12 of Song et al. 2021 with sigma_t = 0."""
    _, kept, states = ddpm_chain("ddim")
    for t in (1000, 999, 500, 100, 10, 3):
        now, before = kept[t - 1], kept[t - 2]
        noise = (states[t] - now.sqrt() * 0.7) / (1 - now).sqrt()
        expected = before.sqrt() * 0.7 + (1 - before).sqrt() * noise
        torch.testing.assert_close(states[t - 1], expected, rtol=1e-8, atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "steps"), [("heun", 40), ("ddim", 80), ("dpmpp_2m", 40), ("ddpm", 120)])
def test_every_sampler_finds_the_components_in_their_proportions(sampler, steps, on_device):
    x = on_device(exact_model(MIXTURE).sample)(20_000, steps=steps, seed=0, sampler=sampler)
    nearest = torch.cdist(x, MIXTURE.centres).argmin(1)
    shares = torch.bincount(nearest, minlength=3) / len(x)
    torch.testing.assert_close(shares.double(), MIXTURE.weights, atol=0.012, rtol=0)
