"""The model as a worker runs it, on a device."""

import copy
from contextlib import nullcontext

import pytest
import torch
from torch import nn

import ai.model as m
from ai.infer.worker.engine import Engine
from tests.devices import assert_close, beside, lies_on
from tests.pretended_cuda import PretendedCuda


class Net(m.Model):
    def __init__(self):
        super().__init__()
        self.body = m.seq(m.fc(6, 16), m.norm.layer(16), torch.relu, m.fc(16, 3))

    def forward(self, x):
        return {"logits": self.body(x), "mean": (x.mean(1), x)}


def net():
    return Net().init(seed=0)


@pytest.mark.parametrize("precision", ["model", "bf16", "fp16"])
def test_a_model_answers_on_the_device_as_on_the_cpu_without_waiting(precision, device, no_sync):
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    expected = Engine(net(), torch.device("cpu"))((x,), {})
    engine = Engine(net(), torch.device(device), precision)
    there = engine.to_device(x)
    with no_sync():
        answer = engine((there,), {})
    assert lies_on(answer, device)
    lower = {"model": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    assert_close(answer, expected, lower)


@pytest.mark.parametrize("device", ["cuda"], indirect=True)
def test_a_graph_answers_as_the_model_does_at_every_size_and_of_every_weights(device):
    model = net()
    plain = copy.deepcopy(model).eval()
    engine = Engine(model, torch.device(device), graph_rows=[4, 8])
    rng = torch.Generator().manual_seed(0)
    kept = []
    for rows in (1, 4, 3, 8, 7, 9, 4):
        x = torch.randn(rows, 6, generator=rng)
        with beside(device) if rows == 3 else nullcontext():
            answer = engine((x.to(device),), {})
        torch.cuda.synchronize()
        with torch.no_grad():
            expected = plain(x)
        assert answer["logits"].shape == (rows, 3)
        assert_close(answer, expected)
        kept.append((answer, expected))
    for answer, expected in kept:  # later calls have not written over what was answered
        assert_close(answer, expected)
    with torch.no_grad():  # as weights are pushed: in place
        for mine, theirs in zip(engine.model.parameters(), plain.parameters(), strict=True):
            theirs.mul_(1.5)
            mine.copy_(theirs.to(device))
        x = torch.randn(4, 6, generator=rng)
        assert_close(engine((x.to(device),), {}), plain(x))


@pytest.mark.parametrize("device", ["cuda"], indirect=True)
def test_a_model_that_looks_at_its_numbers_cannot_be_captured(device):
    class Looks(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    engine = Engine(Looks(), torch.device(device), graph_rows=[4])
    with pytest.raises(RuntimeError, match=r"not permitted when stream is capturing|[Cc]aptur"):
        engine((torch.ones(4, 2).to(device),), {})
    if PretendedCuda.active is not None:
        PretendedCuda.active.flush()
