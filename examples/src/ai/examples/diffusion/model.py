"""Two networks that predict clean data from noisy data: an MLP for points in the plane, a UNet for images.

Both are called as `net(x, noise, label)`: `x` noisy data scaled to unit variance, `noise` `(batch,)` the noise level in
logarithmic form, `label` `(batch,)` classes or None. `m.DiffusionModel` wraps them: it scales, trains and samples.
"""

from collections.abc import Collection, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ai.model as m

# What ends a residual branch starts near nothing, but not at it, so that all weights learn.
_SMALL = 1e-3


class MLP(nn.Module):
    """A residual multi-layer perceptron for `(batch, dim_data)` points.

    Args:
        dim_data: Numbers in a point.
        n_classes: Classes to condition on; 0 for none.
        dim: Width.
        n_layers: Residual layers, each told the noise level.

    Example:
        >>> MLP()(torch.zeros(5, 2), torch.zeros(5)).shape
        torch.Size([5, 2])
    """

    def __init__(self, dim_data: int = 2, *, n_classes: int = 0, dim: int = 128, n_layers: int = 4):
        super().__init__()
        self.condition = Condition(n_classes, dim, dim)
        self.enter = m.fc(dim_data, dim)
        self.layers = nn.ModuleList(MLPLayer(dim) for _ in range(n_layers))
        self.leave = m.fc(dim, dim_data)

    def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None) -> Tensor:
        """Returns `(batch, dim_data)`."""
        condition = self.condition(noise, label)
        x = self.enter(x)
        for layer in self.layers:
            x = layer(x, condition)
        out: Tensor = self.leave(F.silu(x))
        return out


class MLPLayer(nn.Module):
    """A residual layer whose normalised input is scaled and shifted by the condition."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = m.norm.layer(dim)
        self.affine = m.fc(dim, 2 * dim)
        self.main = m.seq(m.fc(dim, dim, actv="silu"), m.fc(dim, dim, init_gain=_SMALL))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Returns `(batch, dim)`."""
        scale, shift = self.affine(condition).chunk(2, 1)
        out: Tensor = x + self.main(self.norm(x) * (1 + scale) + shift)
        return out


class UNet(nn.Module):
    """The "DDPM++" network for `(batch, nc_img, imsize, imsize)` images.

    The defaults are those of CIFAR-10. Skips are kept after every block of the encoder, and each block of the decoder
    takes one; the first block of the decoder, and the blocks at `attn_sizes`, have self-attention.

    Args:
        imsize: Height and width.
        nc_img: Channels of an image.
        n_classes: Classes to condition on; 0 for none.
        nc: Base number of channels.
        nc_mult: Channels of each level over `nc`; each level but the first halves the image.
        n_blocks: Blocks a level.
        attn_sizes: Image sizes at which blocks have self-attention.
        dropout: Probability, within blocks.

    Source:
        Song et al. 2021, "Score-Based Generative Modeling through Stochastic Differential Equations", as configured in
        Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", table 7.

    Example:
        >>> net = UNet(8, 1, n_classes=10, nc=8, nc_mult=(1, 2), n_blocks=1, attn_sizes=(4,))
        >>> net(torch.zeros(2, 1, 8, 8), torch.zeros(2), torch.tensor([3, 7])).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self,
        imsize: int = 32,
        nc_img: int = 3,
        *,
        n_classes: int = 0,
        nc: int = 128,
        nc_mult: Sequence[int] = (2, 2, 2),
        n_blocks: int = 4,
        attn_sizes: Collection[int] = (16,),
        dropout: float = 0.1,
    ):
        super().__init__()
        if imsize % 2 ** (len(nc_mult) - 1):
            raise ValueError(
                f"imsize ({imsize}) must be divisible by 2 once for each of the {len(nc_mult)} levels but one"
            )
        dim = 4 * nc
        self.condition = Condition(n_classes, nc, dim)
        self.enter = m.conv(nc_img, nc)
        self.encoder = nn.ModuleList()
        self.decoder = nn.ModuleList()

        width, skips = nc, [nc]
        sizes = [imsize // 2**level for level in range(len(nc_mult))]
        for level, size in enumerate(sizes):
            if level:
                self.encoder.append(UNetBlock(width, width, dim, resample="down", dropout=dropout))
                skips.append(width)
            for _ in range(n_blocks):
                out = nc * nc_mult[level]
                self.encoder.append(UNetBlock(width, out, dim, attn=size in attn_sizes, dropout=dropout))
                width = out
                skips.append(width)
        self.middle = nn.ModuleList(UNetBlock(width, width, dim, attn=i == 0, dropout=dropout) for i in range(2))
        for level, size in reversed(list(enumerate(sizes))):
            if size != sizes[-1]:
                self.decoder.append(UNetBlock(width, width, dim, resample="up", dropout=dropout))
            for i in range(n_blocks + 1):
                out = nc * nc_mult[level]
                attn = size in attn_sizes and i == n_blocks
                self.decoder.append(UNetBlock(width + skips.pop(), out, dim, attn=attn, dropout=dropout))
                width = out
        self.leave = m.seq(_norm(width), nn.SiLU(), m.conv(width, nc_img, init_gain=_SMALL))

    def forward(self, x: Tensor, noise: Tensor, label: Tensor | None = None) -> Tensor:
        """Returns `(batch, nc_img, imsize, imsize)`."""
        condition = F.silu(self.condition(noise, label))
        x = self.enter(x)
        skips = [x]
        for block in self.encoder:
            x = block(x, condition)
            skips.append(x)
        for block in self.middle:
            x = block(x, condition)
        for block in self.decoder:
            if block.resample != "up":
                x = torch.cat([x, skips.pop()], 1)
            x = block(x, condition)
        out: Tensor = self.leave(x)
        return out


class UNetBlock(nn.Module):
    """A residual block of two convolutions, told the condition between them; self-attention may follow."""

    def __init__(self, nc1: int, nc2: int, dim: int, *, resample: str = "", attn: bool = False, dropout: float = 0.0):
        super().__init__()
        self.resample = resample
        self.norm1 = _norm(nc1)
        self.conv1 = m.conv(nc1, nc2)
        self.affine = m.fc(dim, nc2, init_gain=1.0)
        self.norm2 = _norm(nc2)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = m.conv(nc2, nc2, init_gain=_SMALL)
        self.shortcut = m.conv(nc1, nc2, k=1) if nc1 != nc2 or resample else nn.Identity()
        self.attn = Attention(nc2) if attn else None

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Returns `(batch, nc2, height, width)`, half or twice the size where the block resamples."""
        y: Tensor = self.conv1(self._resampled(F.silu(self.norm1(x))))
        y = F.silu(self.norm2(y + self.affine(condition)[:, :, None, None]))
        y = self.conv2(self.dropout(y))
        # Divided by √2, the sum of two branches of unit variance keeps unit variance.
        y = (y + self.shortcut(self._resampled(x))) * 0.5**0.5
        if self.attn is not None:
            y = self.attn(y)
        return y

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        if self.resample == "up":
            return F.interpolate(x, scale_factor=2.0, mode="nearest")
        return x


