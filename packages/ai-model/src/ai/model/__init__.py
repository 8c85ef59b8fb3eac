"""Lowercase functions that return torch modules, checked against references."""

from ai.model import f, norm
from ai.model.activation import actv, actv_gain
from ai.model.attention import attn, sa
from ai.model.conditioning.dit import dit_blk
from ai.model.conditioning.time import time_emb
from ai.model.container import duel, gru, lstm, module_dict, modules, null, repeat, res, seq
from ai.model.conv import conv
from ai.model.convolution.convnext import convnext_blk
from ai.model.convolution.ranks import conv_nd, conv_separable, conv_transposed, pool
from ai.model.diffusion import DiffusionModel
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
from ai.model.fold import fold
from ai.model.init import (
    draw_normal,
    draw_orthogonal,
    draw_uniform,
    draw_weight,
    fill,
    init_module,
    init_rule,
    orthogonal,
)
from ai.model.lagged import Lagged
from ai.model.latent.kl import kl
from ai.model.latent.vq import vq
from ai.model.linear import fc
from ai.model.model import Model
from ai.model.modulated import modconv, modfc, modresblk, modseq
from ai.model.plain import to_torch
from ai.model.policy import Categorical, Gaussian, Mixed, SquashedGaussian
from ai.model.position import embed, patch_emb, pos_emb, registers
from ai.model.pyramid import pyramid
from ai.model.resblk import resblk, resblk_group, se
from ai.model.running_norm import running_norm
from ai.model.state import load_into, load_state, save_state
from ai.model.summary import summarize
from ai.model.tokens.cache import KVCache
from ai.model.tokens.rotary import rotary
from ai.model.transformer import drop_path, layer_scale, mlp, tx_dec, tx_dec_blk, tx_enc, tx_enc_blk

__all__ = [
    "Categorical",
    "DiffusionModel",
    "Gaussian",
    "KVCache",
    "Lagged",
    "Mixed",
    "Model",
    "SquashedGaussian",
    "actv",
    "actv_gain",
    "attn",
    "blur",
    "clamp",
    "conv",
    "conv_nd",
    "conv_separable",
    "conv_transposed",
    "convnext_blk",
    "dit_blk",
    "draw_normal",
    "draw_orthogonal",
    "draw_uniform",
    "draw_weight",
    "drop_path",
    "duel",
    "embed",
    "f",
    "fc",
    "fill",
    "flatten",
    "fold",
    "gain",
    "global_avg",
    "gru",
    "init_module",
    "init_rule",
    "kl",
    "layer_scale",
    "load_into",
    "load_state",
    "lstm",
    "minibatch_std",
    "mlp",
    "modconv",
    "modfc",
    "modresblk",
    "modseq",
    "module_dict",
    "modules",
    "noise",
    "norm",
    "null",
    "orthogonal",
    "param",
    "patch_emb",
    "pool",
    "pos_emb",
    "pyramid",
    "rearrange",
    "registers",
    "repeat",
    "res",
    "resample",
    "resblk",
    "resblk_group",
    "rotary",
    "running_norm",
    "sa",
    "save_state",
    "se",
    "seq",
    "summarize",
    "time_emb",
    "to_torch",
    "tx_dec",
    "tx_dec_blk",
    "tx_enc",
    "tx_enc_blk",
    "upfirdn",
    "vq",
]
