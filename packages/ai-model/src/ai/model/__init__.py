"""Lowercase functions that return torch modules, checked against references.

Names resolve on first use, so whoever needs one module, such as the reader of snapshots, does not pay for all blocks.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ai.model import f as f
    from ai.model import norm as norm
    from ai.model.activation import actv as actv
    from ai.model.activation import actv_gain as actv_gain
    from ai.model.attention import attn as attn
    from ai.model.attention import sa as sa
    from ai.model.conditioning.dit import dit_blk as dit_blk
    from ai.model.conditioning.time import time_emb as time_emb
    from ai.model.container import duel as duel
    from ai.model.container import gru as gru
    from ai.model.container import lstm as lstm
    from ai.model.container import module_dict as module_dict
    from ai.model.container import modules as modules
    from ai.model.container import null as null
    from ai.model.container import repeat as repeat
    from ai.model.container import res as res
    from ai.model.container import seq as seq
    from ai.model.conv import conv as conv
    from ai.model.convolution.convnext import convnext_blk as convnext_blk
    from ai.model.convolution.ranks import conv_nd as conv_nd
    from ai.model.convolution.ranks import conv_separable as conv_separable
    from ai.model.convolution.ranks import conv_transposed as conv_transposed
    from ai.model.convolution.ranks import pool as pool
    from ai.model.diffusion import DiffusionModel as DiffusionModel
    from ai.model.elementwise import blur as blur
    from ai.model.elementwise import clamp as clamp
    from ai.model.elementwise import flatten as flatten
    from ai.model.elementwise import gain as gain
    from ai.model.elementwise import global_avg as global_avg
    from ai.model.elementwise import minibatch_std as minibatch_std
    from ai.model.elementwise import noise as noise
    from ai.model.elementwise import param as param
    from ai.model.elementwise import rearrange as rearrange
    from ai.model.elementwise import resample as resample
    from ai.model.elementwise import upfirdn as upfirdn
    from ai.model.fold import fold as fold
    from ai.model.init import draw_normal as draw_normal
    from ai.model.init import draw_orthogonal as draw_orthogonal
    from ai.model.init import draw_uniform as draw_uniform
    from ai.model.init import draw_weight as draw_weight
    from ai.model.init import fill as fill
    from ai.model.init import init_module as init_module
    from ai.model.init import init_rule as init_rule
    from ai.model.init import orthogonal as orthogonal
    from ai.model.lagged import Lagged as Lagged
    from ai.model.latent.kl import kl as kl
    from ai.model.latent.vq import vq as vq
    from ai.model.linear import fc as fc
    from ai.model.model import Model as Model
    from ai.model.modulated import modconv as modconv
    from ai.model.modulated import modfc as modfc
    from ai.model.modulated import modresblk as modresblk
    from ai.model.modulated import modseq as modseq
    from ai.model.plain import to_torch as to_torch
    from ai.model.policy import Categorical as Categorical
    from ai.model.policy import Gaussian as Gaussian
    from ai.model.policy import Mixed as Mixed
    from ai.model.policy import SquashedGaussian as SquashedGaussian
    from ai.model.position import embed as embed
    from ai.model.position import patch_emb as patch_emb
    from ai.model.position import pos_emb as pos_emb
    from ai.model.position import registers as registers
    from ai.model.pyramid import pyramid as pyramid
    from ai.model.resblk import resblk as resblk
    from ai.model.resblk import resblk_group as resblk_group
    from ai.model.resblk import se as se
    from ai.model.running_norm import running_norm as running_norm
    from ai.model.state import load_into as load_into
    from ai.model.state import load_state as load_state
    from ai.model.state import save_state as save_state
    from ai.model.summary import summarize as summarize
    from ai.model.tokens.cache import KVCache as KVCache
    from ai.model.tokens.rotary import rotary as rotary
    from ai.model.transformer import drop_path as drop_path
    from ai.model.transformer import layer_scale as layer_scale
    from ai.model.transformer import mlp as mlp
    from ai.model.transformer import tx_dec as tx_dec
    from ai.model.transformer import tx_dec_blk as tx_dec_blk
    from ai.model.transformer import tx_enc as tx_enc
    from ai.model.transformer import tx_enc_blk as tx_enc_blk

# Public name -> the module that defines it.
_OWNERS = {
    "Categorical": "policy",
    "DiffusionModel": "diffusion",
    "Gaussian": "policy",
    "KVCache": "tokens.cache",
    "Lagged": "lagged",
    "Mixed": "policy",
    "Model": "model",
    "SquashedGaussian": "policy",
    "actv": "activation",
    "actv_gain": "activation",
    "attn": "attention",
    "blur": "elementwise",
    "clamp": "elementwise",
    "conv": "conv",
    "conv_nd": "convolution.ranks",
    "conv_separable": "convolution.ranks",
    "conv_transposed": "convolution.ranks",
    "convnext_blk": "convolution.convnext",
    "dit_blk": "conditioning.dit",
    "draw_normal": "init",
    "draw_orthogonal": "init",
    "draw_uniform": "init",
    "draw_weight": "init",
    "drop_path": "transformer",
    "duel": "container",
    "embed": "position",
    "fc": "linear",
    "fill": "init",
    "flatten": "elementwise",
    "fold": "fold",
    "gain": "elementwise",
    "global_avg": "elementwise",
    "gru": "container",
    "init_module": "init",
    "init_rule": "init",
    "kl": "latent.kl",
    "layer_scale": "transformer",
    "load_into": "state",
    "load_state": "state",
    "lstm": "container",
    "minibatch_std": "elementwise",
    "mlp": "transformer",
    "modconv": "modulated",
    "modfc": "modulated",
    "modresblk": "modulated",
    "modseq": "modulated",
    "module_dict": "container",
    "modules": "container",
    "noise": "elementwise",
    "null": "container",
    "orthogonal": "init",
    "param": "elementwise",
    "patch_emb": "position",
    "pool": "convolution.ranks",
    "pos_emb": "position",
    "pyramid": "pyramid",
    "rearrange": "elementwise",
    "registers": "position",
    "repeat": "container",
    "res": "container",
    "resample": "elementwise",
    "resblk": "resblk",
    "resblk_group": "resblk",
    "rotary": "tokens.rotary",
    "running_norm": "running_norm",
    "sa": "attention",
    "save_state": "state",
    "se": "resblk",
    "seq": "container",
    "summarize": "summary",
    "time_emb": "conditioning.time",
    "to_torch": "plain",
    "tx_dec": "transformer",
    "tx_dec_blk": "transformer",
    "tx_enc": "transformer",
    "tx_enc_blk": "transformer",
    "upfirdn": "elementwise",
    "vq": "latent.vq",
}


_MODULES = ("f", "norm")  # public themselves


class _Room(ModuleType):
    """A module of this package, which whoever takes its name for a layer's may call: it says which layers it has."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        name = self.__name__.removeprefix(f"{__name__}.")
        has = ", ".join(f"m.{one}" for one, owner in _OWNERS.items() if f"{owner}.".startswith(f"{name}."))
        hint = f"what others call so is {_ELSEWHERE[name]}" if name in _ELSEWHERE else f"in it are {has}"
        raise TypeError(f"{self.__name__} is a module, not a layer" + f": {hint}" * bool(has))

    def __reduce__(self) -> tuple[Any, ...]:
        return import_module, (self.__name__,)  # what carries functions to other processes knows plain modules only


