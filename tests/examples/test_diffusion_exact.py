import math

import pytest
import torch

from ai.examples.diffusion.exact import GaussianMixture

CENTRES = [[-1.0, 0.5], [0.8, 0.2], [0.1, -1.2]]
MIXTURE = GaussianMixture(CENTRES, std=0.3, weights=[0.5, 0.3, 0.2])


@pytest.mark.parametrize("sigma", [1e-3, 0.1, 1.0, 80.0])
def test_score_is_the_gradient_of_the_log_density(sigma, on_device):
    x = (2 * torch.randn(32, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).requires_grad_()
    (gradient,) = torch.autograd.grad(on_device(MIXTURE.log_density)(x, sigma).sum(), x)
    torch.testing.assert_close(on_device(MIXTURE.score)(x.detach(), sigma), gradient, rtol=1e-9, atol=1e-9)


def test_density_is_the_textbook_sum(on_device):
    x, sigma = torch.tensor([[0.3, -0.4]]), 0.7
    variance = 0.3**2 + sigma**2
    density = sum(
        weight * math.exp(-((0.3 - a) ** 2 + (-0.4 - b) ** 2) / (2 * variance)) / (2 * math.pi * variance)
        for (a, b), weight in zip(CENTRES, [0.5, 0.3, 0.2], strict=True)
    )
    assert on_device(MIXTURE.log_density)(x, sigma).exp().item() == pytest.approx(density, rel=1e-6)


def test_denoiser_is_the_posterior_mean_of_the_data(on_device):
    """Integrates the posterior over a grid of clean points."""
    mixture, sigma, x = GaussianMixture([[-1.0], [0.7]], std=0.2, weights=[0.4, 0.6]), 0.5, 0.1
    clean = torch.linspace(-6, 6, 200_001, dtype=torch.float64)[:, None]
    prior = on_device(mixture.log_density)(clean, 0.0).exp()
    posterior = prior * torch.exp(-((x - clean[:, 0]) ** 2) / (2 * sigma**2))
    expected = (posterior * clean[:, 0]).sum() / posterior.sum()
    found = on_device(mixture.denoise)(torch.tensor([[x]], dtype=torch.float64), sigma)
    assert found.item() == pytest.approx(expected.item())


def test_moments_agree_with_samples():
    x = MIXTURE.sample(400_000, seed=0)
    torch.testing.assert_close(x.mean(0), MIXTURE.mean, atol=0.01, rtol=0)
    torch.testing.assert_close(x.T.cov(), MIXTURE.covariance, atol=0.01, rtol=0)
    torch.testing.assert_close(x, MIXTURE.sample(400_000, seed=0), atol=0, rtol=0)


def test_noise_level_may_differ_by_row(on_device):
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sigma = torch.tensor([[0.1], [1.0], [5.0]], dtype=torch.float64)
    rows = [MIXTURE.denoise(x[i : i + 1], sigma[i].item()) for i in range(3)]
    torch.testing.assert_close(on_device(MIXTURE.denoise)(x, sigma), torch.cat(rows))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"centres": [1.0, 2.0], "std": 1}, r"centres must have shape \(components, dimensions\), not \(2,\)"),
        ({"centres": [[1.0]], "std": 0}, "std must be positive, not 0"),
        ({"centres": [[1.0], [2.0]], "std": 1, "weights": [0.5, 0.6]}, "weights must be 2 probabilities that sum to 1"),
    ],
)
def test_bad_mixtures_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GaussianMixture(**arguments)
