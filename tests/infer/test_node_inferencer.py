import os
import pickle
import signal

import pytest
import torch
from torch import nn

from ai.infer import InferError, NodeInferencer, WorkerDiedError
from ai.infer.node_inferencer import _Seat

X = torch.ones(1, 3)


def plus(model, number):
    return {name: value + number for name, value in model.state_dict().items()}


def at(model, number):
    return nn.functional.linear(X, *plus(model, number).values())


@pytest.mark.slow
def test_all_copies_of_a_machine_ask_one_inferencer_that_outlives_deaths(monkeypatch):
    model = nn.Linear(3, 2).eval()
    with NodeInferencer(model) as first, pickle.loads(pickle.dumps(first)) as second:
        assert torch.equal(first(X), at(model, 0))
        assert torch.equal(second(X), at(model, 0))
        assert (first.hosts, second.hosts, first.version, second.version) == (True, False, 0, 0)

        second.update_params(plus(model, 1), 5)  # kept for the day when it starts one
        assert torch.equal(second(X), at(model, 0))
        assert second.version == 0
        first.update_params(plus(model, 2), version=7)
        assert torch.equal(second(X), at(model, 2))
        assert (first.version, second.version) == (0, 7)  # the first has had no answer since

        os.kill(first._hosted.pids[0], signal.SIGKILL)
        assert torch.equal(second(X), at(model, 2))
        assert second.version == 7

        first.close()
        assert torch.equal(second(X), at(model, 1))
        assert (first.hosts, second.hosts, second.version) == (False, True, 5)

        monkeypatch.setenv("AI_NODE", "another")  # as on another machine
        with pickle.loads(pickle.dumps(second)) as third:
            assert torch.equal(third(X), at(model, 0))
            assert third.hosts


def test_what_is_no_model_or_option_is_refused_where_it_is_given():
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, not function"):
        NodeInferencer(lambda x: x)
    with pytest.raises(TypeError, match="unexpected keyword argument 'replica'"):
        NodeInferencer(nn.Linear(3, 2), replica=2)
    with pytest.raises(TypeError, match="restart is no option here"):
        NodeInferencer(nn.Linear(3, 2), restart=False)


def test_the_wait_for_another_process_that_starts_it_ends(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    waiting = NodeInferencer(nn.Linear(3, 2), start_timeout_s=0.05)
    seat = _Seat.taken(waiting._key)
    with pytest.raises(InferError, match=r"which another process starts, was not ready after 0.05 s"):
        waiting(X)
    seat.tell(str(tmp_path / "ended"))  # an inferencer that is gone
    with pytest.raises(InferError, match="was not ready"):
        waiting(X)
    seat.leave()
    assert list(tmp_path.iterdir()) == []


def test_a_request_over_which_one_after_the_other_dies_is_given_up(monkeypatch):
    class Dying:
        asked = 0

        def __call__(self, *args):
            self.asked += 1
            raise WorkerDiedError("killed")

        def close(self):
            pass

    dying = Dying()
    node = NodeInferencer(nn.Linear(3, 2))
    monkeypatch.setattr(node, "_joined", lambda: dying)
    with pytest.raises(WorkerDiedError, match="3 inferencers in a row died over one request, the last: killed"):
        node(X)
    assert dying.asked == 3


def test_one_process_at_a_time_has_the_seat_and_what_killed_ones_left_goes(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left = _Seat.taken("left")
    left.leave.detach()
    os.close(left.descriptor)  # as its process's end does
    held = _Seat.taken("held")
    seat = _Seat.taken("mine")
    assert not left.path.exists()
    assert held.path.exists()
    assert _Seat.taken("mine") is None
    assert _Seat.address("mine") is None
    seat.tell("/there")
    assert _Seat.address("mine") == "/there"
    seat.leave()
    again = _Seat.taken("mine")
    assert _Seat.address("mine") is None
    again.leave()
    held.leave()
    assert list(tmp_path.iterdir()) == []
