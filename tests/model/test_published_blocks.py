"""Blocks of published networks, made of ours, against their authors' code in transformers with the same weights."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ai.model as m
from ai.model.tokens.rotary import Rotary

transformers = pytest.importorskip("transformers")
DIM, HEADS = 16, 4


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def given(ours, theirs, names):
    """Loads our block with their weights, by our name: theirs, or several that are stacked."""
    state = theirs.state_dict()
    used = [[name] if isinstance(name, str) else name for name in names.values()]
    assert {name for several in used for name in several} == set(state)
    with torch.no_grad():
        for name, several in zip(names, used, strict=True):
            ours.get_parameter(name).copy_(torch.cat([state[one] for one in several]))
    assert len(names) == len(list(ours.parameters()))
    return ours.double().eval(), theirs.double().eval()


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def in_full_precision(block):
    """Puts torch's own norm in the place of theirs, which computes in single precision whatever it is given."""
    for name, module in list(block.named_modules()):
        if type(module).__name__ in ("LlamaRMSNorm", "T5LayerNorm"):
            block.set_submodule(name, nn.RMSNorm(module.weight.shape[0], eps=module.variance_epsilon))
    return block


def tokens(n=6, batch=2):
    return torch.randn(batch, n, DIM, dtype=torch.float64)


def causal(n):
    return torch.zeros(1, 1, n, n, dtype=torch.float64).masked_fill(~torch.ones(n, n).bool().tril(), -torch.inf)


