"""Every number that a block is made with is looked at: what is none, or not whole, is named; numpy's are taken."""

import inspect
import math
import re
import types
import typing
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import ai.model as m

# What a block needs to be made; it is made with one wrong number among these.
_NEEDED: dict[str, Any] = {
    **dict.fromkeys(("n1", "n2", "nc1", "nc2", "nc", "dim", "dim_context", "z_dim", "hidden", "n_codes"), 8),
    **dict.fromkeys(("n", "rank", "height", "width", "num_heads", "n_heads", "n_layers", "patch"), 2),
    **dict.fromkeys(("factor", "bound", "std"), 1.0),
    **{
        "size_in": 8,
        "size_out": 2,
        "nc_min": 2,
        "nc_max": 4,
        "block": lambda size, nc1, nc2: m.conv(nc1, nc2, stride=2),
    },
    **{"kernel": (1, 2, 1), "x": torch.ones(1, 2, 2, 2), "target": torch.zeros(4, 4), "shape": (2,)},
}
_OF_ONE = {
    "conv_separable": {"k": 3},
    "conv_transposed": {"k": 4},
    "duel": {"value": m.fc(8, 1), "advantage": m.fc(8, 3)},
    "res": {"main": m.fc(8, 8)},
    "rotary": {"scaling": "linear"},
    "init_module": {"module": m.fc(2, 2)},
    "orthogonal": {"module": m.fc(2, 2)},
    "repeat": {"block": m.fc(2, 2)},
    "DiffusionModel": {"net": m.null(), "shape": (2,)},
}
# They act on tensors, files and models that exist.
_PASSED_OVER = {"Categorical", "Gaussian", "Mixed", "SquashedGaussian", "Lagged", "KVCache", "Model", "running_norm"}
_PASSED_OVER |= {"fill", "load_into", "load_state", "save_state", "summarize", "to_torch"}


def _wrong(hint: Any) -> list[Any]:
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if float in kinds:
        return ["3", math.nan] if str not in kinds else []
    return [1.5, "3", True, math.nan] if int in kinds and str not in kinds and bool not in kinds else []


_BLOCKS = {name: getattr(m, name) for name in m.__all__ if name not in _PASSED_OVER and callable(getattr(m, name))}
_BLOCKS |= {f"norm.{name}": getattr(m.norm, name) for name in ("batch", "instance", "group", "layer", "rms", "pixel")}
_BLOCKS |= {f"f.{name}": getattr(m.f, name) for name in ("sinusoid", "sinusoid_2d")}
_BLOCKS |= {f"f.{name}": getattr(m.f, name) for name in ("clamp", "gain", "noise", "pixel_norm")}
_DOORS = {
    f"{name}({parameter.name})": (block, parameter, wrong)
    for name, block in _BLOCKS.items()
    for parameter in inspect.signature(block).parameters.values()
    if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    if (wrong := _wrong(parameter.annotation))
}


def _takes_none(hint: Any) -> bool:
    return type(None) in typing.get_args(hint) or hint is None


def _given(block: Any) -> dict[str, Any]:
    needed = {
        name: _NEEDED[name]
        for name, parameter in inspect.signature(block).parameters.items()
        if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_POSITIONAL and name in _NEEDED
    }
    return needed | _OF_ONE.get(block.__name__, {})


@pytest.mark.parametrize("case", _DOORS)
def test_what_is_no_number_is_named_at_the_door(case):
    block, parameter, wrong = _DOORS[case]
    for value in wrong:
        with pytest.raises((TypeError, ValueError), match=rf"\b{parameter.name}\b.* must be "):
            block(**{**_given(block), parameter.name: value})


@pytest.mark.parametrize("case", _DOORS)
def test_none_is_a_number_of_no_block_but_where_it_is_one_of_the_choices(case):
    block, parameter, _ = _DOORS[case]
    given = {**_given(block), parameter.name: None}
    if _takes_none(parameter.annotation):
        torch.manual_seed(0)
        block(**given)
    else:
        with pytest.raises((TypeError, ValueError), match=rf"\b{parameter.name}\b.* must be .*, got None"):
            block(**given)


_OF_MODULES = {
    f"{name}({parameter.name})": (block, parameter.name)
    for name, block in _BLOCKS.items()
    for parameter in inspect.signature(block).parameters.values()
    if parameter.annotation in (nn.Module, nn.Module | None) and parameter.kind is not parameter.VAR_POSITIONAL
}


