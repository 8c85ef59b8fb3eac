"""Operations that act directly on tensors.

Axes: images are `(batch, nc, height, width)`.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor

from ai.model.position import rotate, sinusoid, sinusoid_2d

__all__ = [
    "blur",
    "clamp",
    "conv",
    "flatten",
    "gain",
    "global_avg",
    "minibatch_std",
    "modconv",
    "modulate",
    "noise",
    "normalize_2nd_moment",
    "one_hot",
    "pixel_norm",
    "rearrange",
    "resample",
    "rotate",
    "sinusoid",
    "sinusoid_2d",
    "upfirdn",
]

# torch 2.6 does not tell exporting from compiling.
_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)

PADDING = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}
PADTYPES = (*PADDING, "none")


def _check_numbers(**named: object) -> None:
    # Inside compiled and traced graphs, too, where what stands for a number is no float and passes.
    for name, value in named.items():
        if value is None or isinstance(value, (str, bool)) or (isinstance(value, float) and value != value):
            raise ValueError(f"{name} must be a number, got {value!r}")


def _check_whole(least: int | None, **named: Any) -> None:
    for name, value in named.items():
        if value is None or isinstance(value, (str, bool, float)):
            raise TypeError(f"{name} must be a whole number, got {value!r}")
        if least is not None and value < least:
            raise ValueError(f"{name} ({value}) must be at least {least}")


def flatten(x: Tensor) -> Tensor:
    """Returns `(batch, …)` as `(batch, features)`.

    Example:
        >>> flatten(torch.zeros(2, 3, 4)).shape
        torch.Size([2, 12])
    """
    return x.flatten(1)


def global_avg(x: Tensor) -> Tensor:
    """Returns the mean over all positions: `(batch, nc, …)` to `(batch, nc)`.

    Example:
        >>> global_avg(torch.ones(2, 3, 4, 4)).shape
        torch.Size([2, 3])
    """
    return x.flatten(2).mean(2)


def clamp(x: Tensor, bound: float) -> Tensor:
    """Returns x bounded to [-bound, bound].

    Example:
        >>> clamp(torch.tensor([-3.0, 0.5]), 1.0)
        tensor([-1.0000,  0.5000])
    """
    _check_numbers(bound=bound)
    return x.clamp(-bound, bound)


def gain(x: Tensor, factor: float) -> Tensor:
    """Returns x times a factor.

    Example:
        >>> gain(torch.ones(1), 2.0)
        tensor([2.])
    """
    _check_numbers(factor=factor)
    return x * factor


def noise(x: Tensor, strength: float | Tensor = 1.0) -> Tensor:
    """Returns images plus N(0, strength²), one value a pixel for all channels.

    Example:
        >>> noisy = noise(torch.zeros(1, 2, 4, 4), 0.1)
        >>> bool((noisy[:, 0] == noisy[:, 1]).all())
        True
    """
    _check_numbers(strength=strength)
    drawn = torch.randn(x.shape[0], 1, *x.shape[2:], dtype=x.dtype, device=x.device)
    return x + drawn * strength


def normalize_2nd_moment(x: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """Returns x divided by its root mean square over `dim`, so that its second moment is one.

    Example:
        >>> normalize_2nd_moment(torch.tensor([[3.0, 4.0]])).square().mean().item()
        1.0
    """
    _check_numbers(eps=eps)
    return x * (x.square().mean(dim, keepdim=True) + eps).rsqrt()


def pixel_norm(x: Tensor, eps: float = 1e-8) -> Tensor:
    """Returns each pixel's feature vector (axis 1) divided by its root mean square.

    Example:
        >>> pixel_norm(torch.full((1, 4, 1, 1), 5.0)).flatten()
        tensor([1., 1., 1., 1.])
    """
    return normalize_2nd_moment(x, 1, eps)


def one_hot(index: Tensor, n: int) -> Tensor:
    """Returns float32 indicator vectors: `(…)` integers in [0, n) to `(…, n)`; works for uint8 indices too.

    Example:
        >>> one_hot(torch.tensor([2, 0], dtype=torch.uint8), 3)
        tensor([[0., 0., 1.],
                [1., 0., 0.]])
    """
    _check_whole(1, n=n)  # torch takes -1 for as many as there are in this batch
    return F.one_hot(index.long(), n).float()


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Returns `x * (1 + scale) + shift`: `(batch, time, dim)` tokens by `(batch, dim)` vectors.

    Source: Peebles and Xie, 2023, Scalable Diffusion Models with Transformers, section 3.2 (adaLN).

    Example:
        >>> modulate(torch.ones(1, 2, 3), torch.zeros(1, 3), torch.ones(1, 3))[0, 0]
        tensor([2., 2., 2.])
    """
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


