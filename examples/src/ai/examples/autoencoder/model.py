"""An image autoencoder of residual pyramids."""

from collections.abc import Callable
from typing import cast

from torch import Tensor, nn

import ai.model as m

Block = Callable[[int, int, int], nn.Module]


class ImgAutoencoder(m.Model):
    """Squeezes images through a small code and back.

    `.encode` takes `(batch, nc_img, imsize, imsize)` in [-1, 1] to a code `(batch, nc_code, bottleneck, bottleneck)`,
    `.decode` takes it back. Each level of the pyramids halves or doubles the side, between `nc_min` channels at full
    size and at most `nc_max` at the bottleneck.

    Args:
        imsize: Side of the images, a power of two times the bottleneck.
        bottleneck: Side of the code.
        nc_img: Channels of the images.
        nc_min: Channels at full size.
        nc_max: Most channels at any size.
        enc_block: Makes a level of the encoder from (size, channels in, channels out).
        dec_block: Makes a level of the decoder.
        nc_code: Channels of the code; None leaves it as wide as the pyramid ends, which is more numbers than pixels
            unless the bottleneck is narrow.

    Example:
        >>> import torch
        >>> model = ImgAutoencoder(32, 4, nc_img=1, nc_min=8, nc_code=2).init(seed=0)
        >>> x = torch.zeros(5, 1, 32, 32)
        >>> model.encode(x).shape, model(x).shape
        (torch.Size([5, 2, 4, 4]), torch.Size([5, 1, 32, 32]))
    """

    def __init__(
        self,
        imsize: int,
        bottleneck: int,
        nc_img: int = 3,
        nc_min: int = 32,
        nc_max: int = 512,
        enc_block: Block = lambda size, nc1, nc2: m.resblk(nc1, nc2, stride=2),
        dec_block: Block = lambda size, nc1, nc2: m.resblk(nc1, nc2, stride=0.5),
        *,
        nc_code: int | None = None,
    ) -> None:
        super().__init__()
        down = m.pyramid(imsize, bottleneck, nc_min, nc_max, enc_block)
        up = m.pyramid(bottleneck, imsize, nc_min, nc_max, dec_block)
        narrow = [] if nc_code is None else [m.conv(cast(int, down.nc_out), nc_code, 1)]
        widen = [] if nc_code is None else [m.conv(nc_code, cast(int, up.nc_in), 1)]
        self.encode = m.seq(m.conv(nc_img, nc_min, actv="mish"), down, *narrow)
        self.decode = m.seq(*widen, up, m.conv(nc_min, nc_img, actv=bounded, init_gain=m.actv_gain("tanh")))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the reconstruction of `(batch, nc_img, imsize, imsize)` images."""
        return self.decode(self.encode(x))  # type: ignore[no-any-return]


def bounded(x: Tensor) -> Tensor:
    """Returns the tanh of `x`, in single precision.

    In half precision all pixels beyond 3.5 would be 1, from where a wrong one gets no gradient.
    """
    return x.float().tanh()
