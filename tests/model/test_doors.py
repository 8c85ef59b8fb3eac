"""Every number that a block is made with is looked at: what is none, or not whole, is named; numpy's are taken."""

import inspect
import math
import types
import typing
from typing import Any

import numpy as np
import pytest
import torch

import ai.model as m

# What a block needs to be made; it is made with one wrong number among these.
_NEEDED: dict[str, Any] = {
    **dict.fromkeys(("n1", "n2", "nc1", "nc2", "nc", "dim", "z_dim", "hidden", "n_codes"), 8),
    **dict.fromkeys(("n", "rank", "num_heads", "n_heads", "n_layers", "patch"), 2),
    **dict.fromkeys(("factor", "bound"), 1.0),
}
_OF_ONE = {
    "conv_separable": {"k": 3},
    "conv_transposed": {"k": 4},
    "res": {"main": m.fc(8, 8)},
    "rotary": {"scaling": "linear"},
}
# They act on tensors and models that exist, or count the sizes of a pattern.
_PASSED_OVER = {"Categorical", "Gaussian", "Mixed", "SquashedGaussian", "Lagged", "KVCache", "DiffusionModel", "Model"}
_PASSED_OVER |= {"init_module", "orthogonal", "fill", "param", "rearrange", "upfirdn", "pyramid", "repeat"}
_PASSED_OVER |= {"running_norm", "summarize"}
_PASSED_OVER |= {name for name in m.__all__ if name.startswith(("draw_", "load_", "save_", "tx_", "to_"))}


def _wrong(hint: Any) -> list[Any]:
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if float in kinds:
        return ["3", math.nan] if str not in kinds else []
    return [1.5, "3", True, math.nan] if int in kinds and str not in kinds and bool not in kinds else []


_BLOCKS = {name: getattr(m, name) for name in m.__all__ if name not in _PASSED_OVER and callable(getattr(m, name))}
_BLOCKS |= {f"norm.{name}": getattr(m.norm, name) for name in ("batch", "instance", "group", "layer", "rms", "pixel")}
_DOORS = {
    f"{name}({parameter.name})": (block, parameter, wrong)
    for name, block in _BLOCKS.items()
    for parameter in inspect.signature(block).parameters.values()
    if (wrong := _wrong(parameter.annotation))
}


def _given(block: Any) -> dict[str, Any]:
    needed = {
        name: _NEEDED[name]
        for name, parameter in inspect.signature(block).parameters.items()
        if parameter.default is parameter.empty and name in _NEEDED
    }
    return needed | _OF_ONE.get(block.__name__, {})


@pytest.mark.parametrize("case", _DOORS)
def test_what_is_no_number_is_named_at_the_door(case):
    block, parameter, wrong = _DOORS[case]
    for value in wrong:
        with pytest.raises((TypeError, ValueError), match=rf"\b{parameter.name}\b.* must be "):
            block(**{**_given(block), parameter.name: value})


@pytest.mark.parametrize("case", _DOORS)
def test_numbers_of_numpy_are_numbers(case):
    block, parameter, _ = _DOORS[case]
    given = _given(block)
    value = given.get(parameter.name, parameter.default)
    if type(value) in (int, float):
        torch.manual_seed(0)
        block(**{**given, parameter.name: (np.int64 if type(value) is int else np.float64)(value)})


def test_the_doors_are_many():
    assert len(_DOORS) > 60
