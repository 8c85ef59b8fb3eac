import json

import pytest
import torch
from torch import nn

import ai.model as m
from ai.train import plan
from ai.train.parallel import Fsdp

SETTINGS = [
    [4, None, True, 1],
    [8, "bf16", True, 2],
    [4, "bf16", False, 1],
]


@pytest.mark.skipif(torch.__version__ < "2.7", reason="torch 2.6 shards on GPUs alone")
def test_a_sharded_plan_is_what_fsdp2_holds_and_sends_to_the_byte(job):
    done = job("plan_on_fake_ranks", json.dumps(SETTINGS))
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(lines) == len(SETTINGS)
    for line in lines:
        assert line["planned"] == line["real"]
        assert line["gradients"] == line["planned"][0]


def test_a_plan_of_ddp_by_hand():
    model = nn.Sequential(nn.Linear(10, 10, bias=False), nn.BatchNorm1d(10, affine=False))
    planned = plan(model, "ddp", 4, precision="bf16", ema=True)
    statistics = 10 * 4 + 10 * 4 + 8
    assert planned.weights == 400 + statistics
    assert planned.gradients == 400  # they lie in the buckets that are reduced
    assert planned.optimizer == 800
    assert planned.average == 400
    assert planned.passing == 200
    assert planned.sent == 2 * 3 / 4 * 400
    assert planned.memory == 2200 + statistics


def test_a_world_of_one_sends_nothing_and_more_ranks_hold_less():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    assert plan(model, "ddp", 1).sent == plan(model, "fsdp", 1).sent == 0
    held = [plan(model, "fsdp", world).weights for world in (1, 2, 4, 8)]
    assert held == [held[0] / world for world in (1, 2, 4, 8)]


def test_a_transformer_of_7b_parameters_on_the_meta_device():
    with torch.device("meta"):
        model = m.Model(m.seq(m.embed(50_000, 4096), m.tx_enc(32, 4096, 32, causal=True), m.fc(4096, 50_000)))
    n = sum(p.numel() for p in model.parameters())
    block = model.net[1].blocks[0]
    planned = plan(model, Fsdp(blocks=[type(block)]), 8, precision="bf16")
    assert planned.weights == pytest.approx(4 * n / 8, rel=1e-3)
    # forward and backward gather bfloat16, gradients are scattered in float32
    assert planned.sent == pytest.approx(7 / 8 * (2 + 2 + 4) * n, rel=1e-3)
    assert planned.memory < 20e9 < plan(model, "ddp", 8, precision="bf16").memory


def test_several_models_add_up():
    a, b = plan(nn.Linear(2, 2), "ddp", 2), plan(nn.Linear(3, 3), "ddp", 2)
    assert (a + b).memory == a.memory + b.memory
    assert (a + b).sent == a.sent + b.sent


def test_what_is_no_number_of_ranks_is_refused():
    with pytest.raises(ValueError, match=r"world \(0\) and accumulate \(1\) must be at least 1"):
        plan(nn.Linear(1, 1), "ddp", 0)
