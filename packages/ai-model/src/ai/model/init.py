"""Who draws a parameter, and how: each block owns its rule, and users register rules for their own modules.

A block's rule is its method `init_params(rng)`. A module without one is drawn by the rule registered for its class
(`init_rule`), and torch's own layers are registered below. Whatever has neither keeps the values it was built with.
"""

import copy
import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ai.model.activation import Activation, actv_gain, is_centred
from ai.model.arguments import check_module, check_real, check_whole
from ai.model.weights.computed import stand_in

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

AnyModule = TypeVar("AnyModule", bound=nn.Module)
Rule = Callable[[AnyModule, torch.Generator | None], None]

_rules: dict[type[nn.Module], Callable[..., None]] = {}


def init_rule(cls: type[AnyModule]) -> Callable[[Rule[AnyModule]], Rule[AnyModule]]:
    """Registers the function that draws the parameters of a module class and of its subclasses.

    The rule gets the module and a generator, or None for torch's global one. It runs after the rules of the module's
    children, and has to fill the module's own parameters and buffers.

    >>> import torch
    >>> import ai.model as m
    >>> class Scale(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.scale = torch.nn.Parameter(torch.empty(3))
    >>> @m.init_rule(Scale)
    ... def draw_scale(module, rng):
    ...     m.fill(module.scale, 1.0)
    >>> m.Model(Scale()).init().net.scale.tolist()
    [1.0, 1.0, 1.0]
    """
    if not isinstance(cls, type):
        raise TypeError(f"cls must be a class of modules, got {cls!r}")

    def register(rule: Rule[AnyModule]) -> Rule[AnyModule]:
        _rules[cls] = rule
        return rule

    return register


def init_module(module: AnyModule, *, seed: int | None = None) -> AnyModule:
    """Draws every parameter below `module` by its block's rule, children before their parents; returns the module.

    Args:
        module: Changed in place. Modules without a rule or torch's `reset_parameters` keep what they hold.
        seed: Of a generator of this call's own; None takes it from torch's global one.

    A weight that is computed from others (`weight_norm`, `spectral_norm`, pruning, a parametrization) is drawn too, and
    taken apart again.

    Raises:
        ValueError: A lazy module has no shapes yet, or a weight cannot be drawn.

    >>> import torch
    >>> first, second = (init_module(torch.nn.Linear(2, 2), seed=0) for _ in range(2))
    >>> bool((first.weight == second.weight).all())
    True
    """
    check_module(module=module)
    check_whole(or_none=True, seed=seed)
    if seed is None:
        seed = int(torch.randint(2**62, (), device="cpu").item())
    lazy = [name for name, parameter in module.named_parameters() if is_lazy(parameter)]
    if lazy:
        raise ValueError(f"{', '.join(lazy)} must have a shape before it is drawn: call the module once before")
    rng = torch.Generator().manual_seed(int(seed))
    seen: set[nn.Module] = set()

    def visit(node: nn.Module) -> None:
        if node in seen:
            return
        seen.add(node)
        for child in node.children():
            visit(child)
        if rule_of(node) is None:
            return
        drawn, put_back = stand_in(node)
        rule = rule_of(drawn)
        assert rule is not None
        rule(rng)
        if "orthogonal_gain" in vars(drawn):
            _draw_orthogonal_layer(drawn, rng)
        with torch.no_grad():
            for name, put in put_back.items():
                put(drawn.get_parameter(name).detach(), rng)

    visit(module)
    return module


def draw_normal(target: Tensor, std: float, rng: torch.Generator | None = None) -> None:
    """Fills `target` in place with N(0, std²), drawn in float32 on the CPU so that every device gets equal values.

    >>> weight = torch.empty(1000)
    >>> draw_normal(weight, 0.1, torch.Generator().manual_seed(0))
    >>> round(weight.std().item(), 2)
    0.1
    """
    check_real(std=std)
    if not target.is_meta:
        _put(target, torch.randn(target.shape, generator=rng, dtype=torch.float32, device="cpu").mul_(std))


