"""Networks of torch's own modules, for tools that look for these by their class."""

import copy
from collections.abc import Callable
from typing import Literal, TypeVar, cast

import torch
from torch import Tensor, nn

from ai.model import f
from ai.model.arguments import check_module
from ai.model.container import _GRU, _LSTM
from ai.model.conv import _Conv
from ai.model.elementwise import gain
from ai.model.linear import _Linear
from ai.model.norm import _RMS, _Batch, _Instance

T = TypeVar("T", bound=nn.Module)
_Times = Callable[[Tensor | None, float], Tensor | None]
_PARTS = {"actv", "dropout", "norm", "noise"}
_PADS: dict[str, type[nn.Module]] = {
    "zeros": nn.ZeroPad2d,
    "none": nn.ZeroPad2d,
    "reflect": nn.ReflectionPad2d,
    "replicate": nn.ReplicationPad2d,
    "circular": nn.CircularPad2d,
}


def to_torch(model: T, *, fp8: bool | Literal["emulated"] = False) -> T:
    """Returns a copy that computes the same, whose layers are modules of torch.

    `fc` and `conv` with their options become `nn.Sequential`s of `nn.Linear`, `nn.Conv2d` and what stands around them:
    scaled weights are multiplied out, a filter and the convolution behind it become one kernel, names of parameters
    change. Attention and MLPs hold `nn.Linear` already. What torch has no module for stays: modulated layers, noise,
    sums, factors, and layers that are hooked, parametrized or hold more than we gave them.

    Args:
        model: Is left as it is.
        fp8: Linear layers multiply in 8-bit floats, forward and backward, as torchao's `convert_to_float8_training` has
            it with one scale a tensor; their parameters stay as they are. Layers with a size that is no multiple of 16
            keep their type, as the kernels ask. It takes a GPU of compute capability 8.9 or later; "emulated" rounds
            alike on any device, without the speed.

    Raises:
        ImportError: `fp8` needs the extra `fp8`.
        ValueError: `fp8` where no layer's sizes are multiples of 16.

    Example:
        >>> import ai.model as m
        >>> net, x = m.seq(m.fc(4, 8, actv="relu", scale_w=True), m.fc(8, 2)), torch.randn(3, 4)
        >>> plain = to_torch(net)
        >>> torch.allclose(plain(x), net(x), atol=1e-6), [type(layer).__name__ for layer in plain[0]]
        (True, ['Linear', 'ReLU'])
    """
    check_module(model=model)
    made: dict[nn.Module, nn.Module] = {}
    products: dict[tuple[int, float], Tensor] = {}

    def times(parameter: Tensor | None, factor: float) -> Tensor | None:
        """Returns a parameter times a factor, one for all that share it; itself, where that is 1."""
        if parameter is None or factor == 1:
            return parameter
        key = (id(parameter), factor)
        if key not in products:
            products[key] = nn.Parameter(parameter.detach() * factor, parameter.requires_grad)
        return products[key]

    def convert(module: nn.Module) -> nn.Module:
        if module not in made:
            made[module] = module
            for name, child in module._modules.items():
                if child is not None:
                    module._modules[name] = convert(child)
            converted = _converted(module, times)
            for part in set(converted.modules()).difference(made.values()):
                part.training = module.training
            made[module] = converted
        return made[module]

    plain = cast(T, convert(copy.deepcopy(model)))
    return plain if fp8 is False else _in_fp8(plain, fp8)


def _in_fp8(model: T, fp8: bool | str) -> T:
    if fp8 not in (True, "emulated"):
        raise ValueError(f"fp8 must be True, False or 'emulated', not {fp8!r}")
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training  # type: ignore[import-untyped]
    except ImportError as error:
        raise ImportError("to_torch(fp8=…) needs torchao: pip install 'ai-model[fp8]'") from error

    def fits(module: nn.Module, _: str = "") -> bool:
        return isinstance(module, nn.Linear) and module.in_features % 16 == module.out_features % 16 == 0

    if not any(map(fits, model.modules())):
        raise ValueError(
            "fp8 needs a linear layer whose in_features and out_features are multiples of 16; there is none"
        )
    config = Float8LinearConfig(emulate=fp8 == "emulated")
    return cast(T, convert_to_float8_training(model, config=config, module_filter_fn=fits))


def _converted(module: nn.Module, times: _Times) -> nn.Module:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    if any(hooks) or hasattr(module, "parametrizations"):
        return module
    if type(module) in (_Linear, _Conv) and (module._buffers or not module._modules.keys() <= _PARTS):
        return module  # somebody has put more into it
    if type(module) is _Linear:
        return _linear(module, times)
    if type(module) is _Conv:
        return _conv(module, times)
    if type(module) is _RMS:
        norm = nn.RMSNorm(module.normalized_shape, module.eps, module.weight is not None)
        return _with(norm, weight=module.weight)
    if type(module) is _LSTM:
        module.__class__ = nn.LSTM  # type: ignore[assignment]
    if type(module) is _GRU:
        module.__class__ = nn.GRU  # type: ignore[assignment]
    return module


