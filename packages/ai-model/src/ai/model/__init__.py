"""Lowercase functions that return torch modules, checked against references."""

from ai.model import f, norm
from ai.model.activation import actv
from ai.model.container import module_dict, modules, null, repeat, res, seq
from ai.model.conv import conv
from ai.model.elementwise import (
    blur,
    clamp,
    flatten,
    gain,
    global_avg,
    minibatch_std,
    noise,
    param,
    rearrange,
    resample,
    upfirdn,
)
from ai.model.init import init_module, init_rule
from ai.model.linear import fc
from ai.model.model import Model
from ai.model.pyramid import pyramid
from ai.model.resblk import resblk, resblk_group, se
from ai.model.state import load_into, load_state, save_state

__all__ = [
    "Model",
    "actv",
    "blur",
    "clamp",
    "conv",
    "f",
    "fc",
    "flatten",
    "gain",
    "global_avg",
    "init_module",
    "init_rule",
    "load_into",
    "load_state",
    "minibatch_std",
    "module_dict",
    "modules",
    "noise",
    "norm",
    "null",
    "param",
    "pyramid",
    "rearrange",
    "repeat",
    "res",
    "resample",
    "resblk",
    "resblk_group",
    "save_state",
    "se",
    "seq",
    "upfirdn",
]
