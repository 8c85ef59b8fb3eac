"""How fast the error of each sampler falls with its steps, measured on data whose denoiser is known.

Command: `python -m ai.examples.diffusion.convergence [--out FILE]`; seconds.

The samplers solve one and the same equation from the same noise, so what they should reach is what the most accurate of
them reaches with very many steps: no training and no randomness blurs the picture.
"""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

import ai.model as m
from ai.examples.diffusion.exact import GaussianMixture
from ai.examples.diffusion.figures import save_convergence

MIXTURE = GaussianMixture([[-0.6, 0.1], [0.4, 0.5], [0.3, -0.7]], std=0.15, weights=[0.5, 0.3, 0.2])


class ExactNet(nn.Module):
    """The network that a perfectly trained `DiffusionModel` would have for a Gaussian mixture.

    It undoes the preconditioning: given the scaled data and the noise level as a network sees them, it returns what
    makes the model's output the mixture's exact denoiser.

    Args:
        mixture: The data.
        sigma_data: As of the model.

    Source:
        Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", equation 7 and table 1.
    """

    def __init__(self, mixture: GaussianMixture, sigma_data: float):
        super().__init__()
        self.mixture, self.sigma_data = mixture, sigma_data

    def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None) -> Tensor:
        """Returns `(batch, dim)`."""
        sigma = (4 * noise.double()).exp()[:, None]
        total = (sigma**2 + self.sigma_data**2).sqrt()
        noisy = x.double() * total
        clean = self.mixture.denoise(noisy, sigma)
        return (clean - noisy * (self.sigma_data / total) ** 2) / (sigma * self.sigma_data / total)


def exact_model(mixture: GaussianMixture, sigma_data: float = 0.5) -> m.DiffusionModel:
    """Returns a diffusion model of a mixture that needs no training."""
    return m.DiffusionModel(ExactNet(mixture, sigma_data), mixture.centres.shape[1:], sigma_data=sigma_data).double()


def errors(sampler: str, steps: Sequence[int], *, n: int = 500, reference_steps: int = 2000) -> list[tuple[int, float]]:
    """Returns, for each number of steps, the network calls they take and the median error of the samples.

    The median, since a sample that starts between two components may end in the other one, whatever the order.

    Args:
        sampler: A name that `DiffusionModel.sample` knows.
        steps: How many to try.
        n: Number of samples.
        reference_steps: Steps of Heun's method to the samples that count as exact.
    """
    model = exact_model(MIXTURE)
    exact = model.sample(n, steps=reference_steps, seed=0, sampler="heun")
    found = []
    for count in steps:
        calls = 2 * count - 1 if sampler == "heun" else count
        error = (model.sample(n, steps=count, seed=0, sampler=sampler) - exact).norm(dim=1).median()
        found.append((calls, error.item()))
    return found


def main(out: Path = Path("convergence.png")) -> None:
    """Draws the errors of all samplers.

    Args:
        out: The picture.
    """
    counts = (8, 16, 32, 64, 128, 256)
    steps = {"euler": counts, "dpmpp_2m": counts, "heun": tuple(count // 2 for count in counts)}
    save_convergence(out, {name: errors(name, tried) for name, tried in steps.items()}, "Gaussian mixture, known score")
    print(f"wrote {out}")


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