class _Package(_Room):
    """A package in which a function keeps its name where the module that defines it is called the same.

    The import system puts each module into its package under its name: `ai.model.conv` would hide the function `conv`.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if type(value) is ModuleType and value.__name__ == f"{__name__}.{name}" and name not in _MODULES:
            value.__class__ = _Room
        if not (name in _OWNERS and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


# What torch and Keras call a layer -> ours, for whoever asks by their name.
_ELSEWHERE = {
    "BatchNorm2d": "torch.nn.BatchNorm2d, which m.seq takes as it is",
    "Conv2D": "m.conv(nc1, nc2)",
    "Conv2d": "m.conv(nc1, nc2)",
    "Dense": "m.fc(n1, n2)",
    "Dropout": "torch.nn.Dropout, which m.seq takes as it is",
    "Flatten": "m.flatten()",
    "GRU": "m.gru",
    "LSTM": "m.lstm",
    "LayerNorm": "torch.nn.LayerNorm, which m.seq takes as it is",
    "Linear": "m.fc(n1, n2)",
    "Module": "m.Model",
    "MultiheadAttention": "m.attn",
    "ReLU": "m.actv('relu')",
    "Sequential": "m.seq(a, b)",
    "dense": "m.fc(n1, n2)",
    "dropout": "torch.nn.Dropout, which m.seq takes as it is",
    "linear": "m.fc(n1, n2)",
    "relu": "m.actv('relu')",
}

# A type checker goes by the imports above: `__getattr__` would type every misspelling as Any, and a computed `__all__`
# leaves nothing to `import *`.
if not TYPE_CHECKING:
    __all__ = [*_OWNERS, *_MODULES]

    def __getattr__(name: str) -> Any:
        if name in _OWNERS:
            value = getattr(import_module(f"ai.model.{_OWNERS[name]}"), name)
            globals()[name] = value
            return value
        if not name.startswith("_"):
            try:
                return import_module(f"ai.model.{name}")
            except ModuleNotFoundError as error:
                if error.name != f"ai.model.{name}":  # the module is there, and something that it needs is not
                    raise
        hint = f": what others call so is {_ELSEWHERE[name]}" if name in _ELSEWHERE else ""
        raise AttributeError(f"module 'ai.model' has no attribute {name!r}{hint}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