def upfirdn(
    x: Tensor,
    kernel: Sequence[float] | Tensor,
    up: int = 1,
    down: int = 1,
    pad: int | tuple[int, int] = 0,
    gain: float = 1.0,
) -> Tensor:
    """Returns images enlarged by zeros, padded, filtered and thinned, in this order, along both axes alike.

    Args:
        x: `(batch, nc, height, width)`.
        kernel: A separable filter's taps; they are normalised to sum 1.
        up: Each pixel is followed by `up - 1` zeros.
        down: Every `down`-th pixel of the result is kept.
        pad: Zeros before and after each axis, of the enlarged image; negative ones crop.
        gain: Multiplies the result (`up ** 2` keeps the brightness).

    Returns:
        `(batch, nc, (height * up + pad before + pad after - len(kernel)) // down + 1, …)`.

    Source: Karras et al., 2019, StyleGAN2, appendix B; the name and the definition are those of scipy.signal.upfirdn.

    Example:
        >>> upfirdn(torch.ones(1, 1, 4, 4), (1, 3, 3, 1), up=2, pad=(2, 1), gain=4).shape
        torch.Size([1, 1, 8, 8])
    """
    _n_taps(kernel)
    taps = _taps(kernel, x)
    _check_whole(1, up=up, down=down)
    _check_numbers(gain=gain)
    before, after = pad if isinstance(pad, (tuple, list)) else (pad, pad)
    _check_whole(None, pad=before)
    _check_whole(None, pad=after)
    batch, nc, height, width = x.shape
    if up > 1:
        x = x.reshape(batch, nc, height, 1, width, 1)
        x = F.pad(x, (0, up - 1, 0, 0, 0, up - 1)).reshape(batch, nc, height * up, width * up)
    x = F.pad(x, (before, after, before, after))
    _check_fits(x, taps.shape[0])
    taps = taps.flip(0) / taps.sum()
    # Each channel is filtered on its own; the thinning happens inside the convolutions, one axis after the other.
    x = F.conv2d(x, (taps * gain).view(1, 1, -1, 1).expand(nc, 1, -1, 1), stride=(down, 1), groups=nc)
    return F.conv2d(x, taps.view(1, 1, 1, -1).expand(nc, 1, 1, -1), stride=(1, down), groups=nc)


def check_filter(kernel: Sequence[float]) -> None:
    """Raises for taps that no filter of sum 1 can be made of."""
    single = kernel is None or isinstance(kernel, (str, int, float))
    if single or any(tap is None or isinstance(tap, (str, bool, tuple, list)) for tap in kernel):
        raise TypeError(f"kernel must be a list of numbers, got {kernel!r}")
    if not len(kernel):
        raise ValueError("kernel (()) must have at least one tap")
    total = sum(kernel)
    if not abs(total) < math.inf:
        raise ValueError(f"kernel ({tuple(kernel)}) must hold finite numbers")
    if not abs(total) > 1e-12 * sum(map(abs, kernel)):
        raise ValueError(f"kernel ({tuple(kernel)}) must not sum to 0: its taps are normalised to sum 1")


# These look at sizes, which torch.fx traces as unknowns: it takes a check for one step.
@torch.fx.wrap
def _check_fits(x: Tensor, n_taps: int) -> None:
    if min(x.shape[2:]) < n_taps:
        raise ValueError(f"kernel ({n_taps} taps) must fit the padded image ({x.shape[2]} x {x.shape[3]})")


