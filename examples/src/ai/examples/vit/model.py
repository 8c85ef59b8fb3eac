"""The Vision Transformer: an image as a sequence of patches.

Axes: `B` batch, `T` tokens.
"""

from functools import partial
from typing import Literal, cast

import torch
from torch import Tensor, nn

import ai.model as m


class Model(m.Model):
    """Classifies images: `(B, nc_img, imsize, imsize)` in [-1, 1] to `(B, n_classes)` logits.

    The defaults are ViT-Ti/16; S, B and L have (dim, depth, num_heads) of (384, 12, 6), (768, 12, 12), (1024, 24, 16).

    Args:
        imsize: Side of the images.
        patch_size: Side of a patch; divides `imsize`.
        nc_img: Channels of the images.
        n_classes: Number of classes.
        dim: Width of a token.
        depth: Number of blocks.
        num_heads: Attention heads in a block; divides `dim`.
        mlp_dim: Width inside a block's MLP; None for `4 · dim`.
        pool: What is classified: `cls`, a learned token put before the patches, or the `mean` of the patches.
        drop_path: Stochastic depth of the last block; it grows linearly from 0 at the first.
        dropout: Of attention weights and MLPs.

    Sources:
        Dosovitskiy et al. 2021, An Image Is Worth 16x16 Words, equations 1 to 4; Huang et al. 2016, Deep Networks with
        Stochastic Depth.

    Example:
        >>> Model(32, 4, dim=24, depth=2, n_classes=10).init(seed=0)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        imsize: int = 224,
        patch_size: int = 16,
        nc_img: int = 3,
        n_classes: int = 1000,
        *,
        dim: int = 192,
        depth: int = 12,
        num_heads: int = 3,
        mlp_dim: int | None = None,
        pool: Literal["cls", "mean"] = "cls",
        drop_path: float = 0.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if patch_size < 1 or imsize % patch_size:
            raise ValueError(f"patch_size ({patch_size}) must divide imsize ({imsize})")
        if pool not in ("cls", "mean"):
            raise ValueError(f"pool must be 'cls' or 'mean', got {pool!r}")
        self.n_classes = n_classes
        self.side = imsize // patch_size
        self.patches = m.patch_emb(nc_img, dim, patch_size)
        self.cls = m.param(1, dim, std=0.02) if pool == "cls" else None
        self.positions = m.pos_emb(self.side**2 + (pool == "cls"), dim)
        norm = partial(m.norm.layer, eps=1e-6)
        self.blocks = m.tx_enc(depth, dim, num_heads, mlp_dim=mlp_dim, norm=norm, drop=drop_path, dropout=dropout)
        self.head = m.fc(dim, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the logits."""
        tokens = self.blocks(self.embed(x))
        return self.head(tokens[:, 0] if self.cls is not None else tokens.mean(1))  # type: ignore[no-any-return]

    def embed(self, x: Tensor) -> Tensor:
        """Returns what enters the first block: `(B, T, dim)`, the class token first where there is one."""
        tokens = self.patches(x)
        if self.cls is not None:
            tokens = torch.cat([self.cls(tokens), tokens], 1)
        return self.positions(tokens)  # type: ignore[no-any-return]

    def layer_of(self, name: str) -> int:
        """Returns a parameter's layer for `opt.layerwise_decay`: 0 is the embedding, 1 the first block, …."""
        if name.startswith("blocks.blocks."):
            return int(name.split(".")[2]) + 1
        return 0 if name.startswith(("patches", "cls", "positions")) else len(self.each_block()) + 1

    def each_block(self) -> nn.ModuleList:
        """Returns the blocks, first to last; each has `norm1`, `attn`, `norm2` and `mlp`."""
        return cast(nn.ModuleList, self.blocks.blocks)
