"""Diffusion models: a network made into a denoiser, and data sampled from it.

Axes: `B` batch, `shape` one sample. σ is the standard deviation of the noise added to clean data.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from numbers import Real
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.fx
from torch import Tensor, nn

from ai.model.arguments import check_real, check_whole
from ai.model.denoising.precond import PRECONDITIONINGS
from ai.model.denoising.row_noise import RowNoise
from ai.model.model import Model
from ai.model.noise_schedule import noise_levels
from ai.model.sampler import SAMPLERS, Step


class DiffusionModel(Model):
    """A denoiser of noisy data, called as `(x, sigma, label=None)`, that can be sampled.

    Wrap a network, or subclass and write the network's `forward`; calls of the model give the denoiser in either case.

    Args:
        net: None for a subclass that defines `forward`. It is called as `net(x, noise)`, or `net(x, noise, label)`
            where labels are given: `x` `(B, *shape)` noisy data scaled to about unit variance, `noise` `(B,)` the noise
            level, `label` `(B, …)`. It returns `(B, *shape)`.
            A label of -1 (0 for labels that are not integers) means none.
        shape: Of one sample, such as (3, 32, 32) or (2,).
        sigma_data: Standard deviation of the data.
        precond: `edm` scales input, output and skip so that all have unit variance, and gives the network ln(σ) / 4;
            `ddpm` has the network predict the noise, and gives it the step of the linear schedule, 0 … 999; `v` the
            velocity of v-prediction, with the same step; `flow` the velocity of flow matching, with its time in (0, 1).
            Only `edm` makes use of `sigma_data`.
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
        net: nn.Module | None = None,
        shape: Sequence[int] = (),
        *,
        sigma_data: float = 0.5,
        precond: str = "edm",
        label_dropout: float = 0.0,
    ) -> None:
        check_whole(**{f"shape[{axis}]": size for axis, size in enumerate(shape)})
        check_real(sigma_data=sigma_data, label_dropout=label_dropout)
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

    def __init_subclass__(cls, **options: Any) -> None:
        """Makes the denoiser of the network that a subclass writes as `forward`, for whoever calls or traces that."""
        super().__init_subclass__(**options)
        if "forward" in vars(cls):
            cls.forward = _denoising(vars(cls)["forward"])  # type: ignore[method-assign]

    if TYPE_CHECKING:

        def __call__(self, x: Tensor, sigma: Tensor | float, label: Tensor | None = None) -> Tensor:
            """Calls `forward`."""

    def forward(self, x: Tensor, sigma: Tensor | float, label: Tensor | None = None) -> Tensor:
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
        if self._modules.get("net") is None:
            raise NotImplementedError(f"{type(self).__name__} must be given a net or define forward")
        return self._denoised(self.net, x, sigma, label)

    def _denoised(self, net: Callable[..., Tensor], x: Tensor, sigma: Tensor | float, label: Tensor | None) -> Tensor:
        _check_shape(x, self.shape)
        batch = x.shape[0]
        dtype = torch.promote_types(x.dtype, torch.float32)
        if isinstance(sigma, Real):  # asked so, since what a tracer passes is no tensor
            sigma = x.new_full((batch,), sigma, dtype=dtype)
        else:
            sigma = cast(Tensor, sigma).to(device=x.device, dtype=dtype).expand(batch)
        if label is not None and self.training and self.label_dropout:
            dropped = torch.rand(batch, device=label.device) < self.label_dropout
            label = _without(label, dropped)
        scales = PRECONDITIONINGS[self.precond](sigma, self.sigma_data)
        ones = (1,) * len(self.shape)
        skip, scale, into = (factor.view(-1, *ones) for factor in (scales.skip, scales.out, scales.into))
        inputs = ((into * x).to(x.dtype), scales.noise.to(x.dtype))
        out = net(*inputs) if label is None else net(*inputs, label)
        return (skip * x + scale * out).to(x.dtype)

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
        noise: Tensor | None = None,
        image: Tensor | None = None,
        strength: float = 1.0,
        keep: Tensor | None = None,
        callback: Callable[[int, Tensor], object] | None = None,
        frames: bool = False,
    ) -> Tensor:
        """Returns `n` samples, `(n, *shape)`, computed in evaluation mode and without gradients.

        Args:
            n: How many.
            steps: Of the sampler, from the highest noise level to none. Heun calls the network `2 · steps - 1` times,
                the others `steps` times.
            seed: Of this call's own noise; None takes it from torch's global generator. A row's noise depends on the
                seed and on its place alone: neither on `n` nor on the device.
            label: `(n, …)`.
            guidance: 1 follows the labels, above 1 exaggerates them, 0 ignores them (classifier-free guidance).
            sampler: `heun`, `euler`, `ddim`, `ddpm` (ddim with eta 1) or `dpmpp_2m`.
            schedule: Noise levels: `edm` (spaced by `rho`), `linear` (DDPM's), `cosine` (improved DDPM's) or `flow`
                (equal steps of rectified flow's time). The two of DDPM end where they end in their papers, cut to
                [sigma_min, sigma_max].
            sigma_min: Lowest noise level before zero.
            sigma_max: Highest noise level, from which sampling starts.
            rho: Of `edm`: larger puts more of the steps at low noise.
            eta: Of `ddim`: 0 is deterministic, 1 draws as much fresh noise as DDPM.
            churn: Of `heun` and `euler`: noise added and removed over the whole run, S_churn.
            noise: `(n, *shape)`, N(0, 1), to start from instead of the seed's, such as `invert` gives.
            image: `(n, *shape)`, or one of `shape`: sampling starts from it with noise added.
            strength: Share of the steps that an image goes through, in (0, 1]: small ones keep most of it.
            keep: bool, `(n, *shape)` or what broadcasts to it: where the image is to stay, and the rest is painted.
            callback: Called after each step as `(step, x)`, step 0 first, with the state at that noise level.
            frames: Returns `(steps + 1, n, *shape)`, the start and the state after every step.

        Raises:
            ValueError: An unknown name, a number out of its range, or an option that the others leave without effect.

        Sources: Ho and Salimans, 2022, Classifier-Free Diffusion Guidance; Meng et al., 2022, SDEdit (`image`); Lugmayr
        et al., 2022, RePaint, algorithm 1 without its repetitions (`keep`).

        Example:
            >>> class Zero(torch.nn.Module):  # the best denoiser of data that are all zero
            ...     def forward(self, x, noise):
            ...         sigma = (4 * noise).exp()[:, None]
            ...         return -x * 0.5 / sigma
            >>> frames = DiffusionModel(Zero(), [2]).sample(3, steps=8, seed=0, sampler="dpmpp_2m", frames=True)
            >>> frames.shape, bool(frames[-1].abs().max() < 1e-3)
            (torch.Size([9, 3, 2]), True)
        """
        check_whole(n=n, steps=steps)
        check_whole(or_none=True, seed=seed)
        check_real(guidance=guidance, eta=eta, churn=churn, strength=strength)
        if n < 1 or steps < 1:
            raise ValueError(f"n ({n}) and steps ({steps}) must be at least 1")
        if sampler not in SAMPLERS:
            raise ValueError(f"sampler ({sampler!r}) must be one of {', '.join(SAMPLERS)}")
        if label is not None and len(label) != n:
            raise ValueError(f"label must have n ({n}) rows, got {len(label)}")
        if label is None and guidance != 1:
            raise ValueError(f"guidance ({guidance}) must be 1 without labels")
        if not math.isfinite(guidance):
            raise ValueError(f"guidance ({guidance}) must be a finite number")
        if not 0 <= eta <= 1 or not 0 <= churn < math.inf:
            raise ValueError(f"eta ({eta}) must lie in [0, 1] and churn ({churn}) must be at least 0")
        if eta and sampler != "ddim":
            raise ValueError(f"eta ({eta}) must be 0 with sampler {sampler!r}: it is of ddim alone")
        if churn and sampler not in ("heun", "euler"):
            raise ValueError(f"churn ({churn}) must be 0 with sampler {sampler!r}: it is of heun and euler alone")
        if noise is not None and tuple(noise.shape) != (n, *self.shape):
            raise ValueError(f"noise must have the shape {(n, *self.shape)}, got {tuple(noise.shape)}")
        if not 0 < strength <= 1 or (image is None and strength != 1):
            raise ValueError(f"strength ({strength}) must lie in (0, 1], and be 1 without an image")
        if image is not None and tuple(image.shape) not in (self.shape, (1, *self.shape), (n, *self.shape)):
            raise ValueError(f"image must have the shape {self.shape} or {(n, *self.shape)}, got {tuple(image.shape)}")
        if image is None and keep is not None:
            raise ValueError("keep must be None without an image")
        if keep is not None and keep.dtype != torch.bool:
            raise ValueError(f"keep must be bool (True where the image stays), got {keep.dtype}")
        if keep is not None and not _broadcasts(tuple(keep.shape), (n, *self.shape)):
            raise ValueError(f"keep must broadcast to {(n, *self.shape)}, got {tuple(keep.shape)}")
        sigmas = noise_levels(steps, schedule, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
        sigmas = sigmas[min(steps - 1, round(steps * (1 - strength))) :]
        if seed is None:
            seed = int(torch.randint(2**62, (), device="cpu").item())
        rows = RowNoise(n, self.shape, seed=int(seed))
        device, wide = self.device, self._wide()

        def fresh() -> Tensor:
            drawn = rows()
            if device.type == "cuda":  # through page-locked memory, or each draw would wait for the steps before it
                return drawn.pin_memory().to(device, wide, non_blocking=True)
            return drawn.to(device, wide)

        known = None if image is None else image.to(device=device, dtype=wide).expand(n, *self.shape)
        kept = None if keep is None else keep.to(device)
        with self._evaluating():
            x = (fresh() if noise is None else noise.to(device=device, dtype=wide)) * sigmas[0]
            if known is not None:
                x = x + known
            seen = [x]
            restored = None if known is None or kept is None else _restorer(known, kept, fresh)
            step = Step(self._denoiser(n, label, guidance), fresh, eta=eta, churn=churn, restored=restored)
            for i, state in enumerate(SAMPLERS[sampler](step, x, sigmas)):
                seen = [*seen, state] if frames else [state]
                if callback is not None:
                    callback(i, state.to(self._dtype()))
        return (torch.stack(seen) if frames else seen[-1]).to(self._dtype())

    @torch.no_grad()
    def invert(
        self,
        x: Tensor,
        *,
        steps: int = 32,
        label: Tensor | None = None,
        guidance: float = 1.0,
        schedule: str = "edm",
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        rho: float = 7.0,
    ) -> Tensor:
        """Returns the noise, `(B, *shape)`, from which `sample(noise=…)` with the same options leads to x.

        The probability flow is followed backwards by Heun's method, up to its error of second order.

        Args:
            x: `(B, *shape)` clean data.
            steps: As of `sample`, as are the others.
            label: `(B, …)`.
            guidance: As of `sample`.
            schedule: As of `sample`.
            sigma_min: As of `sample`.
            sigma_max: As of `sample`.
            rho: As of `sample`.

        Source: Song et al., 2021, Score-Based Generative Modeling through SDEs, section 4.3.

        Example:
            >>> class Unit(torch.nn.Module):  # knows N(0, ½²) data: D(x) = x / (1 + 4 σ²)
            ...     def forward(self, x, noise):
            ...         return torch.zeros_like(x)
            >>> model, x = DiffusionModel(Unit(), [2], sigma_data=0.5), torch.tensor([[0.3, -0.7]])
            >>> bool((model.sample(1, noise=model.invert(x)) - x).abs().max() < 1e-2)
            True
        """
        _check_shape(x, self.shape)
        check_whole(steps=steps)
        check_real(guidance=guidance)
        if steps < 2:
            raise ValueError(f"steps ({steps}) must be at least 2: the first of them only adds the least noise")
        if label is not None and len(label) != len(x):
            raise ValueError(f"label must have the {len(x)} rows of x, got {len(label)}")
        if label is None and guidance != 1:
            raise ValueError(f"guidance ({guidance}) must be 1 without labels")
        sigmas = noise_levels(steps, schedule, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)[-2::-1]
        with self._evaluating():
            denoise = self._denoiser(len(x), label, guidance)
            # Between no noise and the lowest level the data move by less than that level.
            start = x.to(device=self.device, dtype=self._wide())
            *_, x = SAMPLERS["heun"](Step(denoise, start.new_empty), start, sigmas)
        return (x / sigmas[-1]).to(self._dtype())

    def _denoiser(self, n: int, label: Tensor | None, guidance: float) -> Callable[[Tensor, float], Tensor]:
        device, dtype, wide = self.device, self._dtype(), self._wide()
        label = None if label is None else label.to(device)

        def denoise(x: Tensor, sigma: float) -> Tensor:
            level = torch.full((n,), sigma, device=device, dtype=wide)
            return self._guided(x.to(dtype), level, label, guidance).to(wide)

        return denoise

    def _wide(self) -> torch.dtype:
        """The solvers subtract large, nearly equal numbers; the network itself runs in its own type."""
        return torch.float32 if self.device.type == "mps" else torch.float64

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """Puts the model in evaluation mode, and each module back in its own."""
        was_training = [module for module in self.modules() if module.training]
        self.eval()
        try:
            yield
        finally:
            for module in was_training:
                module.training = True

    def _guided(self, x: Tensor, sigma: Tensor, label: Tensor | None, guidance: float) -> Tensor:
        if label is None or guidance == 1:
            return self(x, sigma, label)
        nothing = _without(label, torch.ones(len(label), dtype=torch.bool, device=label.device))
        if guidance == 0:
            return self(x, sigma, nothing)
        both = self(torch.cat([x, x]), torch.cat([sigma, sigma]), torch.cat([label, nothing]))
        conditional, unconditional = both.chunk(2)
        return unconditional + guidance * (conditional - unconditional)

    def _dtype(self) -> torch.dtype:
        for parameter in self.parameters():
            return parameter.dtype
        return self.anchor.dtype


def _denoising(network: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Returns the `forward` of a class whose own is a network: its denoiser, or the network to a class above it."""

    def forward(self: DiffusionModel, x: Tensor, sigma: Tensor | float, label: Tensor | None = None) -> Tensor:
        if type(self).forward is not forward:  # called as super().forward by another network
            return network(self, x, sigma) if label is None else network(self, x, sigma, label)
        return self._denoised(partial(network, self), x, sigma, label)

    forward.__doc__ = network.__doc__
    return forward


@torch.fx.wrap  # for torch.fx, which does not know sizes, a check is one step
def _check_shape(x: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(x.shape[1:]) != shape:
        raise ValueError(f"x must have the shape (batch, {', '.join(map(str, shape))}), got {tuple(x.shape)}")


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    return len(shape) <= len(to) and all(size in (1, full) for size, full in zip(shape[::-1], to[::-1], strict=False))


def _restorer(known: Tensor, kept: Tensor, fresh: Callable[[], Tensor]) -> Callable[[Tensor, float], Tensor]:
    """Returns what puts the known part back into a state, with the noise of its level."""

    def restored(x: Tensor, sigma: float) -> Tensor:
        return torch.where(kept, known + sigma * fresh() if sigma else known, x)

    return restored


def _without(label: Tensor, dropped: Tensor) -> Tensor:
    """Takes the labels of some rows away; unsigned labels become int64, which has a -1."""
    if label.is_floating_point():
        return label.masked_fill(dropped.view(-1, *(1,) * (label.dim() - 1)), 0.0)
    return label.long().masked_fill(dropped.view(-1, *(1,) * (label.dim() - 1)), -1)
