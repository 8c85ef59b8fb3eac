"""What a reconstruction can be compared with its original by."""

from collections.abc import Callable
from typing import Literal, TypeAlias, get_args

from torch import Tensor, nn

from ai.examples.metrics.digits import digits_classifier
from ai.train.loss import ComboLoss, Perceptual, mse, ssim_loss

LossName: TypeAlias = Literal["pixel", "ssim", "perceptual", "pixel+ssim", "pixel+perceptual"]


def make_loss(name: LossName, nc_img: int, imsize: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Returns a loss between two batches of images in [-1, 1].

    `pixel` is the mean squared error, `ssim` one minus the structural similarity, `perceptual` the distance of a
    network's inner activations: the digits classifier's for grey images, which needs no download, else VGG-16's.
    A sum logs its parts.

    Args:
        name: One of these, or two joined by `+`.
        nc_img: Channels of the images.
        imsize: Side of the images; SSIM needs 11 pixels.

    Raises:
        ValueError: Another name, or SSIM for images below 11 pixels.

    Example:
        >>> import torch
        >>> x = torch.zeros(2, 1, 16, 16)
        >>> make_loss("pixel+ssim", 1, 16)(x, x).item()
        0.0
    """
    if name not in get_args(LossName):
        raise ValueError(f"loss must be one of {', '.join(get_args(LossName))}, got {name!r}")
    if "ssim" in name and imsize < 11:
        raise ValueError(f"imsize ({imsize}) must be at least 11, the window of the loss {name!r}")
    parts: dict[str, Callable[[Tensor, Tensor], Tensor]] = {}
    for part in name.split("+"):
        if part == "pixel":
            parts[part] = mse
        elif part == "ssim":
            parts[part] = ssim_loss
        else:
            parts[part] = Perceptual(_DigitsActivations(imsize) if nc_img == 1 else None)
    return next(iter(parts.values())) if len(parts) == 1 else ComboLoss(parts)


class _DigitsActivations(nn.Module):
    """The activations of the digits classifier's first two layers, which still know where things are."""

    def __init__(self, imsize: int) -> None:
        super().__init__()
        classifier = digits_classifier(imsize)
        self.first, self.second = classifier.features[0], classifier.features[1]

    def forward(self, x: Tensor) -> list[Tensor]:
        first = self.first(x)
        return [first, self.second(first)]