@pytest.mark.parametrize("case", _OF_MODULES)
def test_a_class_is_no_module_of_a_block(case):
    block, name = _OF_MODULES[case]
    with pytest.raises(TypeError, match=rf"^{name} must be an instance: ReLU\(\.\.\.\), not the class ReLU$"):
        block(**{**_given(block), name: nn.ReLU})


def test_a_class_is_no_member_of_a_sequence_and_no_activation():
    with pytest.raises(TypeError, match=r"^modules\[1\] must be an instance: Flatten\(\.\.\.\), not the class"):
        m.seq(m.fc(4, 4), nn.Flatten)
    with pytest.raises(TypeError, match=r"^layers\[0\] must be an instance: Flatten\(\.\.\.\), not the class"):
        m.modseq(nn.Flatten)
    for make in (lambda: m.fc(4, 4, nn.ReLU), lambda: m.actv(nn.ReLU), lambda: m.conv(3, 4, actv=nn.ReLU)):
        with pytest.raises(TypeError, match=r"^actv must be an instance: ReLU\(\.\.\.\), not the class ReLU$"):
            make()
    with pytest.raises(TypeError, match=r"^net must be an instance: Linear\(\.\.\.\), not the class Linear$"):
        m.Model(nn.Linear)


@pytest.mark.parametrize("wrong", [1.5, "3", None, True])
def test_where_rotary_positions_begin_is_a_whole_number(wrong):
    for ask in (m.f.rotate, m.rotary().rotate):
        with pytest.raises(TypeError, match=rf"^start must be a whole number, got {wrong!r}$"):
            ask(torch.ones(1, 1, 3, 2), start=wrong)


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


@pytest.mark.parametrize("make", [m.param, m.running_norm], ids=["param", "running_norm"])
def test_sizes_that_are_none_are_named_by_their_place(make):
    for size in (1.5, "3", True, math.nan):
        with pytest.raises(TypeError, match=r"^shape\[1\] must be a whole number, got "):
            make(2, size)
    assert make(np.int64(2), 3)(torch.zeros(4, 2, 3)).shape == (4, 2, 3)


def test_an_array_of_several_numbers_is_no_whole_one():
    for several in (np.ones(2, int), torch.ones(2, dtype=torch.int64)):
        with pytest.raises(TypeError, match=r"^n1 must be a whole number, got (array|tensor)\(\[1, 1\]\)$"):
            m.fc(several, 3)


def test_sizes_of_a_pattern_and_of_a_sample_and_numbers_of_a_draw_are_named():
    with pytest.raises(TypeError, match=r"^h must be a whole number, got 2\.0$"):
        m.rearrange("b (h w) -> b h w", h=2.0)
    with pytest.raises(TypeError, match=r"^shape\[0\] must be a whole number, got 2\.0$"):
        m.DiffusionModel(m.null(), [2.0])
    for options in ({"seed": 1.5}, {"sigma_max": "80"}, {"rho": math.nan}):
        with pytest.raises((TypeError, ValueError), match=rf"^{next(iter(options))} must be a"):
            m.DiffusionModel(m.null(), [2]).sample(1, steps=1, **options)


def test_a_seed_of_numpy_draws_as_its_number_does():
    drawn = [m.Model(m.fc(4, 4)).init(seed=seed).net.weight for seed in (3, np.int64(3))]
    assert torch.equal(*drawn)


@pytest.mark.parametrize("name", ["init_module", "orthogonal", "summarize", "to_torch", "Lagged"])
def test_a_class_in_place_of_a_module_is_told_apart(name):
    with pytest.raises(TypeError, match=r"must be an instance: Linear\(\.\.\.\), not the class Linear$"):
        getattr(m, name)(torch.nn.Linear)


def test_a_rule_is_registered_for_a_class_and_a_gain_asked_of_a_known_activation():
    with pytest.raises(TypeError, match=r"^cls must be a class of modules, got Linear\("):
        m.init_rule(m.fc(2, 2))
    for ask in (m.actv_gain, lambda name: m.draw_weight(torch.zeros(2, 2), name)):
        with pytest.raises(ValueError, match=r"^actv \('rellu'\) must be one of elu, "):
            ask("rellu")
    assert m.actv_gain("sigmoid") == 1


