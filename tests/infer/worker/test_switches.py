import pytest
import torch
from torch.backends import cudnn, mkldnn
from torch.backends.cuda import matmul

from ai.infer.worker.switches import may_round_to_tf32, read_switches, set_switches


@pytest.fixture
def before():
    state = read_switches()
    yield state
    set_switches(state)


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="torch 2.9 and newer")
@pytest.mark.parametrize(
    ("owner", "value"),
    [
        (torch.backends, "tf32"),
        (matmul, "tf32"),
        (matmul, "ieee"),
        (cudnn, "ieee"),
        (cudnn.conv, "ieee"),
        (mkldnn.matmul, "bf16"),
    ],
)
def test_newer_and_older_switches_of_precision_go_and_come_back_together(before, owner, value):
    owner.fp32_precision = value  # for most of which torch refuses to say how its older switches stand
    state = read_switches()
    set_switches(before)
    assert read_switches() == before
    assert torch.get_float32_matmul_precision() == before["matmul_precision"]
    assert cudnn.allow_tf32 == before["cudnn_tf32"]
    set_switches(state)
    assert owner.fp32_precision == value
    assert read_switches() == state


def test_older_switches_of_precision_go_and_come_back(before):
    torch.set_float32_matmul_precision("high")
    cudnn.allow_tf32 = False
    state = read_switches()
    assert may_round_to_tf32()
    set_switches(before)
    assert read_switches() == before
    set_switches(state)
    assert torch.get_float32_matmul_precision() == "high"
    assert not cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    assert not may_round_to_tf32()