LLAMA = {
    "norm1.weight": "input_layernorm.weight",
    "attn.q.weight": "self_attn.q_proj.weight",
    "attn.kv.weight": ["self_attn.k_proj.weight", "self_attn.v_proj.weight"],
    "attn.out.weight": "self_attn.o_proj.weight",
    "norm2.weight": "post_attention_layernorm.weight",
    "mlp.gate.weight": "mlp.gate_proj.weight",
    "mlp.up.weight": "mlp.up_proj.weight",
    "mlp.down.weight": "mlp.down_proj.weight",
}
ROPES = {
    "plain": ({"rope_type": "default", "rope_theta": 500_000.0}, {"base": 500_000.0}),
    "linear": ({"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}, {"scaling": "linear", "factor": 4.0}),
    "yarn": (
        {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 64},
        {"scaling": "yarn", "factor": 4.0, "context": 64},
    ),
    "llama3": (
        {
            "rope_type": "llama3",
            "rope_theta": 500_000.0,
            "factor": 8.0,
            "original_max_position_embeddings": 8192,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        },
        {"base": 500_000.0, "scaling": "llama3", "factor": 8.0, "context": 8192},
    ),
}


@pytest.mark.reference("a Llama block of tx_enc_blk, four rotary scalings", "transformers LlamaDecoderLayer")
@pytest.mark.parametrize("rope", ROPES)
def test_a_llama_block(rope, on_device):
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

    theirs, ours = ROPES[rope]
    config = transformers.LlamaConfig(
        hidden_size=DIM, intermediate_size=24, num_attention_heads=HEADS, num_key_value_heads=2, rope_parameters=theirs,
        attn_implementation="sdpa", max_position_embeddings=256,
    )  # fmt: skip
    block = m.tx_enc_blk(
        DIM, HEADS, n_kv_heads=2, mlp_dim=24, gate="silu", norm="rms", bias=False, causal=True,
        rotary=m.rotary(**ours),
    )  # fmt: skip
    reference = in_full_precision(LlamaDecoderLayer(config, 0))
    block, reference = given(block, reference, LLAMA)
    x, places = tokens(), torch.arange(6)[None]
    cos, _ = (part.double() for part in LlamaRotaryEmbedding(config)(x.float(), places))
    # Their angles are computed in single precision: compare with such, and the rest in double.
    wide = Rotary(**ours).frequencies(4, torch.device("cpu"), torch.float64)
    angles = torch.cat([places[0, :, None] * wide[0]] * 2, 1)
    torch.testing.assert_close(cos[0], angles.cos() * wide[1], rtol=1e-5, atol=1e-5)
    exact = ((angles.cos() * wide[1])[None], (angles.sin() * wide[1])[None])
    expected = reference(x, attention_mask=causal(6), position_ids=places, position_embeddings=exact)
    close(on_device(block)(x), expected)


def test_the_ntk_base_stretches_the_longest_wave_by_the_factor():
    plain, scaled = Rotary(), m.rotary(scaling="ntk", factor=8.0)
    a, b = (r.frequencies(64, torch.device("cpu"), torch.float64)[0] for r in (plain, scaled))
    assert (a[-1] / b[-1]).item() == pytest.approx(8)
    assert b[0] == a[0]
    (only,) = m.rotary(scaling="ntk", factor=8.0).frequencies(2, torch.device("cpu"), torch.float64)[0]
    assert only == 1


@pytest.mark.reference("sa, window", "transformers sliding_window_causal_mask_function")
def test_a_sliding_window_is_mistrals(on_device):
    from transformers.masking_utils import sliding_window_causal_mask_function

    allowed = sliding_window_causal_mask_function(3)
    mask = torch.tensor([[bool(allowed(0, 0, torch.tensor(i), torch.tensor(j))) for j in range(7)] for i in range(7)])
    windowed = m.sa(DIM, HEADS, causal=True, window=3).double()
    full = m.sa(DIM, HEADS).double()
    full.load_state_dict(windowed.state_dict())
    x, cache = tokens(7), m.KVCache()
    close(on_device(windowed)(x), full(x, mask=mask))
    with torch.no_grad():
        close(torch.cat([on_device(windowed)(part, cache=cache) for part in x.split([3, 1, 3], 1)], 1), windowed(x))


@pytest.mark.reference("sa, alibi", "transformers build_alibi_tensor, in float32")
@pytest.mark.parametrize("heads", [4, 6])
def test_alibi_is_blooms(heads, on_device):
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    dim = 4 * heads
    net, plain = m.sa(dim, heads, causal=True, alibi=True).double(), m.sa(dim, heads, causal=True).double()
    plain.load_state_dict(net.state_dict())
    bias = build_alibi_tensor(torch.ones(1, 5), heads, torch.float64).view(1, heads, 1, 5)
    x, cache = torch.randn(2, 5, dim, dtype=torch.float64), m.KVCache()
    # Theirs grows with the key's place, ours falls with the distance: a constant in each row, which softmax drops.
    torch.testing.assert_close(on_device(net)(x), plain(x, mask=bias), rtol=1e-6, atol=1e-6)
    padding = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 0, 0]]).bool()[:, None]
    both = torch.where(padding[:, None], bias, -torch.inf)
    torch.testing.assert_close(on_device(net)(x, mask=padding), plain(x, mask=both), rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        close(torch.cat([on_device(net)(part, cache=cache) for part in x.split([2, 1, 2], 1)], 1), net(x))


def attention(ours, query, key, value, out):
    names = {}
    for end in ("weight", "bias"):
        names |= {
            f"{ours}.q.{end}": f"{query}.{end}",
            f"{ours}.kv.{end}": [f"{key}.{end}", f"{value}.{end}"],
            f"{ours}.out.{end}": f"{out}.{end}",
        }
    return names


def pairs(**names):
    return {f"{ours}.{end}": f"{theirs}.{end}" for ours, theirs in names.items() for end in ("weight", "bias")}


@pytest.mark.reference("a BERT layer of tx_enc_blk, post_norm", "transformers BertLayer")
def test_a_bert_layer(on_device):
    from transformers.models.bert.modeling_bert import BertLayer

    config = transformers.BertConfig(
        hidden_size=DIM, num_attention_heads=HEADS, intermediate_size=32, attn_implementation="sdpa"
    )
    ours = m.tx_enc_blk(
        DIM, HEADS, mlp_dim=32, post_norm=True, norm=lambda dim: m.norm.layer(dim, eps=config.layer_norm_eps)
    )
    base = "attention.self"
    names = attention("attn", f"{base}.query", f"{base}.key", f"{base}.value", "attention.output.dense")
    names |= pairs(norm1="attention.output.LayerNorm", norm2="output.LayerNorm")
    names |= pairs(**{"mlp.0": "intermediate.dense", "mlp.1": "output.dense"})
    ours, theirs = given(ours, BertLayer(config), names)
    x = tokens()
    close(on_device(ours)(x), theirs(x))


@pytest.mark.reference("a GPT-2 block of tx_enc_blk", "transformers GPT2Block")
def test_a_gpt2_block(on_device):
    from transformers.models.gpt2.modeling_gpt2 import GPT2Block

    config = transformers.GPT2Config(n_embd=DIM, n_head=HEADS, attn_implementation="sdpa")
    theirs = GPT2Block(config, layer_idx=0)
    linear = nn.Module()  # their linear layers hold transposed weights
    for name, value in theirs.state_dict().items():
        *path, end = name.split(".")
        holder = linear
        for part in path:
            if part not in holder._modules:
                holder.add_module(part, nn.Module())
            holder = holder.get_submodule(part)
        holder.register_parameter(end, nn.Parameter(value.T if value.ndim == 2 else value))
    qkv = linear.get_submodule("attn.c_attn")
    for end in ("weight", "bias"):
        stacked = qkv.get_parameter(end)
        for part, value in zip("qkv", stacked.detach().chunk(3), strict=True):
            if part not in qkv._modules:
                qkv.add_module(part, nn.Module())
            qkv.get_submodule(part).register_parameter(end, nn.Parameter(value))
        del qkv._parameters[end]
    ours = m.tx_enc_blk(DIM, HEADS, actv="gelu_tanh", causal=True)
    names = attention("attn", "attn.c_attn.q", "attn.c_attn.k", "attn.c_attn.v", "attn.c_proj")
    names |= pairs(norm1="ln_1", norm2="ln_2", **{"mlp.0": "mlp.c_fc", "mlp.1": "mlp.c_proj"})
    ours, _ = given(ours, linear, names)
    x = tokens()
    close(on_device(ours)(x), theirs.double().eval()(x, attention_mask=causal(6)))


@pytest.mark.reference("a DINOv2 block of tx_enc_blk, layer_scale, registers", "transformers Dinov2WithRegistersLayer")
def test_a_block_of_a_vision_transformer_with_registers(on_device):
    from transformers.models.dinov2_with_registers.modeling_dinov2_with_registers import Dinov2WithRegistersLayer

    config = transformers.Dinov2WithRegistersConfig(
        hidden_size=DIM, num_attention_heads=HEADS, attn_implementation="sdpa"
    )
    ours = m.tx_enc_blk(DIM, HEADS, layer_scale=1e-5, norm=lambda dim: m.norm.layer(dim, eps=config.layer_norm_eps))
    theirs = Dinov2WithRegistersLayer(config)
    for scale in (theirs.layer_scale1, theirs.layer_scale2):
        nn.init.normal_(scale.lambda1)
    base = "attention"
    names = attention("attn", f"{base}.q_proj", f"{base}.k_proj", f"{base}.v_proj", f"{base}.o_proj")
    names |= pairs(norm1="norm1", norm2="norm2", **{"mlp.0": "mlp.fc1", "mlp.1": "mlp.fc2"})
    names |= {"scale1.gamma": "layer_scale1.lambda1", "scale2.gamma": "layer_scale2.lambda1"}
    ours, theirs = given(ours, theirs, names)
    registers, x = m.registers(4, DIM).double(), tokens()
    close(on_device(ours)(on_device(registers)(x)), theirs(torch.cat([registers.value.expand(2, -1, -1), x], 1)))


@pytest.mark.reference("a T5 decoder block of tx_dec_blk", "transformers T5Block")
def test_a_t5_decoder_block(on_device):
    from transformers.models.t5.modeling_t5 import T5Block

    config = transformers.T5Config(d_model=DIM, d_kv=6, num_heads=HEADS, d_ff=32, is_decoder=True)
    theirs = in_full_precision(T5Block(config, has_relative_attention_bias=False, layer_idx=0))
    ours = m.tx_dec_blk(
        DIM, HEADS, head_dim=6, mlp_dim=32, actv="relu", norm=lambda dim: m.norm.rms(dim, eps=1e-6), bias=False,
        scale=1.0,
    )  # fmt: skip
    names = {}
    for part, place in (("attn", "layer.0.SelfAttention"), ("cross", "layer.1.EncDecAttention")):
        names |= {f"{part}.q.weight": f"{place}.q.weight", f"{part}.out.weight": f"{place}.o.weight"}
        names |= {f"{part}.kv.weight": [f"{place}.k.weight", f"{place}.v.weight"]}
    names |= {f"norm{i + 1}.weight": f"layer.{i}.layer_norm.weight" for i in range(3)}
    names |= {"mlp.0.weight": "layer.2.DenseReluDense.wi.weight", "mlp.1.weight": "layer.2.DenseReluDense.wo.weight"}
    ours, theirs = given(ours, theirs, names)
    x, context = tokens(), tokens(5)
    bias = torch.randn(
        1, HEADS, 6, 6, dtype=torch.float64
    )  # of relative positions, which T5 learns once for all blocks
    expected = theirs(x, position_bias=bias + causal(6), encoder_hidden_states=context)[0]
    close(on_device(ours)(x, context, mask=bias), expected)


@pytest.mark.reference("attn, need_weights", "torch.nn.MultiheadAttention")
@pytest.mark.parametrize("options", [{}, {"causal": True}, {"n_kv_heads": 2, "window": 2}, {"alibi": True}])
def test_weights_on_request_are_those_that_make_the_result(options, on_device):
    net, x = m.sa(DIM, HEADS, **options).double(), tokens()
    out, weights = on_device(net)(x, need_weights=True)
    close(out, net(x))
    close(weights.sum(-1), torch.ones(2, HEADS, 6, dtype=torch.float64))
    if not options:
        theirs = nn.MultiheadAttention(DIM, HEADS, batch_first=True).double()
        with torch.no_grad():
            theirs.in_proj_weight.copy_(torch.cat([net.q.weight, net.kv.weight]))
            theirs.in_proj_bias.copy_(torch.cat([net.q.bias, net.kv.bias]))
        theirs.out_proj.load_state_dict(net.out.state_dict())
        close(weights, theirs(x, x, x, average_attn_weights=False)[1])


def test_a_token_that_may_look_at_nothing_gets_zeros_and_finite_gradients(on_device):
    net, x = m.sa(DIM, HEADS).double(), tokens().requires_grad_()
    mask = torch.ones(6, 6, dtype=torch.bool)
    mask[2] = False
    out, weights = on_device(net)(x, mask=mask, need_weights=True)
    close(out, net(x, mask=mask))
    assert (weights[:, :, 2] == 0).all()
    assert torch.autograd.grad(out.sum(), x)[0].isfinite().all()


@pytest.mark.reference("mlp, gate", "Shazeer, 2020, equation 6")
@pytest.mark.parametrize(("gate", "function"), [("silu", F.silu), ("gelu", F.gelu), ("sigmoid", torch.sigmoid)])
def test_a_gated_mlp_is_the_papers_formula(gate, function, on_device):
    net, x = m.mlp(DIM, 24, gate=gate, bias=False).double(), tokens()
    inner = function(x @ net.gate.weight.T) * (x @ net.up.weight.T)
    close(on_device(net)(x), inner @ net.down.weight.T)


def test_gated_blocks_keep_the_size_of_what_goes_through_them():
    x, sizes = torch.randn(8, 16, 64), []
    with torch.no_grad():
        options = {"gate": "silu", "norm": "rms", "bias": False, "rotary": True}
        for block in m.Model(m.repeat(20, lambda: m.tx_enc_blk(64, 4, **options))).init(seed=0).net:
            x = block(x)
            sizes.append(x.std().item())
    assert 0.5 < min(sizes)
    assert max(sizes) < 2
    assert math.isfinite(sizes[-1])