_X, _WEIGHT, _STYLE = torch.ones(4, 8, 6, 6), torch.ones(8, 8, 3, 3), torch.ones(4, 8)


@pytest.mark.parametrize("wrong", [1.5, 0, -1, -2, math.nan, math.inf, True, "3"])
def test_whole_numbers_of_functions_are_looked_at(wrong):
    doors = {
        "n": lambda: m.f.one_hot(torch.tensor([0, 2]), wrong),
        "group_size": lambda: m.f.minibatch_std(_X, wrong),
        "n_features": lambda: m.f.minibatch_std(_X, 4, wrong),
        "up": lambda: m.f.upfirdn(_X, (1, 2, 1), up=wrong),
        "down": lambda: m.f.upfirdn(_X, (1, 2, 1), down=wrong),
    }
    if not isinstance(wrong, int) or isinstance(wrong, bool):  # an image may be padded by 0, and cropped
        doors["pad"] = lambda: m.f.upfirdn(_X, (1, 2, 1), pad=wrong)
    for name, ask in doors.items():
        with pytest.raises((TypeError, ValueError), match=rf"^{name}\b.* must be (a whole number|at least 1)"):
            ask()


@pytest.mark.parametrize("wrong", [1.5, 0.4, 0, -1, -2, math.nan, math.inf, True, "3"])
@pytest.mark.parametrize("kernel", [None, (1, 2, 1)])
def test_a_stride_is_a_whole_number_or_one_over_it(wrong, kernel):
    for ask in (
        lambda: m.f.resample(_X, wrong, kernel),
        lambda: m.f.conv(_X, _WEIGHT, stride=wrong, kernel=kernel),
        lambda: m.f.modconv(_X, _WEIGHT, _STYLE, stride=wrong, kernel=kernel),
        lambda: m.resample(wrong, kernel),
        lambda: m.conv(8, 8, stride=wrong, blur=kernel),
        lambda: m.modconv(8, 8, 8, stride=wrong, blur=kernel),
    ):
        with pytest.raises((TypeError, ValueError), match=r"^stride\b.* must be a (whole )?number"):
            ask()


@pytest.mark.parametrize("wrong", ["121", 5, None, (1, "2"), (1, None), (True, True), [[1, 2], [2, 1]]])
def test_what_is_no_list_of_taps_is_named(wrong):
    for ask in (lambda: m.f.blur(_X, wrong), lambda: m.blur(wrong), lambda: m.f.upfirdn(_X, wrong)):
        with pytest.raises(TypeError, match=r"^kernel must be a list of numbers, got "):
            ask()
    if wrong is not None:
        for ask in (lambda: m.f.resample(_X, 2, wrong), lambda: m.f.conv(_X, _WEIGHT, kernel=wrong)):
            with pytest.raises(TypeError, match=r"^kernel must be a list of numbers, got "):
                ask()


def test_taps_that_are_not_finite_are_named_and_those_of_numpy_taken():
    for wrong in ((1, math.nan, 1), (1, math.inf)):
        with pytest.raises(ValueError, match=r"^kernel \(\(1, .*\)\) must hold finite numbers$"):
            m.blur(wrong)
    assert torch.equal(m.f.blur(_X, np.array([1, 2, 1])), m.f.blur(_X))
    assert m.f.upfirdn(_X, (1,), pad=np.int64(2)).shape == (4, 8, 10, 10)


@pytest.mark.parametrize(
    "call",
    [
        lambda given: m.Model(m.fc(1, 1)).init(given),
        lambda given: m.Model(m.fc(1, 1)).save(given),
        lambda given: m.save_state({}, given),
        lambda given: m.load_state(given),
    ],
)
def test_what_is_no_path_is_named(call):
    for given in (0, [b"x"]):
        with pytest.raises(TypeError, match=rf"^path must be text or a path of a file, got {re.escape(repr(given))}$"):
            call(given)


def test_a_folder_in_the_place_of_a_file_of_weights_is_named_and_nothing_is_left_in_it(tmp_path):
    taken = tmp_path / "model.safetensors"
    taken.mkdir()
    with pytest.raises(
        IsADirectoryError, match=r"^path \(.*model.safetensors\) must be a file to write, and is a folder$"
    ):
        m.Model(m.fc(1, 1)).save(taken)
    assert [found.name for found in tmp_path.rglob("*")] == ["model.safetensors"]
