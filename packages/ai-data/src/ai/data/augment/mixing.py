"""Pairs of images made one, and their labels with them."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ai.data.arguments import check_at_least, check_real
from ai.data.augment.images import ORDER, OnBatch, numpy_draws, within
from ai.data.batch.device import to_device


def mixup(n_classes: int, alpha: float = 0.2) -> OnBatch:
    """Blends each image and label of a batch with those of another; `y` becomes probabilities `(batch, n_classes)`.

    Source: Zhang, Cisse, Dauphin and Lopez-Paz, 2018, mixup, equation 1, with a share for each pair.
    """
    _check_mix(n_classes, alpha)

    def apply(batch: dict[str, Tensor], generator: Generator) -> dict[str, Tensor]:
        x = batch["x"]
        if not x.is_floating_point():
            raise ValueError(f"mixup needs images as floating point numbers, got {x.dtype}: {ORDER}")
        other = torch.randperm(len(x), generator=generator, device=x.device)
        share = _beta(len(x), alpha, generator, x.device).to(x.dtype)
        weight = share[:, None, None, None]
        mixed = weight * x + (1 - weight) * x[other]
        return {**batch, "x": mixed, "y": _mixed_labels(batch["y"], other, share, n_classes)}

    return apply


def cutmix(n_classes: int, alpha: float = 1.0) -> OnBatch:
    """Pastes a rectangle of another image over each; `y` becomes probabilities by area, `(batch, n_classes)`.

    Source: Yun et al., 2019, CutMix, equations 1 and 2, with a rectangle for each pair.
    """
    _check_mix(n_classes, alpha)

    def apply(batch: dict[str, Tensor], generator: Generator) -> dict[str, Tensor]:
        x = batch["x"]
        if not x.is_floating_point():
            raise ValueError(f"cutmix needs images as floating point numbers, got {x.dtype}: {ORDER}")
        n, _, height, width = x.shape
        other = torch.randperm(n, generator=generator, device=x.device)
        side = (1 - _beta(n, alpha, generator, x.device)).sqrt()[:, None]
        middle = torch.rand(2, n, 1, generator=generator, device=x.device)
        rows = within(middle[0], height, side * height)
        columns = within(middle[1], width, side * width)
        pasted = rows[:, None, :, None] & columns[:, None, None, :]
        share = 1 - pasted.to(x.dtype).mean((1, 2, 3))
        mixed = torch.where(pasted, x[other], x)
        return {**batch, "x": mixed, "y": _mixed_labels(batch["y"], other, share, n_classes)}

    return apply


def _mixed_labels(y: Tensor, other: Tensor, share: Tensor, n_classes: int) -> Tensor:
    if y.ndim == 1 and not y.is_floating_point():
        hot = F.one_hot(y.to(torch.int64), n_classes)
    elif y.ndim == 2 and y.shape[1] == n_classes:
        hot = y
    else:
        raise ValueError(
            f"y must be whole numbers [batch], or probabilities [batch, n_classes ({n_classes})], got {y.dtype} "
            f"of shape {tuple(y.shape)}"
        )
    hot = hot.to(share.dtype)
    return share[:, None] * hot + (1 - share[:, None]) * hot[other]


def _beta(n: int, alpha: float, generator: Generator, device: torch.device) -> Tensor:
    # torch draws no beta variables from a given generator
    return to_device(numpy_draws(generator).beta(alpha, alpha, n).astype(np.float32), device, pin=device.type == "cuda")  # type: ignore[no-any-return]


def _check_mix(n_classes: int, alpha: float) -> None:
    check_at_least(2, n_classes=n_classes)
    check_real(alpha=alpha)
    if not 0 < alpha < float("inf"):
        raise ValueError(f"alpha must be positive and finite, got {alpha}")