def draw_uniform(target: Tensor, bound: float, rng: torch.Generator | None = None) -> None:
    """Fills `target` in place with U(-bound, bound), drawn in float32 on the CPU as `draw_normal` does.

    >>> weight = torch.empty(1000)
    >>> draw_uniform(weight, 0.1, torch.Generator().manual_seed(0))
    >>> round(weight.min().item(), 2), round(weight.max().item(), 2)
    (-0.1, 0.1)
    """
    check_real(bound=bound)
    if not target.is_meta:
        uniform = torch.rand(target.shape, generator=rng, dtype=torch.float32, device="cpu")
        _put(target, uniform * (2 * bound) - bound)


def draw_weight(
    target: Tensor, actv: Activation = None, scale: float = 1.0, rng: torch.Generator | None = None
) -> None:
    """Draws the weights of a layer so that what follows its activation is as large as what comes in.

    They are N(0, (scale · gain)² / fan-in), with the gain of `actv_gain`. Before a smooth rectifier (gelu, silu, mish,
    hardswish, softplus), and with 32 inputs or more, each unit's weights are shifted to a sum of zero: the standard
    deviation then stays through deep stacks, where it would drift away without.

    Args:
        target: `(n out, …)`; all other axes are what one output sees.
        actv: What follows, by name.
        scale: Multiplies the weights.
        rng: None for torch's global generator.

    >>> weight = torch.empty(64, 64)
    >>> draw_weight(weight, "gelu", rng=torch.Generator().manual_seed(0))
    >>> bool((weight.sum(1).abs() < 1e-5).all())
    True
    """
    check_real(scale=scale)
    gain = actv_gain(actv)  # which refuses a name that is none
    if target.is_meta:
        return
    fan_in = math.prod(target.shape[1:])
    centred = is_centred(actv, fan_in)
    drawn = torch.randn(target.shape, generator=rng, dtype=torch.float32, device="cpu")
    if centred:
        drawn -= drawn.mean(tuple(range(1, drawn.ndim)), keepdim=True)
        scale *= math.sqrt(fan_in / (fan_in - 1))
        gain = actv_gain(actv, centred=True)
    _put(target, drawn.mul_(scale * gain / math.sqrt(max(fan_in, 1))))


def draw_orthogonal(target: Tensor, gain: float = 1.0, rng: torch.Generator | None = None) -> None:
    """Fills `target` in place with `gain` times an orthogonal matrix, `(n out, everything else)`, drawn on the CPU.

    Source: Saxe, McClelland and Ganguli, 2014, Exact solutions to the nonlinear dynamics of learning in deep linear
    neural networks, section 3.

    >>> weight = torch.empty(2, 3)
    >>> draw_orthogonal(weight, 2.0)
    >>> bool((weight @ weight.T).allclose(4 * torch.eye(2), atol=1e-5))
    True
    """
    check_real(gain=gain)
    if target.ndim < 2:
        raise ValueError(f"target must have two axes or more, got shape {tuple(target.shape)}")
    if not target.is_meta:
        drawn = torch.empty(target.shape, dtype=torch.float32, device="cpu")
        _put(target, nn.init.orthogonal_(drawn, gain, generator=rng))


def orthogonal(module: AnyModule, gain: float = math.sqrt(2)) -> AnyModule:
    """Lets every layer in a module draw its weights by `draw_orthogonal`, now and at `Model.init`; returns the module.

    Layers that were given a gain of their own before keep it.

    >>> import ai.model as m
    >>> head = m.Model(m.orthogonal(m.seq(m.fc(4, 8, "tanh"), m.orthogonal(m.fc(8, 2), 0.01)))).init(seed=0).net
    >>> bool((head[1].weight @ head[1].weight.T).allclose(0.01**2 * torch.eye(2), atol=1e-8))
    True
    """
    check_module(module=module)
    check_real(gain=gain)
    layers = [layer for layer in module.modules() if any(p.ndim >= 2 for p in layer.parameters(recurse=False))]
    if not layers:
        raise ValueError(
            f"module must have weights of two axes or more to be orthogonal, {type(module).__name__} has none"
        )
    for layer in layers:
        if "orthogonal_gain" not in vars(layer):
            layer.orthogonal_gain = gain  # type: ignore[assignment]
            _draw_orthogonal_layer(layer, None)
    return module


