import pytest
import torch
from torch import nn

from ai.infer.worker.engine import Engine, _first_rows
from ai.infer.worker.streaming.parts import ReplyParts
from tests.infer.infer_models import Heads, Pair


def test_output_of_a_graph_is_cut_to_its_rows_and_copied_in_every_kind_of_tree():
    memory = torch.arange(16.0).view(8, 2)  # which the next replay overwrites
    output = {
        "dataclass": Heads(policy=memory, value=memory[:, 0], note="kept"),
        "tuple": (memory, Pair(memory, memory)),
        "list": [memory, None, 3],
        "without rows": memory.sum(),
    }
    cut = _first_rows(output, 8, 3)
    expected, total = memory[:3].clone(), memory.sum()
    memory.fill_(-1)
    heads, (first, pair), (second, nothing, three) = cut["dataclass"], cut["tuple"], cut["list"]
    assert (type(heads), heads.note, type(pair), nothing, three) == (Heads, "kept", Pair, None, 3)
    for x in (heads.policy, first, pair.first, pair.second, second):
        assert torch.equal(x, expected)
    assert torch.equal(heads.value, expected[:, 0])
    assert torch.equal(cut["without rows"], total)


@pytest.mark.parametrize(
    ("names", "dtype"),
    [(("bf16", "bfloat16"), torch.bfloat16), (("fp16", "float16"), torch.float16), (("model",), torch.float32)],
)
def test_precision_goes_by_the_trainers_names_and_by_torchs(names, dtype):
    for precision in names:
        engine = Engine(nn.Linear(3, 2), torch.device("cpu"), precision)
        assert engine([torch.zeros(1, 3)], {}).dtype is dtype


def test_every_call_of_the_model_and_every_part_shows_that_the_worker_moves():
    """A batch of many calls, or a round of many replies, may take longer than the one call that counts as hanging."""
    calls = []
    engine = Engine(nn.Linear(3, 2), torch.device("cpu"))
    engine.on_call = lambda: calls.append(None)
    for n in (1, 2):
        engine([torch.zeros(1, 3)], {})
        assert len(calls) == n
    parts = ReplyParts(engine, [torch.zeros(1, 3)], {})
    assert parts.next("end").shape == (1, 2)
    assert parts.next("end") == "end"
    assert len(calls) == 4