class Attention(nn.Module):
    """Residual self-attention of one head over the pixels of `(batch, nc, height, width)`."""

    def __init__(self, nc: int):
        super().__init__()
        self.norm = _norm(nc)
        self.qkv = m.conv(nc, 3 * nc, k=1)
        self.out = m.conv(nc, nc, k=1, init_gain=_SMALL)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the shape of `x`."""
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).unsqueeze(1).chunk(3, -1)  # (B, 1, pixels, nc)
        y = F.scaled_dot_product_attention(q, k, v).squeeze(1).transpose(1, 2).reshape(x.shape)
        out: Tensor = (x + self.out(y)) * 0.5**0.5
        return out


class Condition(nn.Module):
    """One `(batch, dim)` vector that tells a network its noise level and, if there are classes, the class.

    Rows without a class (None, or a label of -1) get the noise level alone: that is the unconditional model which
    classifier-free guidance needs.

    Args:
        n_classes: Number of classes; 0 for none.
        dim_noise: Width of the noise level's sines and cosines, even.
        dim: Width of the vector.
    """

    frequencies: Tensor

    def __init__(self, n_classes: int, dim_noise: int, dim: int):
        super().__init__()
        self.n_classes = n_classes
        self.register_buffer("frequencies", 1e4 ** -torch.linspace(0, 1, dim_noise // 2), persistent=False)
        self.label = m.fc(n_classes, dim_noise) if n_classes else None
        self.net = m.seq(m.fc(dim_noise, dim, actv="silu"), m.fc(dim, dim))

    def forward(self, noise: Tensor, label: Tensor | None) -> Tensor:
        """Returns `(batch, dim)`."""
        angle = noise[:, None] * self.frequencies
        x = torch.cat([angle.cos(), angle.sin()], 1)
        if self.label is not None and label is not None:
            # One column too many, dropped again, gives rows of zeros where there is no class.
            index = torch.where(label < 0, self.n_classes, label.long())
            one_hot = F.one_hot(index, self.n_classes + 1)[:, :-1]
            x = x + self.label(one_hot.to(x) * self.n_classes**0.5)
        out: Tensor = self.net(x)
        return out


def _norm(nc: int) -> nn.Module:
    """Returns group normalisation: 32 groups, or fewer that divide `nc` where a group would have under 4 channels."""
    n_groups = max(n for n in range(1, min(32, max(1, nc // 4)) + 1) if nc % n == 0)
    return nn.GroupNorm(n_groups, nc, eps=1e-6)
