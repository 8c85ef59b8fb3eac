"""Losses between images or vectors, and sums of them that log their parts.

Letters: B batch, C channels, H and W height and width. Images lie in [-1, 1] unless said otherwise.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ai.train.engine.log import is_logging, log

Loss = Callable[[Tensor, Tensor], Tensor]


def mse(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared error.

    >>> float(mse(torch.ones(2), torch.zeros(2)))
    1.0
    """
    _check_shapes(output, target)
    return F.mse_loss(output, target)


def mae(output: Tensor, target: Tensor) -> Tensor:
    """Mean absolute error.

    >>> float(mae(torch.full((2,), 3.0), torch.zeros(2)))
    3.0
    """
    _check_shapes(output, target)
    return F.l1_loss(output, target)


def huber(output: Tensor, target: Tensor, delta: float = 1.0) -> Tensor:
    """Squared near zero, absolute beyond `delta` (Huber 1964).

    >>> float(huber(torch.tensor([3.0]), torch.tensor([0.0])))
    2.5
    """
    _check_shapes(output, target)
    return F.huber_loss(output, target, delta=delta)


pixel = mse


def ssim(a: Tensor, b: Tensor, *, bounds: tuple[float, float] = (-1.0, 1.0), window: int = 11) -> Tensor:
    """Mean structural similarity of images `[B, C, H, W]`, 1 for equal ones.

    Gaussian window with standard deviation 1.5, K1 = 0.01, K2 = 0.03, without padding; population covariances, as in
    the paper.

    Source: Wang, Bovik, Sheikh and Simoncelli 2004, Image quality assessment: from error visibility to structural
    similarity, equation 13.

    Raises:
        ValueError: shapes differ, or the window is even or larger than the image.

    >>> image = torch.linspace(-1, 1, 256).view(1, 1, 16, 16)
    >>> round(float(ssim(image, image)), 4)
    1.0
    """
    _check_shapes(a, b)
    if a.ndim != 4:
        raise ValueError(f"ssim takes images of shape (batch, channels, height, width), not {tuple(a.shape)}")
    if window % 2 == 0 or window > min(a.shape[2:]):
        raise ValueError(f"window ({window}) must be odd and at most the image's size {tuple(a.shape[2:])}")
    channels, span = a.shape[1], bounds[1] - bounds[0]
    # Sums of squares of nearly equal numbers: half precision would cancel them away.
    a, b = a.float() if a.dtype.itemsize < 4 else a, b.float() if b.dtype.itemsize < 4 else b
    kernel = _gaussian(window, 1.5, a)
    rows = kernel.view(1, 1, 1, -1).expand(channels, 1, 1, window)
    columns = kernel.view(1, 1, -1, 1).expand(channels, 1, window, 1)

    def smooth(x: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(x, rows, groups=channels), columns, groups=channels)

    with torch.autocast(a.device.type, enabled=False):
        mean_a, mean_b = smooth(a), smooth(b)
        var_a, var_b = smooth(a * a) - mean_a**2, smooth(b * b) - mean_b**2
        covariance = smooth(a * b) - mean_a * mean_b
        c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
        numerator = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
        return (numerator / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))).mean()


def ssim_loss(output: Tensor, target: Tensor) -> Tensor:
    """1 - `ssim`, for images in [-1, 1].

    >>> image = torch.zeros(1, 1, 16, 16)
    >>> float(ssim_loss(image, image))
    0.0
    """
    return 1 - ssim(output, target)


