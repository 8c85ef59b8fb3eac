"""What is public has an example and a place among the blocks that all tests run over; and what importing costs."""

import copy
import inspect
import pickle
import subprocess
import sys

import pytest

import ai.model as m
from tests.model.blocks import BLOCKS

NORMS = [name for name in vars(m.norm) if name in m.norm.KNOWN]
PUBLIC = {
    **{name: getattr(m, name) for name in m.__all__ if callable(getattr(m, name))},
    **{f"f.{name}": getattr(m.f, name) for name in m.f.__all__},
    **{f"norm.{name}": getattr(m.norm, name) for name in NORMS},
    **{
        f"{cls.__name__}.{name}": vars(cls)[name]
        for cls in (m.Model, m.DiffusionModel)
        for name in ("init", "save", "n_params", "device", "set_req_grad", "summary", "sample")
        if name in vars(cls)
    },
}
# They draw, store or describe, or hold modules that are called one by one.
NO_BLOCKS = {
    "actv_gain",
    "draw_normal",
    "draw_orthogonal",
    "draw_uniform",
    "draw_weight",
    "fill",
    "fold",
    "init_module",
    "init_rule",
    "load_into",
    "orthogonal",
}
NO_BLOCKS |= {"load_state", "module_dict", "modules", "rotary", "save_state", "summarize", "to_torch"}


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_an_example(name):
    assert ">>> " in (inspect.getdoc(PUBLIC[name]) or "")


def test_every_block_is_among_those_that_all_tests_run_over():
    factories = {name for name in m.__all__ if name.islower() and callable(getattr(m, name))} - NO_BLOCKS
    tested = {name.split()[0] for name in BLOCKS}
    assert factories | set(NORMS) == tested


def test_who_needs_one_module_does_not_pay_for_the_blocks_and_functions_keep_their_names():
    script = """if True:
        import sys
        import ai.model.arguments, ai.model.saved
        print(*[name for name in sys.modules if name.startswith("ai.model.")])
        import ai.model.conv, ai.model.fold, ai.model.resblk, ai.model as m
        print(m.conv.__qualname__, m.fold.__qualname__, m.resblk.__qualname__, m.sampler.__name__)
        try: m.convolve
        except AttributeError as error: print(error)
    """
    told = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout
    loaded, names, missing = told.splitlines()
    assert set(loaded.split()) <= {
        f"ai.model.{name}" for name in ("arguments", "saved", "state", "weights.names", "weights")
    }
    assert names == "conv fold resblk ai.model.sampler"
    assert missing == "module 'ai.model' has no attribute 'convolve'"


def test_the_package_is_carried_by_name_as_in_functions_that_go_to_other_processes():
    assert pickle.loads(pickle.dumps(m)) is m
    assert copy.deepcopy({"m": m})["m"] is m
