"""Weights that a module computes from other tensors: weight norm, spectral norm, pruning, any parametrization.

To draw such a layer, its rule runs on a stand-in that holds plain parameters, and what it drew is taken apart again.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

PutBack = Callable[[Tensor, torch.Generator | None], None]


def stand_in(module: nn.Module) -> tuple[nn.Module, dict[str, PutBack]]:
    """Returns a module that is drawn in this one's place, and how to put back each weight that is computed.

    The stand-in shares all other parameters and children with the module; it is the module itself if nothing of it is
    computed.

    Raises:
        ValueError: A weight is no parameter, and it is unknown what computes it.
    """
    shapes: dict[str, Tensor] = {}
    back: dict[str, PutBack] = {}
    cls = type(module)
    if parametrize.is_parametrized(module):
        cls = cls.__mro__[1]  # parametrizations give each module a class of its own
        for name in module.parametrizations:  # type: ignore[union-attr]
            shapes[name], back[name] = getattr(module, name), _into_parametrization(module, str(name))
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            shapes[hook.name], back[hook.name] = getattr(module, f"{hook.name}_v"), _into_weight_norm(module, hook)
        elif isinstance(hook, SpectralNorm):
            shapes[hook.name], back[hook.name] = getattr(module, f"{hook.name}_orig"), _into_spectral(module, hook)
        elif isinstance(hook, BasePruningMethod):
            name = hook._tensor_name
            shapes[name], back[name] = getattr(module, f"{name}_orig"), _into_pruned(module, hook)
    weight = vars(module).get("weight")
    if isinstance(weight, Tensor) and "weight" not in back:
        raise ValueError(
            f"the weight of {type(module).__name__} must be a parameter, or what computes it be known, to be drawn"
        )
    if not back:
        return module, back
    made: nn.Module = object.__new__(cls)
    vars(made).update({key: value for key, value in vars(module).items() if key not in back})
    fresh = {name: nn.Parameter(torch.empty_like(tensor)) for name, tensor in shapes.items()}
    vars(made)["_parameters"] = {**module._parameters, **fresh}
    vars(made)["_modules"] = {name: child for name, child in module._modules.items() if name != "parametrizations"}
    return made, back


def _into_parametrization(module: nn.Module, name: str) -> PutBack:
    def put_back(value: Tensor, rng: torch.Generator | None) -> None:
        steps: Any = module.parametrizations[name]  # type: ignore[index]
        if all(hasattr(step, "right_inverse") for step in steps):
            setattr(module, name, value)
        elif isinstance(getattr(steps, "original", None), Tensor) and steps.original.shape == value.shape:
            steps.original.copy_(value)
        else:
            raise ValueError(
                f"{name} of {type(module).__name__} cannot be drawn: its parametrization has no right_inverse"
            )
        for step in steps:
            if isinstance(step, _SpectralNorm) and value.ndim > 1:
                _draw_direction(step._u, rng)
                _draw_direction(step._v, rng)
                step._power_method(step._reshape_weight_to_matrix(value), 15)

    return put_back


def _into_weight_norm(module: nn.Module, hook: WeightNorm) -> PutBack:
    def put_back(value: Tensor, rng: torch.Generator | None) -> None:
        getattr(module, f"{hook.name}_v").copy_(value)
        getattr(module, f"{hook.name}_g").copy_(torch.norm_except_dim(value, 2, hook.dim))
        setattr(module, hook.name, hook.compute_weight(module))

    return put_back


def _into_spectral(module: nn.Module, hook: SpectralNorm) -> PutBack:
    def put_back(value: Tensor, rng: torch.Generator | None) -> None:
        getattr(module, f"{hook.name}_orig").copy_(value)
        for end in ("u", "v"):
            _draw_direction(getattr(module, f"{hook.name}_{end}"), rng)
        for _ in range(15):
            setattr(module, hook.name, hook.compute_weight(module, do_power_iteration=True))

    return put_back


def _into_pruned(module: nn.Module, hook: BasePruningMethod) -> PutBack:
    def put_back(value: Tensor, rng: torch.Generator | None) -> None:
        getattr(module, f"{hook._tensor_name}_orig").copy_(value)
        setattr(module, hook._tensor_name, hook.apply_mask(module))  # type: ignore[no-untyped-call]

    return put_back


def _draw_direction(target: Tensor, rng: torch.Generator | None) -> None:
    drawn = torch.randn(target.shape, generator=rng, dtype=torch.float32, device="cpu")
    target.copy_(drawn / drawn.norm())