@torch.fx.wrap
def _check_divides(x: Tensor, factor: int, stride: float) -> None:
    if x.shape[2] % factor or x.shape[3] % factor:
        raise ValueError(f"stride ({stride}) must divide the image's size ({x.shape[2]} x {x.shape[3]})")


def _n_taps(kernel: Sequence[float] | Tensor) -> int:
    # What a tensor holds is not looked at: its device may be at work.
    if not isinstance(kernel, Tensor):
        check_filter(kernel)
    return len(kernel)


def _taps(kernel: Sequence[float] | Tensor, x: Tensor) -> Tensor:
    """Returns a filter's taps in the type and on the device of `x`."""
    if isinstance(kernel, Tensor):
        taps = kernel.to(device=x.device, dtype=x.dtype)
    else:  # filled in there: a list that is copied to a device waits for all that the device has to do
        taps = torch.cat([x.new_full((1,), float(tap)) for tap in kernel]) if len(kernel) else x.new_empty(0)
    if taps.ndim != 1:
        raise ValueError(f"kernel must be a list of taps, not of shape {tuple(taps.shape)}")
    return taps


def blur(x: Tensor, kernel: Sequence[float] = (1, 2, 1)) -> Tensor:
    """Returns images filtered with a separable kernel, of the same size, zeros beyond the border.

    Example:
        >>> blur(torch.ones(1, 1, 3, 3))[0, 0, 1]
        tensor([0.7500, 1.0000, 0.7500])
    """
    n = _n_taps(kernel)
    return upfirdn(x, kernel, pad=(n // 2, (n - 1) // 2))


def resample(x: Tensor, stride: float, kernel: Sequence[float] | None = None) -> Tensor:
    """Returns images at `1 / stride` of their size.

    Args:
        x: `(batch, nc, height, width)`.
        stride: A whole number to shrink, or one over a whole number to enlarge.
        kernel: Low-pass filter for either way; None takes nearest neighbours up and the mean of the square down.

    Raises:
        ValueError: The stride is of neither form, or does not divide the size.

    Example:
        >>> resample(torch.ones(1, 1, 4, 4), 0.5).shape, resample(torch.ones(1, 1, 4, 4), 2).shape
        (torch.Size([1, 1, 8, 8]), torch.Size([1, 1, 2, 2]))
    """
    factor = whole_factor(stride)
    if factor == 1:
        return x
    if stride > 1:
        _check_divides(x, factor, stride)
    if kernel is None:
        return F.avg_pool2d(x, factor) if stride > 1 else F.interpolate(x, scale_factor=float(factor), mode="nearest")
    taps = _n_taps(kernel)
    extra = taps - factor
    if stride > 1:
        return upfirdn(x, kernel, down=factor, pad=((extra + 1) // 2, extra // 2))
    before = (taps + factor - 1) // 2
    return upfirdn(x, kernel, up=factor, pad=(before, taps - 1 - before), gain=factor**2)


@torch.fx.wrap  # one step for torch.fx, which does not know the kernel's size
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: float = 1,
    *,
    kernel: Sequence[float] | None = None,
    padtype: str = "zeros",
    groups: int = 1,
) -> Tensor:
    """Returns images, filtered, resized and convolved: `(batch, nc2, height / stride, width / stride)`.

    Args:
        x: `(batch, nc1, height, width)`.
        weight: `(nc2, nc1 / groups, k, k)`. Odd k pad the border by `k // 2`, even ones as `border` says.
        bias: `(nc2,)`.
        stride: A whole number to shrink by striding, or one over a whole number to enlarge before.
        kernel: Taps of a low-pass filter that x goes through first; where the stride enlarges, it takes the place of
            nearest neighbours. Filter and convolution share one border, as in StyleGAN2.
        padtype: `zeros`, `reflect`, `replicate` or `circular`; `none` leaves the border out, so that the result is
            `(height - k) // stride + 1` high.
        groups: Groups of channels that are convolved apart.

    Example:
        >>> conv(torch.zeros(1, 3, 8, 8), torch.zeros(4, 3, 4, 4), stride=2).shape
        torch.Size([1, 4, 4, 4])
    """
    if padtype not in PADTYPES:
        raise ValueError(f"padtype ({padtype!r}) must be one of {', '.join(PADTYPES)}")
    factor, k = whole_factor(stride), weight.shape[2]
    step = factor if stride >= 1 else 1
    if kernel is not None:
        _n_taps(kernel)
        return _filtered(x, weight, bias, stride, tuple(kernel), padtype, groups)
    if stride < 1:
        x = resample(x, stride)
    before, after = (0, 0) if padtype == "none" else border(k, step)
    if (before or after) and (before != after or padtype != "zeros"):
        x = F.pad(x, (before, after, before, after), mode=PADDING[padtype])
        before = 0
    return F.conv2d(x, weight, bias, step, before, 1, groups)


def _filtered(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: float,
    kernel: tuple[float, ...],
    padtype: str,
    groups: int,
) -> Tensor:
    """Filters and convolves with one border for both, so that nothing is cut off between them.

    Together they are one kernel of `taps + k - 1`, whose centre falls on the pixels' common centre: on that of the
    `stride` pixels that become one, or of the one that becomes several.

    Source: Karras et al., 2020, StyleGAN2, appendix B, with the borders of its published layers.
    """
    k, taps = weight.shape[2], len(kernel)
    if stride >= 1:
        step = round(stride)
        before, after = (taps + k - step) // 2, (taps + k - 1 - step) // 2
        if padtype == "none":
            before, after, padtype = taps // 2, (taps - 1) // 2, "zeros"
        if padtype != "zeros" and after >= 0:
            x = F.pad(x, (before, after, before, after), mode=PADDING[padtype])
            before = after = 0
        if k == 1:  # the thinning may come first
            return F.conv2d(upfirdn(x, kernel, down=step, pad=(before, after)), weight, bias, groups=groups)
        return F.conv2d(upfirdn(x, kernel, pad=(before, after)), weight, bias, step, groups=groups)
    up = whole_factor(stride)
    left, right = (0, 0) if padtype == "none" else border(k)
    before, after = left + (taps + up - 1) // 2, right + (taps - up) // 2
    if padtype not in ("zeros", "none"):
        wide = -(-max(before, after, 0) // up)
        x = F.pad(x, (wide, wide, wide, wide), mode=PADDING[padtype])
        x = upfirdn(x, kernel, up=up, pad=(before - wide * up, after - wide * up), gain=up**2)
        return F.conv2d(x, weight, bias, groups=groups)
    # The same as filtering the enlarged image and then convolving it, at `1 / up²` of the cost.
    flipped = weight.flip(2, 3).reshape(groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(0, 1)
    x = F.conv_transpose2d(x, flipped, stride=up, groups=groups)
    x = upfirdn(x, kernel, pad=(before - k + 1, after - k + up), gain=up**2)
    return x if bias is None else x + bias.to(x.dtype)[:, None, None]


@torch.fx.wrap
def modconv(
    x: Tensor,
    weight: Tensor,
    style: Tensor,
    bias: Tensor | None = None,
    stride: float = 1,
    *,
    demod: bool = True,
    kernel: Sequence[float] | None = None,
    form: str | None = None,
) -> Tensor:
    """Returns a convolution whose weights differ from image to image.

    Args:
        x: `(batch, nc1, height, width)`.
        weight: `(nc2, nc1, k, k)`.
        style: `(batch, nc1)`, the factor of each input channel's weights.
        bias: `(nc2,)`.
        stride: As of `conv`.
        demod: Whether each output channel's weights are divided by their norm.
        kernel: As of `conv`.
        form: How it is computed, which changes nothing but the time: `images` scales what goes into and what comes out
            of one convolution of the whole batch, `weights` makes weights for each image; None takes the faster one.

    Source: Karras et al., 2020, Analyzing and Improving the Image Quality of StyleGAN, equations 1 and 3.

    Example:
        >>> x, weight, style = torch.randn(2, 3, 8, 8), torch.randn(5, 3, 3, 3), torch.randn(2, 3)
        >>> modconv(x, weight, style, stride=0.5).shape
        torch.Size([2, 5, 16, 16])
    """
    if form not in (None, "images", "weights"):
        raise ValueError(f"form ({form!r}) must be images, weights or None")
    eps: float | Tensor = 1e-8
    if demod and _computes_in_half(x):
        # Demodulation takes any factor out again; with it, neither products nor their squares overflow.
        wide = weight.detach().abs().amax((1, 2, 3)) * math.sqrt(weight[0].numel()) + 1e-8
        high = style.detach().abs().amax(1, keepdim=True) + 1e-8
        weight, style = weight / wide[:, None, None, None], style / high
        eps = eps / (wide * high).square()
    if form == "weights" or (form is None and _weights_are_faster(x, weight)):
        batch = x.shape[0]
        weights = weight * style[:, None, :, None, None]
        if demod:
            scale = weights.square().sum((2, 3, 4)) + eps
            weights = weights * scale.rsqrt()[:, :, None, None, None]
        biases = None if bias is None else bias.repeat(batch)
        x = x.reshape(1, -1, *x.shape[2:])
        x = conv(x, weights.flatten(0, 1), biases, stride, kernel=kernel, groups=batch)
        return x.reshape(batch, -1, *x.shape[2:])
    x = conv(x * style.unsqueeze(2).unsqueeze(3), weight, None if demod else bias, stride, kernel=kernel)
    if not demod:
        return x
    energy = F.linear(style.square(), weight.square().sum((2, 3)))
    factor = (energy + eps).rsqrt().unsqueeze(2).unsqueeze(3).to(x.dtype)
    # One pass over the image for both, in the convolution's own type under autocast.
    return x * factor if bias is None else torch.addcmul(bias.to(x.dtype).view(1, -1, 1, 1), x, factor)


def _computes_in_half(x: Tensor) -> bool:
    kind = x.device.type
    autocast = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
    return autocast or x.dtype == torch.float16


def _weights_are_faster(x: Tensor, weight: Tensor) -> bool:
    """Compares the numbers that each form passes over once more: weights of every image, or all pixels.

    Measured on a CPU with 1 to 16 images of 32 to 512 channels and 8² to 128² pixels: the weights' form takes 0.72 to
    0.98 of the time below the threshold (one case 1.06), and 1.0 to 2.7 above it, or where pixels lie channels last.
    """
    nc2, _, k, _ = weight.shape
    if _exporting():  # ONNX has no groups whose number is the batch's
        return False
    return x.device.type == "cpu" and x.is_contiguous() and 3 * nc2 * k**2 <= x.shape[2] * x.shape[3]


def border(k: int, step: int = 1) -> tuple[int, int]:
    """Returns how many pixels a convolution pads before and after each axis, to give `size / step`.

    Example:
        >>> border(3), border(4, 2), border(2, 2), border(2)
        ((1, 1), (1, 1), (0, 0), (0, 1))
    """
    if k % 2:
        return k // 2, k // 2
    total = max(k - step, 0)
    return total // 2, total - total // 2


def whole_factor(stride: float) -> int:
    """Returns the whole number that a stride, or one over it, is."""
    _check_numbers(stride=stride)
    whole = stride if stride >= 1 else 1 / stride if stride > 0 else 0.5
    if whole == math.inf or abs(whole - round(whole)) > 1e-9:
        raise ValueError(f"stride ({stride}) must be a whole number, or one over a whole number to enlarge")
    return round(whole)


@torch.fx.wrap
def minibatch_std(x: Tensor, group_size: int | None = 4, n_features: int = 1) -> Tensor:
    """Returns images with extra channels that hold how much the images of a group differ.

    Args:
        x: `(batch, nc, height, width)`.
        group_size: Images compared with each other; None for the whole batch. A smaller batch is one group; one that
            it does not divide has the largest groups below it that fit.
        n_features: Extra channels; must divide nc.

    Returns:
        `(batch, nc + n_features, height, width)`.

    Source: Karras et al., 2018, Progressive Growing of GANs, section 3, with groups as in StyleGAN2.

    Example:
        >>> x = torch.tensor([0.0, 2.0]).view(2, 1, 1, 1)
        >>> minibatch_std(x)[:, 1].flatten()  # both images lie 1 from their mean
        tensor([1., 1.])
    """
    _check_whole(1, n_features=n_features)
    if group_size is not None:
        _check_whole(1, group_size=group_size)
    batch, nc, height, width = x.shape
    n = max(1, batch if group_size is None else min(group_size, batch))
    while batch % n:
        n -= 1
    if nc % n_features:
        raise ValueError(f"n_features ({n_features}) must divide nc ({nc})")
    if isinstance(batch, int) and not batch:
        return x.new_zeros(0, nc + n_features, height, width)
    # Image i belongs to group i % (batch // n), so that a batch's neighbours fall into different groups.
    grouped = x.reshape(n, batch // n, n_features, nc // n_features, height, width)
    deviation = (grouped.var(0, unbiased=False) + 1e-8).sqrt().mean((2, 3, 4))
    extra = deviation.view(batch // n, n_features, 1, 1).repeat(n, 1, height, width)
    return torch.cat([x, extra], 1)


@torch.fx.wrap
def rearrange(x: Tensor, pattern: str, /, **sizes: int) -> Tensor:
    """Returns x with its axes reordered, split and merged as a pattern says.

    Args:
        x: Any tensor.
        pattern: `'in -> out'`, each side names of axes, parentheses around those that make one axis together.
        **sizes: Of axes inside parentheses on the left, but one in each.

    Raises:
        ValueError: The pattern and the shape do not fit.

    Source: the notation is that of Rogozhnikov, 2022, Einops.

    Example:
        >>> rearrange(torch.zeros(2, 3, 8, 8), "b c (h p) (w q) -> b (h w) (p q c)", p=4, q=4).shape
        torch.Size([2, 4, 48])
    """
    left, arrow, right = pattern.partition("->")
    groups_in, groups_out = _axes(pattern, left), _axes(pattern, right)
    names_in = [name for group in groups_in for name in group]
    names_out = [name for group in groups_out for name in group]
    if not arrow or sorted(names_in) != sorted(names_out) or len(set(names_in)) != len(names_in):
        raise ValueError(f"pattern ({pattern!r}) must have the same axes, each once, on both sides of '->'")
    for name in sizes:
        if name not in names_in:
            raise ValueError(
                f"sizes ({name}={sizes[name]}) must be of axes of {pattern!r}, which has none of that name"
            )
    if len(groups_in) != x.ndim:
        raise ValueError(f"pattern ({pattern!r}) names {len(groups_in)} axes, the tensor has shape {tuple(x.shape)}")
    known = dict(sizes)
    for group, size in zip(groups_in, x.shape, strict=True):
        unknown = [name for name in group if name not in known]
        product = 1
        for name in group:
            product *= known.get(name, 1)
        if len(unknown) > 1:
            raise ValueError(f"pattern ({pattern!r}) needs the sizes of all but one of {', '.join(unknown)}")
        if size % max(product, 1) or (not unknown and product != size):
            raise ValueError(f"axis ({' '.join(group)}) of {pattern!r} has size {size}, which {product} does not make")
        if unknown:
            known[unknown[0]] = size // product
    x = x.reshape([known[name] for name in names_in])
    x = x.permute([names_in.index(name) for name in names_out])
    shape = []
    for group in groups_out:
        product = 1
        for name in group:
            product *= known[name]
        shape.append(product)
    return x.reshape(shape)


def _axes(pattern: str, side: str) -> list[list[str]]:
    groups: list[list[str]] = []
    inner: list[str] | None = None
    for token in side.replace("(", " ( ").replace(")", " ) ").split():
        if token in "()":
            if (token == "(") != (inner is None):
                break
            if inner is not None:
                groups.append(inner)
            inner = [] if inner is None else None
        elif inner is None:
            groups.append([token])
        else:
            inner.append(token)
    else:
        if inner is None:
            return groups
    raise ValueError(f"pattern ({pattern!r}) must have its parentheses in pairs, none within another")
