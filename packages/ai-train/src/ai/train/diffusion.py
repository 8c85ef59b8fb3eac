"""`Diffusion`: denoising score matching in the formulation of EDM."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ai.model.arguments import check_real
from ai.train.engine.log import is_logging, log
from ai.train.env import images


class Diffusion:
    """The weighted squared error of `model(x + σn, σ)` against `x`, for log-normally drawn noise levels σ.

    The model denoises: it takes `x [B, ...]` and `sigma [B]` and gives its estimate of the clean x, preconditioned on
    its own (`ai.model.DiffusionModel`). With `conditional`, the batch's `y` is its third argument.

    Args:
        p_mean: mean of ln σ.
        p_std: standard deviation of ln σ.
        sigma_data: standard deviation of the data; None takes the model's own `sigma_data`, else 0.5.
        conditional: pass `y`.

    Source: Karras, Aittala, Aila and Laine 2022, Elucidating the design space of diffusion-based generative models,
    equation 5 with table 1's training column: λ(σ) = (σ² + σ_data²) / (σ · σ_data)².

    >>> denoise = lambda x, sigma: x / (1 + (sigma / 0.5)[:, None] ** 2)  # the best for N(0, 0.25) data
    >>> _ = torch.manual_seed(0)
    >>> loss = Diffusion(sigma_data=0.5)(denoise, torch.randn(20000, 1) * 0.5, 0)
    >>> abs(float(loss) - 1) < 0.05
    True
    """

    def __init__(
        self,
        *,
        p_mean: float = -1.2,
        p_std: float = 1.2,
        sigma_data: float | None = None,
        conditional: bool = False,
    ) -> None:
        check_real(p_mean=p_mean, p_std=p_std)
        check_real(or_none=True, sigma_data=sigma_data)
        if not p_std > 0:
            raise ValueError(f"p_std ({p_std}) must be positive")
        if sigma_data is not None and not sigma_data > 0:
            raise ValueError(f"sigma_data ({sigma_data}) must be positive")
        self.p_mean, self.p_std, self.sigma_data, self.conditional = p_mean, p_std, sigma_data, conditional

    def __call__(self, model: nn.Module, batch: Any, step: int) -> Tensor:
        """The mean loss over the batch."""
        x = images(batch)
        condition = (batch["y"] if isinstance(batch, Mapping) else batch[1],) if self.conditional else ()
        sigma_data = self.sigma_data or float(getattr(model, "sigma_data", 0.5))
        dtype = torch.promote_types(x.dtype, torch.float32)  # half precision would round the error
        sigma = torch.exp(torch.randn(len(x), device=x.device, dtype=dtype) * self.p_std + self.p_mean)
        wide = sigma.view(-1, *[1] * (x.ndim - 1))
        denoised = model(x + wide * torch.randn_like(x), sigma, *condition)
        weight = (wide**2 + sigma_data**2) / (wide * sigma_data) ** 2
        error = (denoised.to(dtype) - x).square()
        if is_logging():
            log("mse", error.mean())
        loss: Tensor = (weight * error).mean()
        return loss
