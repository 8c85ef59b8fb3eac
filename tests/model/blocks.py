"""Every public block, with inputs it takes: what the tests of all blocks run over."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import ai.model as m


@dataclass(frozen=True)
class Block:
    make: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...]
    idle: tuple[str, ...] = ()  # parameters that have no gradient by construction
    integers: int = 0  # if not 0, the inputs are integers below this

    def inputs(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
        rng = torch.Generator().manual_seed(0)
        if self.integers:
            return tuple(torch.randint(self.integers, shape, generator=rng) for shape in self.shapes)
        return tuple(torch.randn(shape, generator=rng).to(dtype) for shape in self.shapes)


def first_of(pair: tuple[Tensor, object]) -> Tensor:
    """Of a recurrent layer's output and state; at the top of the module, so that it pickles."""
    return pair[0]


def code_and_loss(out):
    """Of a quantiser: a sum that both its codes and its input have an effect on."""
    return out.x + out.loss


def latent_and_divergence(out):
    """Of a variational bottleneck, likewise."""
    return out.z + out.kl.unflatten(0, (-1, 1, 1, 1))


IMAGE, TOKENS, VECTOR, Z = (3, 4, 8, 8), (2, 6, 8), (3, 8), (3, 5)

BLOCKS = {
    "fc": Block(lambda: m.fc(8, 6, actv="gelu"), (VECTOR,)),
    "fc equalised": Block(lambda: m.fc(8, 6, actv="lrelu", scale_w=True, lr_mult=0.01, bias_init=1.0), (VECTOR,)),
    "fc dropout": Block(lambda: m.fc(8, 6, dropout=0.1), (VECTOR,)),
    "conv": Block(lambda: m.conv(4, 6, actv="mish"), (IMAGE,)),
    "conv all options": Block(
        lambda: m.conv(
            4,
            6,
            3,
            2,
            "lrelu",
            "group",
            gain=1.4,
            clamp=256,
            noise=True,
            blur=(1, 3, 3, 1),
            padtype="reflect",
            scale_w=True,
            lr_mult=0.5,
        ),
        (IMAGE,),
    ),
    "conv without border": Block(lambda: m.conv(4, 6, 4, 2, "relu", padtype="none"), (IMAGE,)),
    "conv down": Block(lambda: m.conv(4, 6, stride=2, norm="batch", actv="elu"), (IMAGE,)),
    "conv up": Block(lambda: m.conv(4, 6, stride=0.5, norm="instance", actv="silu"), (IMAGE,)),
    "conv up filtered": Block(lambda: m.conv(4, 6, stride=0.5, blur=(1, 3, 3, 1)), (IMAGE,)),
    "conv depthwise": Block(lambda: m.conv(4, 4, groups=4), (IMAGE,)),
    "conv_nd": Block(lambda: m.conv_nd(2, 4, 6, (1, 5), dilation=(1, 2), actv="silu", norm="group"), (IMAGE,)),
    "conv_nd sequence": Block(lambda: m.conv_nd(1, 6, 4, 4, padtype="circular", actv="relu"), (TOKENS,)),
    "conv_nd volume": Block(lambda: m.conv_nd(3, 2, 3, 3, 2), ((2, 2, 4, 4, 4),)),
    "conv_transposed": Block(lambda: m.conv_transposed(4, 6, actv="relu"), (IMAGE,)),
    "conv_separable": Block(lambda: m.conv_separable(4, 6, actv="silu"), (IMAGE,)),
    "convnext_blk": Block(lambda: m.convnext_blk(4, layer_scale=0.1, drop=0.1), (IMAGE,)),
    "seq": Block(lambda: m.seq(m.fc(8, 8), torch.tanh, m.fc(8, 2)), (VECTOR,)),
    "repeat": Block(lambda: m.repeat(2, m.fc(8, 8, actv="relu")), (VECTOR,)),
    "res": Block(lambda: m.res(m.seq(m.fc(8, 8, actv="relu"), m.fc(8, 8))), (VECTOR,)),
    "pyramid": Block(lambda: m.pyramid(8, 2, 4, 8, lambda _, a, b: m.conv(a, b, stride=2)), (IMAGE,)),
    "resblk": Block(lambda: m.resblk(4, 6), (IMAGE,)),
    "resblk down": Block(lambda: m.resblk(4, 6, 2, actv="relu"), (IMAGE,)),
    "resblk up": Block(lambda: m.resblk(4, 6, 0.5, norm="group", se=False), (IMAGE,)),
    "resblk_group": Block(lambda: m.resblk_group(2, 4, 6, 2), (IMAGE,)),
    "se": Block(lambda: m.se(4, 2), (IMAGE,)),
    "attn": Block(lambda: m.attn(8, 2), (TOKENS, (2, 5, 8))),
    "sa": Block(lambda: m.sa(8, 2, 4), (TOKENS,)),
    "sa all options": Block(
        lambda: m.sa(8, 4, 4, n_kv_heads=2, causal=True, rotary=True, qk_norm=True, dropout=0.1), (TOKENS,)
    ),
    "sa window": Block(lambda: m.sa(8, 2, causal=True, window=3), (TOKENS,)),
    "sa alibi": Block(lambda: m.sa(8, 2, alibi=True, bias=False), (TOKENS,)),
    "sa yarn": Block(lambda: m.sa(8, 2, rotary=m.rotary(scaling="yarn", factor=4.0, context=8)), (TOKENS,)),
    "mlp": Block(lambda: m.mlp(8, 16), (TOKENS,)),
    "mlp dropout": Block(lambda: m.mlp(8, 16, "prelu", dropout=0.1), (TOKENS,)),
    "mlp gated": Block(lambda: m.mlp(8, 16, gate="silu", bias=False, dropout=0.1), (TOKENS,)),
    "layer_scale": Block(lambda: m.layer_scale(8, 0.1), (TOKENS,)),
    "tx_enc_blk": Block(lambda: m.tx_enc_blk(8, 2, mlp_dim=16, head_dim=4, drop=0.1), (TOKENS,)),
    "tx_enc_blk post-norm": Block(lambda: m.tx_enc_blk(8, 2, post_norm=True, actv="relu"), (TOKENS,)),
    "tx_enc_blk scaled": Block(lambda: m.tx_enc_blk(8, 2, layer_scale=0.1, gate="gelu", bias=False), (TOKENS,)),
    "tx_enc": Block(lambda: m.tx_enc(2, 8, 2, norm="rms"), (TOKENS,)),
    "tx_dec_blk": Block(lambda: m.tx_dec_blk(8, 2), (TOKENS, (2, 5, 8))),
    "tx_dec_blk grouped": Block(lambda: m.tx_dec_blk(8, 4, n_kv_heads=2, norm="rms"), (TOKENS, (2, 5, 8))),
    "tx_dec": Block(lambda: m.tx_dec(2, 8, 2, dim_context=4), (TOKENS, (2, 5, 4))),
    "modconv": Block(lambda: m.modconv(4, 6, 5, actv="lrelu", noise=True), (IMAGE, Z)),
    "modconv down": Block(lambda: m.modconv(4, 6, 5, stride=2, blur=(1, 2, 1), scale_w=True), (IMAGE, Z)),
    "modconv up": Block(lambda: m.modconv(4, 6, 5, k=1, stride=0.5, demod=False), (IMAGE, Z)),
    "modconv adalin": Block(lambda: m.modconv(4, 6, 5, "adalin"), (IMAGE, Z)),
    "modfc": Block(lambda: m.modfc(8, 6, 5, actv="relu"), (VECTOR, Z)),
    "modresblk": Block(lambda: m.modresblk(4, 6, 5, 2), (IMAGE, Z)),
    "modseq": Block(lambda: m.modseq(m.conv(4, 4), m.modconv(4, 6, 5)), (IMAGE, Z)),
    "pos_emb": Block(lambda: m.pos_emb(6, 8), (TOKENS,)),
    "pos_emb sinusoidal": Block(lambda: m.pos_emb(6, 8, "sinusoidal"), (TOKENS,)),
    "pos_emb 2d": Block(lambda: m.pos_emb((2, 3), 8, "2d"), (TOKENS,)),
    "patch_emb": Block(lambda: m.patch_emb(4, 8, 4), (IMAGE,)),
    "patch_emb without bias": Block(lambda: m.patch_emb(4, 8, 4, bias=False), (IMAGE,)),
    "registers": Block(lambda: m.registers(2, 8), (TOKENS,)),
    "lstm": Block(lambda: m.seq(m.lstm(8, 4), first_of), (TOKENS,)),
    "gru": Block(lambda: m.seq(m.gru(8, 4), first_of), (TOKENS,)),
    "time_emb": Block(lambda: m.time_emb(6), ((3,),)),
    "time_emb fourier": Block(lambda: m.time_emb(6, "fourier", scale=1.0), ((3,),)),
    "dit_blk": Block(lambda: m.dit_blk(8, 2, 5, init_gain=0.5), (TOKENS, (2, 5))),
    "vq": Block(lambda: m.seq(m.vq(5, 4), code_and_loss), (IMAGE,)),
    "kl": Block(lambda: m.seq(m.kl(), latent_and_divergence), (IMAGE,)),
    "embed": Block(lambda: m.embed(5, 8), ((3, 4),), integers=5),
    "batch": Block(lambda: m.norm.batch(4), (IMAGE,)),
    "instance": Block(lambda: m.norm.instance(4), (IMAGE,)),
    "group": Block(lambda: m.norm.group(4, 2), (IMAGE,)),
    "group by name": Block(lambda: m.resblk(4, 6, norm="group:2"), (IMAGE,)),
    "layer": Block(lambda: m.norm.layer(8), (TOKENS,)),
    "rms": Block(lambda: m.norm.rms(8), (TOKENS,)),
    "pixel": Block(lambda: m.norm.pixel(), (IMAGE,)),
    "actv": Block(lambda: m.actv("prelu"), (VECTOR,)),
    "flatten": Block(lambda: m.flatten(), (IMAGE,)),
    "global_avg": Block(lambda: m.global_avg(), (IMAGE,)),
    "pool": Block(lambda: m.pool(3, 1, "avg"), (IMAGE,)),
    "resample": Block(lambda: m.resample(2, (1, 3, 3, 1)), (IMAGE,)),
    "blur": Block(lambda: m.blur(), (IMAGE,)),
    "upfirdn": Block(lambda: m.upfirdn((1, 3, 3, 1), 2, 1, (2, 1), 4), (IMAGE,)),
    "clamp": Block(lambda: m.clamp(5.0), (IMAGE,)),
    "gain": Block(lambda: m.gain(2.0), (IMAGE,)),
    "noise": Block(lambda: m.noise(), (IMAGE,)),
    "rearrange": Block(lambda: m.rearrange("b c (h p) (w q) -> b (h w) (c p q)", p=2, q=2), (IMAGE,)),
    "null": Block(lambda: m.null(), (IMAGE,)),
    "param": Block(lambda: m.param(2, 3), (VECTOR,)),
    "minibatch_std": Block(lambda: m.minibatch_std(3), (IMAGE,)),
    "drop_path": Block(lambda: m.drop_path(0.1), (TOKENS,)),
    "duel": Block(lambda: m.duel(m.fc(8, 1), m.fc(8, 3)), (VECTOR,)),
    "running_norm": Block(lambda: m.running_norm(8).eval(), (VECTOR,)),  # in training mode each call moves it
}