class Perceptual(nn.Module):
    """The distance between the features that a network sees in two images.

    Args:
        features: any network from images to a tensor or a list of tensors; frozen here. By default torchvision's VGG-16
            after its first four blocks' last activations, whose weights are fetched on first use; images are brought
            from [-1, 1] to what it was trained on, and grey ones to three channels.
        weights: of each feature map; equal by default.

    Raises:
        RuntimeError: on first use, the default network's weights cannot be fetched.

    Source: Johnson, Alahi and Fei-Fei 2016, Perceptual losses for real-time style transfer and super-resolution,
    equation 2 (each map's mean squared difference).

    >>> loss = Perceptual(nn.Conv2d(1, 2, 3))
    >>> image = torch.zeros(1, 1, 8, 8)
    >>> float(loss(image, image))
    0.0
    """

    def __init__(self, features: nn.Module | None = None, weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self._weights = weights
        if features is not None:
            self._network: nn.Module | None = _frozen(features)
        else:
            self._network = None

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """The weighted sum over the feature maps."""
        _check_shapes(output, target)
        if self._network is None:
            self._network = _frozen(_Vgg())
        network = self._network.to(output.device)
        with torch.no_grad():
            wanted = _as_list(network(target))
        found = _as_list(network(output))
        weights = self._weights or [1.0] * len(found)
        if len(weights) != len(found):
            raise ValueError(f"weights ({len(weights)}) must be as many as the feature maps ({len(found)})")
        terms = [w * F.mse_loss(f, g) for w, f, g in zip(weights, found, wanted, strict=True)]
        return torch.stack(terms).sum()


class Lpips(nn.Module):
    """The distance of two images as people see it, by torchmetrics' LPIPS: the mean over the batch.

    Images are brought to three channels; they are of `(B, 3, H, W)` or `(B, 1, H, W)`. The networks are frozen, and
    fetched on first use: torchvision's, and what LPIPS learned on top of them, which torchmetrics has in its package.

    Args:
        net: whose features are compared: `alex`, which agrees with people the most, `vgg` or `squeeze`.

    Raises:
        ImportError: on first use, without torchmetrics.
        RuntimeError: on first use, the network's weights cannot be fetched.

    Source: Zhang, Isola, Efros, Shechtman and Wang 2018, The Unreasonable Effectiveness of Deep Features as a
    Perceptual Metric, equation 1.

    >>> Lpips('squeeze').net
    'squeeze'
    """

    def __init__(self, net: str = "alex") -> None:
        super().__init__()
        if net not in _LPIPS_WEIGHTS:
            raise ValueError(f"net ({net!r}) must be one of {', '.join(_LPIPS_WEIGHTS)}")
        self.net = net
        self._network: nn.Module | None = None

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """The mean distance; 0 for equal images."""
        _check_shapes(output, target)
        if output.ndim != 4 or output.shape[1] not in (1, 3):
            raise ValueError(f"output must be (B, 3, H, W) or (B, 1, H, W), got {tuple(output.shape)}")
        if self._network is None:
            self._network = _frozen(_lpips(self.net))
        network = self._network.to(output.device)
        rgb = [image.float().expand(-1, 3, -1, -1) for image in (output, target)]
        distance: Tensor = network(*rgb).mean()
        return distance


class ComboLoss:
    """A weighted sum of named losses, each logged under its name on logged steps.

    Args:
        parts: name -> loss, or (weight, loss); a loss takes (output, target).

    >>> loss = ComboLoss({'pixel': mse, 'edges': (0.1, mae)})
    >>> round(float(loss(torch.ones(2), torch.zeros(2))), 4)
    1.1
    """

    def __init__(self, parts: Mapping[str, Loss | tuple[float, Loss]]) -> None:
        if not parts:
            raise ValueError("ComboLoss needs at least one part")
        self.parts: dict[str, tuple[float, Loss]] = {
            name: part if isinstance(part, tuple) else (1.0, part) for name, part in parts.items()
        }

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """The sum of weight × loss."""
        total: Tensor | None = None
        for name, (weight, loss) in self.parts.items():
            value = loss(output, target)
            if is_logging():
                log(name, value)
            total = weight * value if total is None else total + weight * value
        assert total is not None
        return total


class _Vgg(nn.Module):
    """VGG-16's features after relu1_2, relu2_2, relu3_3 and relu4_3."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import VGG16_Weights, vgg16  # type: ignore[import-untyped]

        try:
            state = VGG16_Weights.IMAGENET1K_V1.get_state_dict(progress=True, check_hash=True)
        except OSError as error:  # that is what urllib's errors are
            url = VGG16_Weights.IMAGENET1K_V1.url
            raise RuntimeError(
                f"Perceptual() needs the weights {url}, which could not be fetched ({error}); "
                f"put that file into {torch.hub.get_dir()}/checkpoints, or give a network of your own as features"
            ) from error
        with torch.device("meta"):  # nine tenths of its weights are of a classifier that is not needed
            layers = vgg16(weights=None).features
        kept = {key.removeprefix("features."): value for key, value in state.items() if key.startswith("features.")}
        layers.load_state_dict(kept, assign=True)
        self.blocks = nn.ModuleList([layers[:4], layers[4:9], layers[9:16], layers[16:23]])
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        x = ((x + 1) / 2 - self.mean) / self.std  # a grey image broadcasts to three channels
        found = []
        for block in self.blocks:
            x = block(x)
            found.append(x)
        return found


_LPIPS_WEIGHTS = {"alex": "AlexNet_Weights", "vgg": "VGG16_Weights", "squeeze": "SqueezeNet1_1_Weights"}


def _lpips(net: str) -> nn.Module:
    """Returns torchmetrics' network from two images in [-1, 1] to a distance a row."""
    try:
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity
    except ImportError as error:
        raise ImportError("Lpips needs torchmetrics: pip install 'ai-train[metrics]'") from error
    try:
        return LearnedPerceptualImagePatchSimilarity(net_type=net).net  # type: ignore[arg-type]
    except OSError as error:  # that is what urllib's errors are
        import torchvision.models  # type: ignore[import-untyped]

        url = getattr(torchvision.models, _LPIPS_WEIGHTS[net]).IMAGENET1K_V1.url
        raise RuntimeError(
            f"Lpips({net!r}) needs the weights {url}, which could not be fetched ({error}); "
            f"put that file into {torch.hub.get_dir()}/checkpoints"
        ) from error


def _frozen(network: nn.Module) -> nn.Module:
    return network.eval().requires_grad_(False)


def _as_list(value: Tensor | Sequence[Tensor]) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else list(value)


def _gaussian(size: int, sigma: float, like: Tensor) -> Tensor:
    """Computed where it is needed: a kernel that is copied to a device waits for all that the device has to do."""
    x = torch.arange(size, dtype=like.dtype, device=like.device) - (size - 1) / 2
    kernel = torch.exp(-(x**2) / (2 * sigma**2))
    return kernel / kernel.sum()


def _check_shapes(output: Tensor, target: Tensor) -> None:
    if output.shape != target.shape:  # broadcasting would give a number that means something else
        raise ValueError(f"output {tuple(output.shape)} and target {tuple(target.shape)} must agree in shape")