def _draw_orthogonal_layer(layer: nn.Module, rng: torch.Generator | None) -> None:
    gain = float(vars(layer)["orthogonal_gain"]) / float(getattr(layer, "weight_scale", 1.0))
    for parameter in layer.parameters(recurse=False):
        if parameter.ndim >= 2:
            draw_orthogonal(parameter, gain, rng)


def fill(target: Tensor, value: float | Tensor) -> None:
    """Fills `target` in place with a number, or copies a tensor of its shape into it.

    >>> bias = torch.empty(2)
    >>> fill(bias, 0.5)
    >>> bias
    tensor([0.5000, 0.5000])
    """
    if not target.is_meta:
        with torch.no_grad():
            if isinstance(value, Tensor):
                _put(target, value)
            else:
                target.fill_(value)


def mark_small(module: nn.Module, scale: float) -> bool:
    """Makes the last layer of a residual branch start `scale` times smaller, and tells whether there was one.

    It takes effect when the layer is next drawn. Only a layer that fixes the size of the branch's output counts: a gate
    (squeeze-and-excitation) or an activation at the end is passed over.
    """
    own = getattr(module, "mark_small", None)
    if own is not None:
        return bool(own(scale))
    if isinstance(module, nn.Sequential):
        return any(mark_small(child, scale) for child in reversed(module))
    if isinstance(getattr(module, "weight", None), nn.Parameter) and not isinstance(module, nn.PReLU):
        module.init_scale = scale  # type: ignore[assignment]
        return True
    return False


def like_torchs(
    cls: Callable[..., AnyModule],
    *args: Any,
    init_scale: float = 1.0,
    bias_init: float = 0.0,
    init_actv: Activation = None,
    **options: Any,
) -> AnyModule:
    """Returns a layer of torch's own class, drawn by our rule, which reads the marks that are left on it."""
    device = torch.empty(0).device  # torch.get_default_device() of torch 2.6 does not know of `with device:`
    made: Any = torch.nn.utils.skip_init(cls, *args, device=device, **options)  # type: ignore[no-untyped-call]
    if isinstance(init_actv, str):
        made.init_actv = init_actv
    if init_scale != 1:
        made.init_scale = init_scale
    if bias_init != 0:
        made.bias_init = bias_init
    rule = rule_of(made)
    assert rule is not None
    rule(None)
    return made  # type: ignore[no-any-return]


def rule_of(module: nn.Module) -> Callable[[torch.Generator | None], None] | None:
    """Returns what draws a module's own parameters, or None."""
    own = getattr(module, "init_params", None)
    if own is not None:
        return own  # type: ignore[no-any-return]
    for cls in type(module).__mro__:
        if cls in _rules:
            return partial(_rules[cls], module)
    reset = getattr(module, "reset_parameters", None)
    return partial(_reset, module) if callable(reset) else None


def _reset(module: nn.Module, rng: torch.Generator | None) -> None:
    """Lets a torch module draw by its own rule, which knows only the global generator.

    It draws on the CPU, for the same values on every device, and leaves the streams of all devices as they were.
    """
    elsewhere = any(p.device.type != "cpu" and not hasattr(p, "device_mesh") for p in module.parameters())
    drawn = copy.deepcopy(module).to("cpu") if elsewhere else module
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=rng, device="cpu").item()))
        drawn.reset_parameters()  # type: ignore[operator]
    if elsewhere:
        with torch.no_grad():
            for tensor, value in zip(_tensors(module), _tensors(drawn), strict=True):
                tensor.copy_(value)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()


