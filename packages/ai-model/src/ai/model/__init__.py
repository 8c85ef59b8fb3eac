"""Lowercase functions that return torch modules, checked against references."""

from ai.model import f, norm
from ai.model.activation import actv
from ai.model.container import module_dict, modules, null, repeat, res, seq
from ai.model.conv import conv
from ai.model.init import init_module, init_rule
from ai.model.linear import fc
from ai.model.model import Model
from ai.model.pyramid import pyramid
from ai.model.resblk import resblk, se
from ai.model.shape import flatten, global_avg
from ai.model.state import load_into, load_state, save_state

__all__ = [
    "Model",
    "actv",
    "conv",
    "f",
    "fc",
    "flatten",
    "global_avg",
    "init_module",
    "init_rule",
    "load_into",
    "load_state",
    "module_dict",
    "modules",
    "norm",
    "null",
    "pyramid",
    "repeat",
    "res",
    "resblk",
    "save_state",
    "se",
    "seq",
]