def _linear(layer: _Linear, times: _Times) -> nn.Module:
    made = torch.nn.utils.skip_init(nn.Linear, layer.n1, layer.n2, layer.bias is not None, device="meta")  # type: ignore[no-untyped-call]
    _with(made, weight=times(layer.weight, layer.weight_scale), bias=times(layer.bias, layer.lr_mult))
    return _sequence(made, layer.actv, layer.dropout)


def _conv(layer: _Conv, times: _Times) -> nn.Module:
    weight, bias = times(layer.weight, layer.weight_scale), times(layer.bias, layer.lr_mult)
    assert weight is not None
    around = _filtered(layer, weight, bias) if layer.blur is not None else _resized(layer, weight, bias)
    if around is None:
        return layer
    norm = layer.norm
    if type(norm) is _Batch:
        norm.__class__ = nn.BatchNorm2d  # type: ignore[assignment]
    elif type(norm) is _Instance:
        norm.__class__ = nn.InstanceNorm2d  # type: ignore[assignment]
    bound = None if layer.clamp is None else nn.Hardtanh(-layer.clamp, layer.clamp)
    factor = None if layer.gain == 1 else gain(layer.gain)
    return _sequence(*around, norm, layer.noise, layer.actv, factor, bound)


def _resized(layer: _Conv, weight: Tensor, bias: Tensor | None) -> list[nn.Module]:
    enlarged: list[nn.Module] = []
    if layer.stride < 1:
        enlarged.append(nn.Upsample(scale_factor=float(f.whole_factor(layer.stride)), mode="nearest"))
    step = max(1, round(layer.stride))
    border = (0, 0) if layer.padtype == "none" else f.border(layer.k, step)
    return [*enlarged, *_padded(layer, weight, bias, step, border)]


def _filtered(layer: _Conv, weight: Tensor, bias: Tensor | None) -> list[nn.Module] | None:
    """Joins filter and kernel to one; None where the border between them is neither zeros nor absent."""
    if layer.padtype != "zeros":
        return None
    assert layer.blur is not None
    taps = torch.tensor(layer.blur, dtype=weight.dtype, device=weight.device)
    taps = taps / taps.sum()
    n_taps, k = len(taps), layer.k
    square = torch.outer(taps, taps).expand(1, 1, n_taps, n_taps)
    nc2, nc1, _, _ = weight.shape
    # Filtering and then correlating is correlating with the kernel that the mirrored filter widens.
    wide = nn.functional.conv_transpose2d(weight.detach().reshape(nc2 * nc1, 1, k, k), square.flip(2, 3))
    size = k + n_taps - 1
    joined = nn.Parameter(wide.view(nc2, nc1, size, size), weight.requires_grad)
    if layer.stride >= 1:
        step = round(layer.stride)
        return _padded(layer, joined, bias, step, ((size - step + 1) // 2, (size - step) // 2))
    up = f.whole_factor(layer.stride)
    before = f.border(k)[0] + (n_taps + up - 1) // 2
    crop, crop_after = size - 1 - before, size - up - (size - 1 - before)
    if crop < 0 or crop_after < 0:
        return None
    inside = 0 <= crop - crop_after < up  # what torch's layer can cut off by itself
    padding, extra = (crop, crop - crop_after) if inside else (0, 0)
    groups = layer.groups
    turned = (joined.detach() * up**2).flip(2, 3).reshape(groups, nc2 // groups, nc1, size, size)
    made = torch.nn.utils.skip_init(  # type: ignore[no-untyped-call]
        nn.ConvTranspose2d, layer.nc1, layer.nc2, size, up, padding, extra, groups, bias is not None,
        device="meta",
    )  # fmt: skip
    kernel = nn.Parameter(turned.transpose(1, 2).reshape(layer.nc1, nc2 // groups, size, size), weight.requires_grad)
    cut = [] if inside else [nn.ZeroPad2d((-crop, -crop_after, -crop, -crop_after))]
    return [_with(made, weight=kernel, bias=bias), *cut]


def _padded(layer: _Conv, weight: Tensor, bias: Tensor | None, step: int, border: tuple[int, int]) -> list[nn.Module]:
    """Returns a convolution, and before it a padding of its own where the two sides differ."""
    before, after = border
    even = before == after and before >= 0
    made = torch.nn.utils.skip_init(  # type: ignore[no-untyped-call]
        nn.Conv2d, layer.nc1, layer.nc2, weight.shape[2], step, before if even else 0, groups=layer.groups,
        bias=bias is not None, padding_mode=layer.padtype if even and layer.padtype != "none" else "zeros",
        device="meta",
    )  # fmt: skip
    _with(made, weight=weight, bias=bias)
    return [made] if even else [_PADS[layer.padtype]((before, after, before, after)), made]


def _with(module: nn.Module, **parameters: Tensor | None) -> nn.Module:
    for name, value in parameters.items():
        if value is not None:
            setattr(module, name, value)
    return module


def _sequence(*modules: nn.Module | None) -> nn.Module:
    kept = [module for module in modules if module is not None]
    return kept[0] if len(kept) == 1 else nn.Sequential(*kept)