def _put(target: Tensor, value: Tensor) -> None:
    with torch.no_grad():
        if hasattr(
            target, "device_mesh"
        ):  # a sharded parameter: every rank has drawn the same whole, and keeps its part
            from torch.distributed.tensor import distribute_tensor

            sharded: DTensor = target  # type: ignore[assignment]
            value = value.to(device=sharded.to_local().device, dtype=sharded.dtype)
            sharded.copy_(distribute_tensor(value, sharded.device_mesh, sharded.placements))
        else:
            target.copy_(value)


def _init_scale(module: nn.Module) -> float:
    return float(getattr(module, "init_scale", 1.0))


@init_rule(nn.Linear)
def _draw_linear(module: nn.Linear, rng: torch.Generator | None) -> None:
    draw_weight(module.weight, getattr(module, "init_actv", None), _init_scale(module), rng)
    if module.bias is not None:
        fill(module.bias, getattr(module, "bias_init", 0.0))


def _draw_conv(module: nn.Module, rng: torch.Generator | None) -> None:
    assert isinstance(
        module, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    )
    actv, scale = getattr(module, "init_actv", None), _init_scale(module)
    if module.transposed:  # an output element sees kernel / stride taps of each input channel
        kernel = max(1, math.prod(module.kernel_size) // math.prod(module.stride))
        fan_in = module.in_channels // module.groups * kernel
        draw_normal(module.weight, scale * actv_gain(actv) / math.sqrt(fan_in), rng)
    else:
        draw_weight(module.weight, actv, scale, rng)
    if module.bias is not None:
        fill(module.bias, 0.0)


for _conv_class in (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d):
    _rules[_conv_class] = _draw_conv


@init_rule(nn.Embedding)
def _draw_embedding(module: nn.Embedding, rng: torch.Generator | None) -> None:
    if module.weight.is_meta:
        return
    drawn = torch.randn(module.weight.shape, generator=rng, dtype=torch.float32, device="cpu").mul_(0.02)
    if module.padding_idx is not None:
        drawn[module.padding_idx] = 0
    _put(module.weight, drawn)


def _draw_norm(module: nn.Module, rng: torch.Generator | None) -> None:
    if isinstance(module, nn.modules.batchnorm._NormBase):
        module.reset_running_stats()
    for name, value in (("weight", _init_scale(module)), ("bias", 0.0)):
        parameter = getattr(module, name, None)
        if parameter is not None:
            fill(parameter, value)


for _norm_class in (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm):
    _rules[_norm_class] = _draw_norm


@init_rule(nn.PReLU)
def _draw_prelu(module: nn.PReLU, rng: torch.Generator | None) -> None:
    fill(module.weight, module.init)


@init_rule(nn.RNNBase)
def _draw_recurrent(module: nn.RNNBase, rng: torch.Generator | None) -> None:
    bound = 1 / math.sqrt(module.hidden_size)
    for name, parameter in module.named_parameters(recurse=False):
        if "bias" not in name:
            draw_uniform(parameter, bound, rng)
            continue
        start = torch.zeros(parameter.shape, device="cpu")
        if isinstance(module, nn.LSTM) and "bias_ih" in name:
            start[module.hidden_size : 2 * module.hidden_size] = 1  # an open forget gate carries gradients far
        fill(parameter, start)


@init_rule(nn.MultiheadAttention)
def _draw_attention(module: nn.MultiheadAttention, rng: torch.Generator | None) -> None:
    for weight in (module.in_proj_weight, module.q_proj_weight, module.k_proj_weight, module.v_proj_weight):
        if weight is not None:
            draw_normal(weight, 1 / math.sqrt(weight.shape[1]), rng)
    for bias in (module.in_proj_bias, module.bias_k, module.bias_v):
        if bias is not None:
            fill(bias, 0.0)
