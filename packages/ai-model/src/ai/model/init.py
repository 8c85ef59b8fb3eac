"""How parameters are drawn: each block owns its rule, and users register rules for their own modules.

A rule is a function from a module and a CPU generator that fills the parameters the module owns itself (not those of
its children). Drawing happens on the CPU in float32 and is then copied, so one seed gives the same weights on any
device and in any dtype.
"""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

Rule = Callable[[nn.Module, torch.Generator], None]
M = TypeVar("M", bound=nn.Module)

_RULES: dict[type[nn.Module], Rule] = {}


def init_rule(kind: type[M]) -> Callable[[Callable[[M, torch.Generator], None]], Callable[[M, torch.Generator], None]]:
    """Returns a decorator that registers a rule for a module class and its subclasses.

    Args:
        kind: The class whose own parameters the rule fills.

    Example:
        >>> class Scale(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.scale = nn.Parameter(torch.empty(3))
        >>> @init_rule(Scale)
        ... def _ones(module, generator):
        ...     nn.init.ones_(module.scale)
        >>> init_module(Scale(), seed=0).scale.tolist()
        [1.0, 1.0, 1.0]
    """

    def register(rule: Callable[[M, torch.Generator], None]) -> Callable[[M, torch.Generator], None]:
        _RULES[kind] = rule  # type: ignore[assignment]
        return rule

    return register


def init_module(module: M, *, seed: int | None = None) -> M:
    """Draws every parameter of a module, block by block, and returns the module.

    A module with a method `init_params(generator)` draws its own; else the rule registered for its class or the nearest
    base class; else torch's own `reset_parameters`, run on torch's global generator seeded from ours.

    Args:
        module: Any module.
        seed: Of the draw; None takes one from torch's global generator, so that `torch.manual_seed` works.
    """
    if seed is None:
        seed = int(torch.randint(2**62, ()))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for child in module.modules():
            _init_one(child, generator)
    return module


def _init_one(module: nn.Module, generator: torch.Generator) -> None:
    own = getattr(module, "init_params", None)
    if callable(own):
        own(generator)
        return
    for base in type(module).__mro__:
        rule = _RULES.get(base)
        if rule is not None:
            rule(module, generator)
            return
    reset = getattr(module, "reset_parameters", None)
    if callable(reset):
        with torch.random.fork_rng():
            torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
            reset()
        weight_init = getattr(module, "weight_init", None)  # set by a block whose branch starts small
        if isinstance(weight_init, float):
            nn.init.constant_(module.get_parameter("weight"), weight_init)


def draw_normal(parameter: Tensor, std: float, generator: torch.Generator) -> None:
    """Fills a parameter with N(0, std²), drawn on the CPU."""
    parameter.copy_(torch.randn(parameter.shape, generator=generator).mul_(std))
