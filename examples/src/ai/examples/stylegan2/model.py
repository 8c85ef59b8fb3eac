"""StyleGAN2: a mapping network, a synthesis network with skip connections to RGB, a discriminator.

Weights are drawn with unit variance and scaled where they are used, so that Adam moves all of them alike.

Axes: `B` batch, `L` style inputs of the synthesis network, `W` width of a style.

Sources:
    Karras et al. 2020, "Analyzing and Improving the Image Quality of StyleGAN" (StyleGAN2), configuration F.
    Karras et al. 2020, "Training Generative Adversarial Networks with Limited Data" (ADA), for class conditioning and
    the names of the published weights.
"""

import math
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ai.model as m
from ai.model.init import draw_normal

_KERNEL = (1, 3, 3, 1)


class Generator(m.Model):
    """Makes `(B, nc_img, imsize, imsize)` images from `(B, z_dim)` latents.

    Args:
        imsize: Height and width, a power of 2.
        nc_img: Channels of an image.
        nc_base: A layer at size `s` has `nc_base / s` channels …
        nc_max: … but this many at most.
        z_dim: Width of a latent.
        w_dim: Width of a style.
        n_mapping: Layers of the mapping network.
        n_classes: Classes to condition on; 0 for none.

    Example:
        >>> generator = Generator(16, nc_max=8, z_dim=4, w_dim=4, n_mapping=2).init(seed=0)
        >>> generator(torch.randn(2, 4)).shape
        torch.Size([2, 3, 16, 16])
    """

    path_mean: Tensor

    def __init__(
        self,
        imsize: int = 256,
        nc_img: int = 3,
        *,
        nc_base: int = 32768,
        nc_max: int = 512,
        z_dim: int = 512,
        w_dim: int = 512,
        n_mapping: int = 8,
        n_classes: int = 0,
    ):
        super().__init__()
        self.imsize, self.z_dim, self.n_classes = imsize, z_dim, n_classes
        self.synthesis = Synthesis(imsize, nc_img, nc_base, nc_max, w_dim)
        self.n_styles = self.synthesis.n_styles
        self.mapping = Mapping(z_dim, w_dim, self.n_styles, n_mapping, n_classes)
        self.register_buffer("path_mean", torch.zeros(()))  # of the path-length regulariser

    @torch.no_grad()
    def init_params(self, generator: torch.Generator | None) -> None:
        """Sets the mean path length to zero."""
        self.path_mean.zero_()

    def forward(
        self, z: Tensor, label: Tensor | None = None, *, truncation: float = 1.0, noise: str | None = None
    ) -> Tensor:
        """Returns images, nominally in [-1, 1].

        Args:
            z: `(B, z_dim)`, standard normal.
            label: `(B,)` classes, for a conditional generator.
            truncation: 1 takes styles as they come; towards 0 variety is traded for typicality.
            noise: As in `Synthesis`.
        """
        images: Tensor = self.synthesis(self.styles(z, label, truncation=truncation), noise=noise)
        return images

    def styles(
        self, z: Tensor, label: Tensor | None = None, *, truncation: float = 1.0, truncation_layers: int | None = None
    ) -> Tensor:
        """Returns `(B, L, W)` styles; the first `truncation_layers` (None: all) are drawn towards the mean style."""
        w: Tensor = self.mapping(z, label)
        if truncation != 1:
            part = w[:, :truncation_layers]
            w = torch.cat([torch.lerp(self.mapping.w_avg, part, truncation), w[:, part.shape[1] :]], 1)
        return w

    @torch.no_grad()
    def measure_w_avg(self, n: int = 10_000, *, seed: int = 0) -> None:
        """Sets the mean style, to which truncation leads, to that of `n` latents under the present weights.

        Training follows it too, but for the weights in training: measure it for averaged ones.
        """
        training = self.training
        self.eval()
        draws = torch.Generator().manual_seed(seed)
        z = torch.randn(n, self.z_dim, generator=draws, device="cpu").to(self.mapping.w_avg)
        label = None
        if self.n_classes:
            label = torch.randint(self.n_classes, (n,), generator=draws, device="cpu").to(z.device)
        self.mapping.w_avg.copy_(self.mapping(z, label)[:, 0].mean(0))
        self.train(training)


