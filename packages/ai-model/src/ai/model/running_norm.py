"""Normalisation by what was seen so far."""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from ai.model.arguments import check_real, check_whole
from ai.model.init import fill
from ai.model.wide import kept_wide


class _RunningNorm(nn.Module):
    mean: Tensor
    variance: Tensor
    count: Tensor
    like: Tensor

    def __init__(self, shape: tuple[int, ...], clip: float | None, eps: float):
        super().__init__()
        self.shape, self.clip, self.eps = shape, clip, eps
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("variance", torch.ones(shape))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("like", torch.empty(0), persistent=False)  # of the type that goes out

    def init_params(self, generator: torch.Generator | None) -> None:
        for buffer, value in ((self.mean, 0.0), (self.variance, 1.0), (self.count, 0)):
            fill(buffer, value)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[x.ndim - len(self.shape) :] != self.shape:
            raise ValueError(f"running_norm expects (…, {', '.join(map(str, self.shape))}), got shape {tuple(x.shape)}")
        wide = x.to(self.mean.dtype)
        # By what was known before: the first batch after acting is seen as it was when the actions were chosen.
        out = (wide - self.mean) * (self.variance + self.eps).rsqrt()
        if self.training:
            self._update(wide.detach().reshape(-1, *self.shape))
        return (out if self.clip is None else out.clamp(-self.clip, self.clip)).to(self.like.dtype)

    @torch.no_grad()
    def _update(self, rows: Tensor) -> None:
        """Takes rows `(n, *shape)` into the moments (Chan, Golub and LeVeque 1983, equation 2.1).

        Rows with NaN or infinity are left out, one would stay in the moments for good; so are those whose squares are.
        """
        finite = (rows.square() * len(rows)).isfinite().flatten(1).all(1).view(-1, *(1,) * len(self.shape))
        n = finite.sum().to(rows.dtype)
        mean = torch.where(finite, rows, 0).sum(0) / n.clamp_min(1)
        variance = torch.where(finite, rows - mean, 0).square().sum(0) / n.clamp_min(1)
        known = self.count.to(mean.dtype)
        share = n / (known + n).clamp_min(1)
        apart = mean - self.mean
        self.variance.copy_((1 - share) * self.variance + share * variance + share * (1 - share) * apart.square())
        self.mean.add_(share * apart)
        self.count.add_(finite.sum())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Converts what goes out, but no moments to half precision: a variance of 256² is infinite there."""
        before = self.mean, self.variance
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.mean, self.variance = map(kept_wide, (self.mean, self.variance), before)
        return self

    def extra_repr(self) -> str:
        return f"{self.shape}, clip={self.clip}"


def running_norm(*shape: int, clip: float | None = 10.0, eps: float = 1e-8) -> nn.Module:
    """Returns the normalisation of each feature by its mean and variance over all that was seen in training mode.

    Unlike batch normalisation it uses the running moments in training too, so that a policy acts and learns alike. The
    moments are buffers: they are saved, and pushed to whoever acts; they stay in float32 where the model is made
    narrower. In training mode each call adds its rows to them, of sequences also those that a mask leaves out.

    Args:
        shape: Of one row; leading axes are rows. A row with NaN, infinity or numbers without a finite square is left
            out of the moments.
        clip: Bounds the result to [-clip, clip]; None for no bound.
        eps: Added to the variance.

    Example:
        >>> norm = running_norm(2)
        >>> for _ in range(200):
        ...     _ = norm(torch.randn(64, 2) * 3 + 5)
        >>> bool(norm.eval()(torch.tensor([[5.0, 8.0]])).allclose(torch.tensor([[0.0, 1.0]]), atol=0.1))
        True
    """
    check_whole(**{f"shape[{axis}]": size for axis, size in enumerate(shape)})
    check_real(eps=eps)
    check_real(or_none=True, clip=clip)
    if clip is not None and not clip > 0:
        raise ValueError(f"clip must be positive or None, got {clip}")
    if not eps >= 0:
        raise ValueError(f"eps must be at least 0, got {eps}")
    if not shape or min(shape) < 1:
        raise ValueError(f"shape must be one or more sizes of at least 1, got {shape}")
    return _RunningNorm(shape, clip, eps)
