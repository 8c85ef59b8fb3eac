"""Diffusion models: a network made into a denoiser, and data sampled from it.

Axes: `B` batch, `shape` one sample. σ is the standard deviation of the noise added to clean data.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ai.model.model import Model
from ai.model.noise_schedule import ddpm_time, noise_levels
from ai.model.sampler import SAMPLERS, Step

PRECONDITIONINGS = ("edm", "ddpm")


class DiffusionModel(Model):
    """A denoiser of noisy data, called as `(x, sigma, label=None)`, that can be sampled.

    Args:
        net: Called as `net(x, noise)`, or `net(x, noise, label)` where labels are given: `x` `(B, *shape)` noisy data
            scaled to about unit variance, `noise` `(B,)` the noise level, `label` `(B, …)`. It returns `(B, *shape)`.
            A label of -1 (0 for labels that are not integers) means none.
        shape: Of one sample, such as (3, 32, 32) or (2,).
        sigma_data: Standard deviation of the data.
        precond: `edm` scales input, output and skip so that all have unit variance, and gives the network ln(σ) / 4;
            `ddpm` has the network predict the noise, and gives it the step of the linear schedule, 0 … 999.
        label_dropout: Probability, in training mode, that a row loses its label; guidance needs some.

    Source: Karras, Aittala, Aila and Laine, 2022, Elucidating the Design Space of Diffusion-Based Generative Models,
    table 1, columns EDM and (for `ddpm`) iDDPM without its rounding; Ho and Salimans, 2022, for `label_dropout`.

    >>> import ai.model as m
    >>> class Net(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.layers = m.seq(m.fc(3, 16, actv="silu"), m.fc(16, 2))
    ...     def forward(self, x, noise):
    ...         return self.layers(torch.cat([x, noise[:, None]], 1))
    >>> model = m.DiffusionModel(Net(), [2]).init(seed=0)
    >>> model.sample(5, steps=4, seed=0).shape
    torch.Size([5, 2])
    """

    anchor: Tensor

    def __init__(
        self,
        net: nn.Module,
        shape: Sequence[int],
        *,
        sigma_data: float = 0.5,
        precond: str = "edm",
        label_dropout: float = 0.0,
    ) -> None:
        if not shape or any(size < 1 for size in shape):
            raise ValueError(f"shape ({tuple(shape)}) must be the sizes of one sample, each at least 1")
        if not sigma_data > 0:
            raise ValueError(f"sigma_data ({sigma_data}) must be above 0")
        if precond not in PRECONDITIONINGS:
            raise ValueError(f"precond ({precond!r}) must be one of {', '.join(PRECONDITIONINGS)}")
        if not 0 <= label_dropout < 1:
            raise ValueError(f"label_dropout ({label_dropout}) must lie in [0, 1)")
        super().__init__(net)
        self.shape, self.sigma_data, self.precond = tuple(shape), sigma_data, precond
        self.label_dropout = label_dropout
        # Follows .to(): where and in which type a network without parameters computes.
        self.register_buffer("anchor", torch.empty(0), persistent=False)

    def forward(self, x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
        """Returns the estimate of the clean data, `(B, *shape)`.

        Args:
            x: `(B, *shape)` clean data plus σ times N(0, 1).
            sigma: `(B,)`, or a number for all rows.
            label: `(B, …)`, what the network is conditioned on.

        Example:
            >>> class Net(torch.nn.Module):
            ...     def forward(self, x, noise):
            ...         return torch.zeros_like(x)
            >>> model = DiffusionModel(Net(), [2], sigma_data=0.5)
            >>> model(torch.ones(1, 2), torch.tensor([0.5]))  # half of it is noise, says a net that knows nothing
            tensor([[0.5000, 0.5000]])
        """
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"x must have the shape (batch, {', '.join(map(str, self.shape))}), got {tuple(x.shape)}")
        sigma = sigma.to(torch.promote_types(x.dtype, torch.float32)).expand(len(x))
        if label is not None and self.training and self.label_dropout:
            dropped = torch.rand(len(label), device=label.device) < self.label_dropout
            label = _without(label, dropped)
        wide = sigma.view(-1, *(1,) * len(self.shape))
        if self.precond == "ddpm":
            c_skip, c_out, c_in = torch.ones_like(wide), -wide, (wide.square() + 1).rsqrt()
            noise = ddpm_time(sigma)
        else:
            total = wide.square() + self.sigma_data**2
            c_skip, c_out = self.sigma_data**2 / total, wide * self.sigma_data * total.rsqrt()
            c_in, noise = total.rsqrt(), sigma.log() / 4
        inputs = ((c_in * x).to(x.dtype), noise.to(x.dtype))
        out = self.net(*inputs) if label is None else self.net(*inputs, label)
        denoised: Tensor = (c_skip * x + c_out * out).to(x.dtype)
        return denoised

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        steps: int = 32,
        seed: int | None = None,
        label: Tensor | None = None,
        guidance: float = 1.0,
        sampler: str = "heun",
        schedule: str = "edm",
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        rho: float = 7.0,
        eta: float = 0.0,
        churn: float = 0.0,
        frames: bool = False,
    ) -> Tensor:
        """Returns `n` samples, `(n, *shape)`, computed in evaluation mode and without gradients.

        Args:
            n: How many.
            steps: Of the sampler, from the highest noise level to none. Heun calls the network `2 · steps - 1` times,
                the others `steps` times.
            seed: Of a generator of this call's own; None takes it from torch's global one. The noise is drawn on the
                CPU, so a seed starts from the same noise on every device.
            label: `(n, …)`.
            guidance: 1 follows the labels, above 1 exaggerates them, 0 ignores them (classifier-free guidance).
            sampler: `heun`, `euler`, `ddim`, `ddpm` (ddim with eta 1) or `dpmpp_2m`.
            schedule: Noise levels: `edm` (spaced by `rho`), `linear` (DDPM's) or `cosine` (improved DDPM's). The latter
                two end where they end in their papers, cut to [sigma_min, sigma_max].
            sigma_min: Lowest noise level before zero.
            sigma_max: Highest noise level, from which sampling starts.
            rho: Larger puts more of the steps at low noise.
            eta: Of `ddim`: 0 is deterministic, 1 draws as much fresh noise as DDPM.
            churn: Of `heun` and `euler`: noise added and removed over the whole run, S_churn.
            frames: Returns `(steps + 1, n, *shape)`, the start and the state after every step.

        Raises:
            ValueError: An unknown name, or a number out of its range.

        Example:
            >>> class Zero(torch.nn.Module):  # the best denoiser of data that are all zero
            ...     def forward(self, x, noise):
            ...         sigma = (4 * noise).exp()[:, None]
            ...         return -x * 0.5 / sigma
            >>> frames = DiffusionModel(Zero(), [2]).sample(3, steps=8, seed=0, sampler="dpmpp_2m", frames=True)
            >>> frames.shape, bool(frames[-1].abs().max() < 1e-3)
            (torch.Size([9, 3, 2]), True)
        """
        if n < 1 or steps < 1:
            raise ValueError(f"n ({n}) and steps ({steps}) must be at least 1")
        if sampler not in SAMPLERS:
            raise ValueError(f"sampler ({sampler!r}) must be one of {', '.join(SAMPLERS)}")
        if label is not None and len(label) != n:
            raise ValueError(f"label must have n ({n}) rows, got {len(label)}")
        if label is None and guidance != 1:
            raise ValueError(f"guidance ({guidance}) must be 1 without labels")
        if not 0 <= eta <= 1 or churn < 0:
            raise ValueError(f"eta ({eta}) must lie in [0, 1] and churn ({churn}) must be at least 0")
        sigmas = noise_levels(steps, schedule, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
        if seed is None:
            seed = int(torch.randint(2**62, (), device="cpu").item())
        rng = torch.Generator().manual_seed(seed)
        device, dtype = self.device, self._dtype()
        # The solvers subtract large, nearly equal numbers; the network itself runs in its own type.
        wide_dtype = torch.float32 if device.type == "mps" else torch.float64
        label = None if label is None else label.to(device)

        def fresh() -> Tensor:
            drawn = torch.randn(n, *self.shape, generator=rng, dtype=torch.float64, device="cpu")
            if device.type == "cuda":  # through page-locked memory, or each draw would wait for the steps before it
                return drawn.pin_memory().to(device, wide_dtype, non_blocking=True)
            return drawn.to(device, wide_dtype)

        def denoise(x: Tensor, sigma: float) -> Tensor:
            level = torch.full((n,), sigma, device=device, dtype=wide_dtype)
            return self._guided(x.to(dtype), level, label, guidance).to(wide_dtype)

        was_training = [module for module in self.modules() if module.training]
        self.eval()
        try:
            x = fresh() * sigmas[0]
            seen = [x]
            for state in SAMPLERS[sampler](Step(denoise, fresh, eta=eta, churn=churn), x, sigmas):
                seen = [*seen, state] if frames else [state]
        finally:
            for module in was_training:
                module.training = True
        return (torch.stack(seen) if frames else seen[-1]).to(dtype)

    def _guided(self, x: Tensor, sigma: Tensor, label: Tensor | None, guidance: float) -> Tensor:
        if label is None or guidance == 1:
            return self(x, sigma, label)  # type: ignore[no-any-return]
        nothing = _without(label, torch.ones(len(label), dtype=torch.bool, device=label.device))
        if guidance == 0:
            return self(x, sigma, nothing)  # type: ignore[no-any-return]
        both: Tensor = self(torch.cat([x, x]), torch.cat([sigma, sigma]), torch.cat([label, nothing]))
        conditional, unconditional = both.chunk(2)
        return unconditional + guidance * (conditional - unconditional)

    def _dtype(self) -> torch.dtype:
        for parameter in self.parameters():
            return parameter.dtype
        return self.anchor.dtype


def _without(label: Tensor, dropped: Tensor) -> Tensor:
    """Takes the labels of some rows away; unsigned labels become int64, which has a -1."""
    if label.is_floating_point():
        return label.masked_fill(dropped.view(-1, *(1,) * (label.dim() - 1)), 0.0)
    return label.long().masked_fill(dropped.view(-1, *(1,) * (label.dim() - 1)), -1)