class Mapping(nn.Module):
    """Maps `(B, z_dim)` latents, and classes if any, to `(B, n_styles, w_dim)` styles, all `n_styles` alike.

    A `z_dim` of 0 maps classes alone, as the conditional discriminator does.
    """

    w_avg: Tensor

    def __init__(self, z_dim: int, w_dim: int, n_styles: int, n_layers: int, n_classes: int):
        super().__init__()
        self.z_dim, self.n_styles, self.n_classes = z_dim, n_styles, n_classes
        self.embed = m.fc(n_classes, w_dim, scale_w=True) if n_classes else None
        width = z_dim + (w_dim if n_classes else 0)
        widths = [width, *[w_dim] * n_layers]
        # A hundredth of the learning rate keeps this deep stack, whose input is never noisy, from overshooting.
        self.layers = m.seq(*(m.fc(n1, n2, actv=_leaky, scale_w=True, lr_mult=0.01) for n1, n2 in pairwise(widths)))
        if z_dim:
            self.register_buffer("w_avg", torch.zeros(w_dim))

    @torch.no_grad()
    def init_params(self, generator: torch.Generator | None) -> None:
        """Sets the mean style to zero."""
        if self.z_dim:
            self.w_avg.zero_()

    def forward(self, z: Tensor | None, label: Tensor | None = None) -> Tensor:
        """Returns `(B, n_styles, w_dim)`."""
        parts = []
        if self.z_dim:
            if z is None or z.ndim != 2 or z.shape[1] != self.z_dim:
                shape = None if z is None else tuple(z.shape)
                raise ValueError(f"z must have shape (batch, {self.z_dim}), not {shape}")
            parts.append(m.f.normalize_2nd_moment(z))
        if self.embed is not None:
            if label is None:
                raise ValueError(f"label must be given: the network knows {self.n_classes} classes")
            one_hot = m.f.one_hot(label, self.n_classes).to(next(self.embed.parameters()))
            parts.append(m.f.normalize_2nd_moment(self.embed(one_hot)))
        w: Tensor = self.layers(torch.cat(parts, 1))
        if self.training and self.z_dim:
            with torch.no_grad():
                self.w_avg.lerp_(w.mean(0).to(self.w_avg), 1 - 0.998)
        return w[:, None].expand(-1, self.n_styles, -1)


