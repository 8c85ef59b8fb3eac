"""Gaussian mixtures: data whose score and best denoiser are known in closed form, at every noise level.

What a sampler or a loss does to them can be compared with the truth instead of being looked at.

Axes: `B` batch, `K` components, `D` dimensions.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class GaussianMixture:
    """A mixture of `K` round Gaussians, in float64.

    With noise of standard deviation σ added, each component is `N(centre, std² + σ²)`, so that density, score and
    denoiser stay in closed form.

    Args:
        centres: `(K, D)`.
        std: Standard deviation of every component in every direction.
        weights: `K` probabilities; equal when None.

    Source:
        Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", appendix B.3: the best
        denoiser is `D(x; σ) = x + σ² ∇ log p(x; σ)` (equation 3).

    Example:
        >>> mixture = GaussianMixture([[-1.0], [1.0]], std=0.1)
        >>> mixture.denoise(torch.tensor([[0.9]]), 0.01).round(decimals=3).tolist()
        [[0.901]]
    """

    def __init__(self, centres: Sequence[Sequence[float]] | Tensor, std: float, weights: Sequence[float] | None = None):
        self.centres = torch.as_tensor(centres, dtype=torch.float64, device="cpu")
        if self.centres.ndim != 2:
            raise ValueError(f"centres must have shape (components, dimensions), not {tuple(self.centres.shape)}")
        if not std > 0:
            raise ValueError(f"std must be positive, not {std}")
        n = len(self.centres)
        self.std = float(std)
        weights = weights if weights is not None else [1 / n] * n
        self.weights = torch.as_tensor(weights, dtype=torch.float64, device="cpu")
        if self.weights.shape != (n,) or (self.weights < 0).any() or abs(self.weights.sum().item() - 1) > 1e-9:
            raise ValueError(f"weights must be {n} probabilities that sum to 1, not {self.weights.tolist()}")

    @property
    def mean(self) -> Tensor:
        """`(D,)`, the mean of the data."""
        return self.weights @ self.centres

    @property
    def covariance(self) -> Tensor:
        """`(D, D)`, the covariance of the data."""
        centred = self.centres - self.mean
        within = self.std**2 * torch.eye(centred.shape[1], dtype=torch.float64, device="cpu")
        return within + (centred * self.weights[:, None]).T @ centred

    def sample(self, n: int, *, seed: int) -> Tensor:
        """Draws `(n, D)` points of data."""
        generator = torch.Generator().manual_seed(seed)
        component = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        noise = torch.randn(n, self.centres.shape[1], generator=generator, dtype=torch.float64, device="cpu")
        return self.centres[component] + self.std * noise

    def log_density(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Returns `(B,)`, the log density of data plus noise of standard deviation `sigma` at `x` `(B, D)`."""
        log_joint, _ = self._log_joint(x, sigma)
        return log_joint.logsumexp(1)

    def denoise(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Returns `(B, D)`, the mean of the clean data given the noisy `x` `(B, D)`; `sigma` a number or `(B, 1)`."""
        log_joint, variance = self._log_joint(x, sigma)
        responsibility = log_joint.softmax(1)
        shrink = self.std**2 / variance
        return shrink * x.double() + (1 - shrink) * (responsibility @ self.centres.to(x.device))

    def score(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """Returns `(B, D)`, the gradient of `log_density` with respect to `x`."""
        return (self.denoise(x, sigma) - x) / torch.as_tensor(sigma, dtype=torch.float64, device=x.device) ** 2

    def _log_joint(self, x: Tensor, sigma: float | Tensor) -> tuple[Tensor, Tensor]:
        x = x.double()
        variance = self.std**2 + torch.as_tensor(sigma, dtype=torch.float64, device=x.device) ** 2
        squared = (x[:, None] - self.centres.to(x.device)).square().sum(2)  # (B, K)
        log_normal = -0.5 * (squared / variance + x.shape[1] * (2 * math.pi * variance).log())
        return self.weights.log().to(x.device) + log_normal, variance
