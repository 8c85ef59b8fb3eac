"""Small modules that stand between others: gain, clamp, noise, rearrange, minibatch standard deviation, a parameter."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ai.model import f
from ai.model.arguments import check_at_least, check_real, check_whole
from ai.model.init import draw_normal, fill


class _Function(nn.Module):
    """A function of `m.f` with its options fixed."""

    fixed: tuple[Any, ...] = ()

    def __init__(self, function: Callable[..., Tensor], /, *fixed: Any, **options: Any):
        super().__init__()
        self.function, self.fixed, self.options = function, fixed, options

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if "pattern" in self.options and not self.fixed:  # as pickled structures of earlier versions have it
            options = dict(self.options)
            self.fixed, self.options = (options.pop("pattern"),), options

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.fixed, **self.options)

    def extra_repr(self) -> str:
        options = [*map(repr, self.fixed), *(f"{key}={value}" for key, value in self.options.items())]
        return ", ".join([self.function.__name__, *options])


def flatten() -> nn.Module:
    """Returns the module from `(batch, …)` to `(batch, features)`.

    Example:
        >>> flatten()(torch.zeros(2, 3, 4)).shape
        torch.Size([2, 12])
    """
    return _Function(f.flatten)


def global_avg() -> nn.Module:
    """Returns the module from `(batch, nc, …)` to `(batch, nc)`: the mean over all positions.

    Example:
        >>> global_avg()(torch.ones(2, 3, 4, 4)).shape
        torch.Size([2, 3])
    """
    return _Function(f.global_avg)


def gain(factor: float) -> nn.Module:
    """Returns the module that multiplies by a factor.

    Example:
        >>> gain(2.0)(torch.ones(1))
        tensor([2.])
    """
    check_real(factor=factor)
    return _Function(f.gain, factor=factor)


def clamp(bound: float) -> nn.Module:
    """Returns the module that bounds its input to [-bound, bound]; `bound` must be positive.

    Example:
        >>> clamp(1.0)(torch.tensor([-3.0, 0.5, 3.0]))
        tensor([-1.0000,  0.5000,  1.0000])
    """
    check_real(bound=bound)
    if bound <= 0:
        raise ValueError(f"bound ({bound}) must be positive")
    return _Function(f.clamp, bound=bound)


def rearrange(pattern: str, /, **sizes: int) -> nn.Module:
    """Returns the module that reorders, splits and merges axes; see `m.f.rearrange`.

    Example:
        >>> rearrange("b c h w -> b (h w) c")(torch.zeros(2, 3, 4, 4)).shape
        torch.Size([2, 16, 3])
    """
    if not isinstance(pattern, str):
        raise TypeError(f"pattern must be a string, got {pattern!r}")
    check_whole(**sizes)
    return _Function(f.rearrange, pattern, **sizes)


def minibatch_std(group_size: int | None = 4, n_features: int = 1) -> nn.Module:
    """Returns the module that appends how much the images of a group differ; see `m.f.minibatch_std`.

    Example:
        >>> minibatch_std()(torch.randn(4, 3, 8, 8)).shape
        torch.Size([4, 4, 8, 8])
    """
    check_at_least(1, n_features=n_features)
    check_at_least(1, or_none=True, group_size=group_size)
    return _Function(f.minibatch_std, group_size=group_size, n_features=n_features)


def resample(stride: float, kernel: Sequence[float] | None = None) -> nn.Module:
    """Returns the module that resizes images to `1 / stride` of their size; see `m.f.resample`.

    Example:
        >>> resample(0.5)(torch.zeros(1, 3, 4, 4)).shape, resample(2)(torch.zeros(1, 3, 4, 4)).shape
        (torch.Size([1, 3, 8, 8]), torch.Size([1, 3, 2, 2]))
    """
    check_real(stride=stride)
    f.whole_factor(stride)
    if kernel is not None:
        f.check_filter(kernel)
    return _Function(f.resample, stride=stride, kernel=kernel)


def blur(kernel: Sequence[float] = (1, 2, 1)) -> nn.Module:
    """Returns the module that filters images with a separable kernel, keeping their size.

    Example:
        >>> blur((1, 2, 1))(torch.ones(1, 1, 3, 3))[0, 0, 1]
        tensor([0.7500, 1.0000, 0.7500])
    """
    f.check_filter(kernel)
    return _Function(f.blur, kernel=tuple(kernel))


def upfirdn(
    kernel: Sequence[float], up: int = 1, down: int = 1, pad: int | tuple[int, int] = 0, gain: float = 1.0
) -> nn.Module:
    """Returns the module of `m.f.upfirdn`.

    Example:
        >>> upfirdn((1, 3, 3, 1), up=2, pad=(2, 1), gain=4)(torch.ones(1, 1, 4, 4)).shape
        torch.Size([1, 1, 8, 8])
    """
    check_whole(
        up=up, down=down, **({"pad": pad} if not isinstance(pad, tuple) else {"before": pad[0], "after": pad[1]})
    )
    check_real(gain=gain)
    if up < 1 or down < 1:
        raise ValueError(f"up ({up}) and down ({down}) must be at least 1")
    f.check_filter(kernel)
    return _Function(f.upfirdn, kernel=tuple(kernel), up=up, down=down, pad=pad, gain=gain)


class _Noise(nn.Module):
    def __init__(self, strength_init: float):
        super().__init__()
        self.strength_init = strength_init
        self.strength = nn.Parameter(torch.full((1,), strength_init))  # FSDP2 shards no scalars

    def init_params(self, generator: torch.Generator | None) -> None:
        fill(self.strength, self.strength_init)

    def forward(self, x: Tensor) -> Tensor:
        return f.noise(x, self.strength)


def noise(strength_init: float = 0.1) -> nn.Module:
    """Returns the module that adds noise, one value a pixel for all channels, times a learned strength.

    Args:
        strength_init: What the strength starts from. Zero is the published choice; a small value lets every parameter
            have an effect from the first step.

    Source: Karras et al., 2019, A Style-Based Generator Architecture, section 2.

    Example:
        >>> x = torch.zeros(1, 2, 4, 4)
        >>> noisy = noise(0.1)(x)
        >>> bool((noisy[:, 0] == noisy[:, 1]).all()), bool((noisy == x).any())
        (True, False)
    """
    check_real(strength_init=strength_init)
    return _Noise(strength_init)


class _Param(nn.Module):
    def __init__(self, shape: Sequence[int], std: float, mean: float):
        super().__init__()
        self.std, self.mean = std, mean
        self.value = nn.Parameter(torch.empty(tuple(shape)))
        self.init_params(None)

    def init_params(self, generator: torch.Generator | None) -> None:
        draw_normal(self.value, self.std, generator)
        with torch.no_grad():
            self.value.add_(self.mean)

    def forward(self, x: Tensor | None = None) -> Tensor:
        value = self.value.clone()  # FSDP2 takes the parameter's memory away after use, and a view of it would dangle
        if x is None:
            return value
        kept = (-1,) * self._parameters["value"].dim()  # type: ignore[union-attr]
        return value.unsqueeze(0).expand(x.shape[0], *kept)


def param(*shape: int, std: float = 1.0, mean: float = 0.0) -> nn.Module:
    """Returns a module that holds one learned tensor, drawn from N(mean, std²).

    Called without an argument it returns the tensor, `shape`; called with x, one copy a row: `(batch, *shape)`.

    Example:
        >>> token = param(1, 8, std=0.02)
        >>> token().shape, token(torch.zeros(3, 5)).shape
        (torch.Size([1, 8]), torch.Size([3, 1, 8]))
    """
    check_whole(**{f"shape[{axis}]": size for axis, size in enumerate(shape)})
    check_real(std=std, mean=mean)
    if any(size < 0 for size in shape):
        raise ValueError(f"shape must be sizes of at least 0, got {shape}")
    return _Param(shape, std, mean)