class Synthesis(nn.Module):
    """Makes images from `(B, L, W)` styles, one for each layer.

    From a learned 4 x 4 constant, each size has two styled convolutions (4 x 4 one), the first of which doubles the
    size; what each size adds to the image is turned to RGB and summed, smaller sums up-sampled.
    """

    def __init__(self, imsize: int, nc_img: int, nc_base: int, nc_max: int, w_dim: int):
        super().__init__()
        self.sizes = image_sizes(imsize)
        self.w_dim = w_dim
        self.n_styles = 2 * len(self.sizes)
        nc = {size: min(nc_base // size, nc_max) for size in self.sizes}
        self.const = nn.Parameter(torch.randn(nc[4], 4, 4))
        self.blocks = nn.ModuleDict(
            {
                str(size): SynthesisBlock(nc[size // 2] if size > 4 else 0, nc[size], nc_img, w_dim, size)
                for size in self.sizes
            }
        )

    @torch.no_grad()
    def init_params(self, generator: torch.Generator | None) -> None:
        """Draws the constant."""
        draw_normal(self.const, 1.0, generator)

    def forward(self, w: Tensor, *, noise: str | None = None) -> Tensor:
        """Returns `(B, nc_img, imsize, imsize)`.

        Args:
            w: `(B, L, W)`; the toRGB layer of a size shares its style with the first convolution of the next.
            noise: What is added within the layers: `"random"`, the `"fixed"` maps drawn at init, or `"none"`; None is
                random in training and fixed in evaluation.
        """
        if w.ndim != 3 or w.shape[1:] != (self.n_styles, self.w_dim):
            raise ValueError(f"w must have shape (batch, {self.n_styles}, {self.w_dim}), not {tuple(w.shape)}")
        if noise not in (None, "random", "fixed", "none"):
            raise ValueError(f"noise must be 'random', 'fixed', 'none' or None, not {noise!r}")
        noise = noise or ("random" if self.training else "fixed")
        x = self.const.expand(w.shape[0], -1, -1, -1)
        image: Tensor | None = None
        for level, block in enumerate(self.blocks.values()):
            x, image = block(x, image, w[:, max(0, 2 * level - 1) : 2 * level + 2], noise)
        assert image is not None
        return image


class SynthesisBlock(nn.Module):
    """What happens at one size: up to two styled convolutions, and an addition to the image."""

    def __init__(self, nc1: int, nc2: int, nc_img: int, w_dim: int, size: int):
        super().__init__()
        self.conv0 = StyledConv(nc1, nc2, w_dim, size, up=True) if nc1 else None  # not at 4 x 4
        self.conv1 = StyledConv(nc2, nc2, w_dim, size)
        self.to_rgb = ToRGB(nc2, nc_img, w_dim)

    def forward(self, x: Tensor, image: Tensor | None, w: Tensor, noise: str) -> tuple[Tensor, Tensor]:
        """Returns features and image, twice the size of what came in but at 4 x 4; `w` has one style a layer."""
        *first, second, last = w.unbind(1)
        if self.conv0 is not None:
            x = self.conv0(x, first[0], noise)
        x = self.conv1(x, second, noise)
        rgb: Tensor = self.to_rgb(x, last)
        return x, rgb if image is None else m.f.resample(image, 0.5, _KERNEL) + rgb


class StyledConv(nn.Module):
    """A 3 x 3 modulated and demodulated convolution, noise, bias and leaky ReLU; `up` doubles the size first."""

    noise: Tensor

    def __init__(self, nc1: int, nc2: int, w_dim: int, imsize: int, *, up: bool = False):
        super().__init__()
        self.conv = ModulatedConv(nc1, nc2, w_dim, 3, up=up)
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(nc2))
        self.register_buffer("noise", torch.randn(imsize, imsize))

    @torch.no_grad()
    def init_params(self, generator: torch.Generator | None) -> None:
        """Draws the fixed noise; strength and bias start at zero."""
        draw_normal(self.noise, 1.0, generator)
        self.noise_strength.zero_()
        self.bias.zero_()

    def forward(self, x: Tensor, w: Tensor, noise: str) -> Tensor:
        """Returns `(B, nc2, imsize, imsize)`."""
        x = self.conv(x, w)
        if noise == "random":
            x = x + self.noise_strength * torch.randn_like(x[:, :1])
        elif noise == "fixed":
            x = x + self.noise_strength * self.noise
        return _leaky(x + self.bias[:, None, None])


class ToRGB(nn.Module):
    """A modulated 1 x 1 convolution to the channels of an image, not demodulated."""

    def __init__(self, nc: int, nc_img: int, w_dim: int):
        super().__init__()
        self.conv = ModulatedConv(nc, nc_img, w_dim, 1, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(nc_img))

    @torch.no_grad()
    def init_params(self, generator: torch.Generator | None) -> None:
        """Sets the bias to zero."""
        self.bias.zero_()

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Returns `(B, nc_img, height, width)`."""
        out: Tensor = self.conv(x, w) + self.bias[:, None, None]
        return out


class ModulatedConv(nn.Module):
    """A convolution whose kernel is scaled per image: by styles along its inputs, then to unit norm along its outputs.

    `up` doubles the size first. Such a layer stores its kernel mirrored, as the published files have it.
    """

    def __init__(self, nc1: int, nc2: int, w_dim: int, k: int, *, up: bool = False, demodulate: bool = True):
        super().__init__()
        self.up, self.demodulate = up, demodulate
        self.affine = m.fc(w_dim, nc1, scale_w=True, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(nc2, nc1, k, k))

    @torch.no_grad()
    def init_params(self, generator: torch.Generator | None) -> None:
        """Draws the weights with unit variance."""
        draw_normal(self.weight, 1.0, generator)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """Returns `(B, nc2, height, width)`."""
        weight: Tensor = self.weight.flip(2, 3) if self.up else self.weight
        if not self.demodulate:  # demodulation takes any factor out again
            weight = weight / math.sqrt(weight[0].numel())
        style, kernel = self.affine(w), _KERNEL if self.up else None
        return m.f.modconv(x, weight, style, stride=0.5 if self.up else 1, demod=self.demodulate, kernel=kernel)


class Discriminator(m.Model):
    """Scores `(B, nc_img, imsize, imsize)` images with `(B, 1)` logits, positive for real.

    Args:
        imsize: Height and width, a power of 2.
        nc_img: Channels of an image.
        nc_base: A layer at size `s` has `nc_base / s` channels …
        nc_max: … but this many at most.
        n_classes: Classes to condition on (by projection); 0 for none.
        group: Images in a group of the minibatch standard deviation.
        architecture: `resnet` (each size has a shortcut) or `orig` (none), which is the published CIFAR networks'.

    Example:
        >>> Discriminator(16, nc_max=8).init(seed=0)(torch.zeros(4, 3, 16, 16)).shape
        torch.Size([4, 1])
    """

    def __init__(
        self,
        imsize: int = 256,
        nc_img: int = 3,
        *,
        nc_base: int = 32768,
        nc_max: int = 512,
        n_classes: int = 0,
        group: int = 4,
        architecture: Literal["resnet", "orig"] = "resnet",
    ):
        super().__init__()
        if architecture not in ("resnet", "orig"):
            raise ValueError(f"architecture must be 'resnet' or 'orig', not {architecture!r}")
        sizes = image_sizes(imsize)
        self.imsize, self.n_classes = imsize, n_classes
        self.shape_in = (nc_img, imsize, imsize)
        nc = {size: min(nc_base // size, nc_max) for size in sizes}
        self.from_rgb = equalised_conv(nc_img, nc[imsize], 1)
        self.blocks = nn.ModuleDict(
            {
                str(size): DiscriminatorBlock(nc[size], nc[size // 2], shortcut=architecture == "resnet")
                for size in reversed(sizes[1:])
            }
        )
        self.deviation = m.minibatch_std(group)
        self.conv = equalised_conv(nc[4] + 1, nc[4], 3)
        self.fc = m.fc(nc[4] * 16, nc[4], actv=_leaky, scale_w=True)
        self.out = m.fc(nc[4], nc[4] if n_classes else 1, scale_w=True)
        self.mapping = Mapping(0, nc[4], 1, 8, n_classes) if n_classes else None

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Returns `(B, 1)` logits."""
        if tuple(x.shape[1:]) != self.shape_in:
            expected = ", ".join(map(str, self.shape_in))
            raise ValueError(f"x must have shape (batch, {expected}), not {tuple(x.shape)}")
        x = self.from_rgb(x)
        for block in self.blocks.values():
            x = block(x)
        x = self.conv(self.deviation(x))
        logits: Tensor = self.out(self.fc(x.flatten(1)))
        if self.mapping is not None:
            wanted = self.mapping(None, label)[:, 0]
            logits = (logits * wanted).sum(1, keepdim=True) / math.sqrt(wanted.shape[1])
        return logits


class DiscriminatorBlock(nn.Module):
    """Two 3 x 3 convolutions that halve the size; a linear shortcut beside them, the sum scaled to unit variance."""

    def __init__(self, nc1: int, nc2: int, *, shortcut: bool = True):
        super().__init__()
        self.conv0 = equalised_conv(nc1, nc1, 3)
        self.conv1 = equalised_conv(nc1, nc2, 3, down=True)
        self.skip = m.conv(nc1, nc2, 1, 2, scale_w=True, bias=False, blur=_KERNEL) if shortcut else None

    def forward(self, x: Tensor) -> Tensor:
        """Returns `(B, nc2, height / 2, width / 2)`."""
        out: Tensor = self.conv1(self.conv0(x))
        return out if self.skip is None else (out + self.skip(x)) * math.sqrt(0.5)


def equalised_conv(nc1: int, nc2: int, k: int, *, down: bool = False) -> nn.Module:
    """Returns a convolution with an equalised learning rate and leaky ReLU; `down` filters and halves the size."""
    return m.conv(
        nc1, nc2, k, 2 if down else 1, "lrelu", gain=math.sqrt(2), scale_w=True, blur=_KERNEL if down else None
    )


def image_sizes(imsize: int) -> list[int]:
    """Returns 4, 8, … `imsize`.

    Raises:
        ValueError: `imsize` is no power of 2, or below 8.
    """
    if imsize < 8 or imsize & (imsize - 1):
        raise ValueError(f"imsize must be a power of 2 of at least 8, not {imsize}")
    return [2**i for i in range(2, imsize.bit_length())]


def _leaky(x: Tensor) -> Tensor:
    """Leaky ReLU of slope 0.2, scaled to keep the variance."""
    return F.leaky_relu(x, 0.2) * math.sqrt(2)
