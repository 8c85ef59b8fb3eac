"""The bottleneck of variational autoencoders."""

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Latent(NamedTuple):
    """What `kl` gives."""

    z: Tensor
    """`(batch, nc, …)`: drawn in training, the mean in evaluation."""
    kl: Tensor
    """`(batch,)`, the divergence of each row's distribution from N(0, 1), in nats, in float32 or wider."""


class _Kl(nn.Module):
    def forward(self, x: Tensor) -> Latent:
        if x.ndim < 2 or x.shape[1] % 2:
            raise ValueError(f"x must be (batch, 2 · nc, …), got {tuple(x.shape)}")
        wide = x.to(torch.promote_types(x.dtype, torch.float32))  # float16 ends below the square of 256
        mean, log_variance = wide.chunk(2, 1)
        log_variance = log_variance.clamp(-30, 20)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(1)
        if self.training:
            mean = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        return Latent(mean.to(x.dtype), divergence)


def kl() -> nn.Module:
    """Returns the module from means and logarithms of variances, `(batch, 2 · nc, …)`, to a `Latent`.

    Source: Kingma and Welling, 2014, Auto-Encoding Variational Bayes, appendix B.

    Example:
        >>> z, divergence = kl().eval()(torch.zeros(2, 8, 4, 4))
        >>> z.shape, divergence
        (torch.Size([2, 4, 4, 4]), tensor([0., 0.]))
    """
    return _Kl()
