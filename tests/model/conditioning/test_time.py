import math

import pytest
import torch

import ai.model as m


@pytest.mark.reference("time_emb", "diffusers get_timestep_embedding, in float32")
@pytest.mark.parametrize("dim", [2, 8, 64])
def test_times_are_embedded_as_in_diffusers(dim, on_device):
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    time = torch.tensor([0.0, 1.0, 500.5, 999.0])
    theirs = embeddings.get_timestep_embedding(time, dim, flip_sin_to_cos=False, downscale_freq_shift=0)
    torch.testing.assert_close(
        on_device(m.time_emb(dim))(time), theirs, rtol=0, atol=2e-4
    )  # of angles up to 999 in single precision
    scaled = embeddings.get_timestep_embedding(time / 1000, dim, downscale_freq_shift=0, scale=1000)
    torch.testing.assert_close(on_device(m.time_emb(dim, scale=1000.0))(time / 1000), scaled, rtol=0, atol=2e-4)


def test_times_may_be_whole_numbers_and_half_precision_loses_no_turns(on_device):
    emb = on_device(m.time_emb(8))
    whole = emb(torch.tensor([3, 700]))
    torch.testing.assert_close(whole, emb(torch.tensor([3.0, 700.0])))
    torch.testing.assert_close(emb(torch.tensor([700.0]).half()), whole[1:].half())


def test_fourier_features_are_sines_of_drawn_frequencies_that_are_saved(on_device):
    net = m.Model(m.time_emb(6, "fourier", scale=2.0)).init(seed=0)
    frequencies = net.state_dict()["net.frequencies"]
    time = torch.tensor([0.3, -1.0])
    angles = 2 * math.pi * time[:, None] * frequencies
    torch.testing.assert_close(on_device(net)(time), torch.cat([angles.sin(), angles.cos()], 1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: m.time_emb(3), r"dim \(3\) must be an even number"),
        (lambda: m.time_emb(4, "sine"), r"kind \('sine'\) must be one of sinusoidal, fourier"),
        (lambda: m.time_emb(4, "fourier", base=2.0), r"base \(2.0\) must be left alone"),
        (lambda: m.dit_blk(8, 2, 0), r"z_dim \(0\) must be at least 1"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.reference("dit_blk", "Peebles and Xie, 2023, figure 3")
def test_a_dit_block_is_the_published_formula(on_device):
    torch.manual_seed(0)
    net = m.dit_blk(8, 2, 5, init_gain=1.0).double()
    x, z = torch.randn(2, 6, 8).double(), torch.randn(2, 5).double()
    style = torch.nn.functional.silu(z) @ net.style.weight.T + net.style.bias
    shift1, scale1, gate1, shift2, scale2, gate2 = style[:, None].chunk(6, 2)

    def normed(x):
        return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()

    y = x + gate1 * net.attn(normed(x) * (1 + scale1) + shift1)
    expected = y + gate2 * net.mlp(normed(y) * (1 + scale2) + shift2)
    torch.testing.assert_close(on_device(net)(x, z), expected, rtol=1e-12, atol=1e-12)
    stack = m.modseq(m.dit_blk(8, 2, 5), m.dit_blk(8, 2, 5)).double()
    torch.testing.assert_close(on_device(stack)(x, z), x, rtol=0, atol=0)
