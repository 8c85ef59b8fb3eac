"""The block of diffusion transformers."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ai.model import f
from ai.model.arguments import check_at_least, check_real, check_whole
from ai.model.attention import attn
from ai.model.init import draw_weight, fill
from ai.model.norm import layer
from ai.model.transformer import mlp


class _DiT(nn.Module):
    takes_z = True

    def __init__(self, dim: int, n_heads: int, z_dim: int, mlp_dim: int, init_gain: float):
        super().__init__()
        self.init_gain = init_gain
        self.norm1, self.attn = layer(dim, eps=1e-6, affine=False), attn(dim, n_heads)
        self.norm2, self.mlp = layer(dim, eps=1e-6, affine=False), mlp(dim, mlp_dim, "gelu_tanh")
        self.style = nn.Linear(z_dim, 6 * dim)
        self.init_params(None)

    def init_params(self, generator: torch.Generator | None) -> None:
        if self.init_gain:
            draw_weight(self.style.weight, None, self.init_gain, generator)
        else:
            fill(self.style.weight, 0.0)
        fill(self.style.bias, 0.0)

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.style(F.silu(z)).chunk(6, 1)
        x = x + gate1.unsqueeze(1) * self.attn(f.modulate(self.norm1(x), shift1, scale1))
        out: Tensor = x + gate2.unsqueeze(1) * self.mlp(f.modulate(self.norm2(x), shift2, scale2))
        return out


def dit_blk(dim: int, n_heads: int, z_dim: int, *, mlp_dim: int | None = None, init_gain: float = 0.0) -> nn.Module:
    """Returns a transformer block steered by a vector, called as `(x, z)`: tokens `(B, T, dim)` by `(B, z_dim)`.

    Shift, scale and gate of both branches are functions of z (adaLN-Zero).

    Args:
        dim: Width of a token.
        n_heads: Number of heads.
        z_dim: Width of z.
        mlp_dim: Width inside the MLP; None for `4 · dim`.
        init_gain: Of the functions of z. Zero is the published choice, with which each block begins as the identity.

    Source: Peebles and Xie, 2023, Scalable Diffusion Models with Transformers, figure 3.

    Example:
        >>> x = torch.randn(2, 5, 8)
        >>> bool((dit_blk(8, 2, 4)(x, torch.randn(2, 4)) == x).all())
        True
    """
    check_whole(dim=dim, n_heads=n_heads)
    check_at_least(1, z_dim=z_dim)
    check_whole(or_none=True, mlp_dim=mlp_dim)
    check_real(init_gain=init_gain)
    return _DiT(dim, n_heads, z_dim, 4 * dim if mlp_dim is None else mlp_dim, init_gain)
