"""The fully-connected block."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ai.model.activation import Activation, actv_gain
from ai.model.activation import actv as make_actv
from ai.model.arguments import check_at_least, check_real, elsewhere
from ai.model.init import draw_normal, draw_weight, fill, like_torchs


class _Linear(nn.Module):
    def __init__(
        self,
        n1: int,
        n2: int,
        actv: Activation,
        bias: bool,
        bias_init: float,
        scale_w: bool,
        lr_mult: float,
        dropout: float,
        init_gain: float,
    ):
        super().__init__()
        self.n1, self.n2, self.bias_init, self.scale_w, self.lr_mult = n1, n2, bias_init, scale_w, lr_mult
        self.weight = nn.Parameter(torch.empty(n2, n1))
        self.bias = nn.Parameter(torch.empty(n2)) if bias else None
        self.actv = make_actv(actv)
        self.dropout = nn.Dropout(dropout) if dropout else None
        self.init_gain = init_gain
        self.weight_scale = lr_mult * (actv_gain(actv) / math.sqrt(n1) if scale_w else 1.0)
        self._follows = actv if isinstance(actv, str) else None
        self.init_params(None)

    def init_params(self, generator: torch.Generator | None) -> None:
        if self.scale_w:
            draw_normal(self.weight, self.init_gain / self.lr_mult, generator)
        else:
            draw_weight(self.weight, self._follows, self.init_gain / self.lr_mult, generator)
        if self.bias is not None:
            fill(self.bias, self.bias_init / self.lr_mult)

    def mark_small(self, scale: float) -> bool:
        self.init_gain = scale
        return True

    def forward(self, x: Tensor) -> Tensor:
        weight: Tensor = self.weight
        bias: Tensor | None = self.bias
        if self.weight_scale != 1:
            weight = weight * self.weight_scale
        if bias is not None and self.lr_mult != 1:
            bias = bias * self.lr_mult
        x = F.linear(x, weight, bias)
        if self.actv is not None:
            x = self.actv(x)
        return x if self.dropout is None else self.dropout(x)

    def extra_repr(self) -> str:
        return f"{self.n1}, {self.n2}"


@elsewhere(activation="actv", in_features="n1", out_features="n2", units="n2", use_bias="bias")
def fc(
    n1: int,
    n2: int,
    actv: Activation = None,
    bias: bool = True,
    bias_init: float = 0.0,
    *,
    scale_w: bool = False,
    lr_mult: float = 1.0,
    dropout: float = 0.0,
    init_gain: float | None = None,
) -> nn.Module:
    """Returns a fully-connected layer, then an activation, then dropout: `(…, n1)` to `(…, n2)`.

    Without activation, scaling and dropout it is a `torch.nn.Linear`; the others have the same names of parameters, and
    `m.to_torch` makes torch modules of them.

    Args:
        n1: Features in.
        n2: Features out.
        actv: Activation by name (`leaky_relu` has slope 0.2), or a callable.
        bias: Whether there is one.
        bias_init: What it starts from.
        scale_w: Equalised learning rate: weights are N(0, 1) and scaled as they are used, by `actv_gain(actv) / √n1`.
        lr_mult: Multiplies the learning rate of this layer, by the same means.
        dropout: Probability of a zero.
        init_gain: Multiplies the weights as they are drawn; below 1 for the end of a residual branch. None is 1, but
            √(n2 / n1), at least ½, where the layer narrows and no activation follows, as at a classifier's output.

    Sources: Karras et al., 2018, Progressive Growing of GANs, section 4.1 (equalised learning rate); Yang, Simon and
    Bernstein, 2023, A Spectral Condition for Feature Learning, section 3 (the scale of narrowing layers).

    Example:
        >>> fc(8, 4, actv="relu")(torch.zeros(2, 8)).shape
        torch.Size([2, 4])
    """
    check_at_least(1, n1=n1, n2=n2)
    check_real(bias_init=bias_init, lr_mult=lr_mult, dropout=dropout)
    check_real(or_none=True, init_gain=init_gain)
    if not lr_mult > 0:
        raise ValueError(f"lr_mult ({lr_mult}) must be above 0")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout ({dropout}) must lie in [0, 1)")
    if not bias and bias_init != 0:
        raise ValueError(f"bias_init ({bias_init}) must be 0 without a bias")
    if init_gain is None:  # small logits, so that a classifier starts near chance; but no less than half of them
        init_gain = 1.0 if scale_w or actv is not None else math.sqrt(min(1.0, max(0.25, n2 / n1)))
    if actv is None and not scale_w and lr_mult == 1 and not dropout:
        return like_torchs(nn.Linear, n1, n2, bias=bias, init_scale=init_gain, bias_init=bias_init)
    return _Linear(n1, n2, actv, bias, bias_init, scale_w, lr_mult, dropout, init_gain)
