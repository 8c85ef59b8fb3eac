import math
import os
import pickle
import signal

import pytest
import torch
from torch import nn

from ai.infer import InferError, NodeInferencer, WorkerDiedError
from ai.infer.node_inferencer import _Seat
from tests.infer.pretended_inferencer import Pretended, pretend

X = torch.ones(1, 3)


def plus(model, number):
    return {name: value + number for name, value in model.state_dict().items()}


def at(model, number):
    return nn.functional.linear(X, *plus(model, number).values())


@pytest.fixture
def pretended(monkeypatch, tmp_path):
    pretend(monkeypatch, tmp_path)
    return tmp_path


@pytest.mark.slow
def test_all_copies_of_a_machine_ask_one_inferencer_whose_worker_may_die():
    model = nn.Linear(3, 2).eval()
    with NodeInferencer(model) as first, pickle.loads(pickle.dumps(first)) as second:
        assert torch.equal(first(X), at(model, 0))
        first.update_params(plus(model, 2), version=7)
        assert torch.equal(second(X), at(model, 2))
        assert (first.hosts, second.hosts, first.version, second.version) == (True, False, 0, 7)

        os.kill(first._hosted.pids[0], signal.SIGKILL)
        assert torch.equal(second(X), at(model, 2))
        assert second.version == 7


def test_the_next_copy_that_asks_starts_one_with_what_it_was_given(pretended, monkeypatch):
    model = nn.Linear(3, 2).eval()
    first = NodeInferencer(model)
    second = pickle.loads(pickle.dumps(first))
    assert torch.equal(first(X), at(model, 0))
    second.update_params(plus(model, 1), 5)  # kept for the day when it starts one
    assert torch.equal(second(X), at(model, 0))
    first.update_params(plus(model, 2), 7)
    assert torch.equal(second(X), at(model, 2))
    assert (first.hosts, second.hosts, first.version, second.version) == (True, False, 0, 7)

    first.close()
    assert second.version == 7  # of what has answered last, until another does
    assert torch.equal(second(X), at(model, 1))
    assert (first.hosts, second.hosts, second.version) == (False, True, 5)

    third = pickle.loads(pickle.dumps(second))
    monkeypatch.setenv("AI_NODE", "another")  # as on another machine
    assert torch.equal(third(X), at(model, 1))
    assert (third.hosts, third.version) == (True, 5)
    assert len(Pretended.made) == 2
    second.close()
    third.close()
    assert list(pretended.iterdir()) == []


def test_two_trainings_that_were_sent_one_object_are_kept_apart(pretended, monkeypatch):
    model = nn.Linear(3, 2).eval()
    sent = pickle.dumps(NodeInferencer(model))
    copies = []
    for training, number in (("one", 1), ("two", 2), ("one", 1)):
        monkeypatch.setenv("AI_TRAINING", training)
        copies.append(pickle.loads(sent))
        copies[-1].update_params(plus(model, number), number)
        assert torch.equal(copies[-1](X), at(model, number))
        assert copies[-1].version == number
    assert [copy.hosts for copy in copies] == [True, True, False]
    for copy in copies:
        copy.close()


def test_versions_are_those_of_what_was_taken_in_whatever_order_they_are_numbered(pretended):
    model = nn.Linear(3, 2).eval()
    with NodeInferencer(model) as node:
        assert torch.equal(node(X), at(model, 0))
        with pytest.raises(ValueError, match="every entry"):
            node.update_params({"weight": model.weight}, 5)
        with pytest.raises(TypeError, match="state_dict must be a dict of tensors by name, not int"):
            node.update_params(5, 5)
        for number, version in ((1, 6), (2, 3)):
            node.update_params(plus(model, number), version)
            assert torch.equal(node(X), at(model, number))
            assert node.version == version
        node.close()
        assert torch.equal(node(X), at(model, 2))  # and not what was refused
        assert node.version == 3


def test_what_was_pushed_stays_what_it_was(pretended):
    model, trained = nn.Linear(3, 2).eval(), nn.Linear(3, 2)
    trained.load_state_dict(model.state_dict())
    with NodeInferencer(model) as node:
        node.update_params(trained.state_dict(), 7)
        nn.init.zeros_(trained.weight)
        assert torch.equal(node(X), at(model, 0))
        assert node.version == 7


class Scaled(nn.Module):
    """Multiplies by what its extra state says."""

    def __init__(self, factor):
        super().__init__()
        self.weight, self.about = nn.Parameter(torch.ones(1)), {"factor": factor}

    def get_extra_state(self):
        return self.about

    def set_extra_state(self, state):
        self.about = state

    def forward(self, x):
        return x * self.weight * self.about["factor"]


def test_extra_state_that_was_pushed_outlives_pushes_without_it_and_the_inferencer(pretended):
    with NodeInferencer(Scaled(1.0)) as node:
        trained = Scaled(3.0)
        node.update_params(trained.state_dict(), 1)
        trained.about["factor"] = 9.0  # in training, which goes on
        node.update_params({"weight": torch.full((1,), 2.0)}, 2)
        for _ in range(2):
            assert torch.equal(node(X), X * 6)
            assert node.version == 2
            node.close()
        sent = pickle.loads(pickle.dumps(node))
        assert torch.equal(sent(X), X * 6)
        sent.update_params(Scaled(5.0).state_dict(), 3)
        assert torch.equal(sent(X), X * 5)
        sent.close()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_is_one_more_copy_and_keeps_nothing_of_its_parent(pretended):
    model = nn.Linear(3, 2).eval()
    node = NodeInferencer(model)
    node(X)
    seat = node._seat
    with node._lock:  # as another thread may hold it
        if (child := os.fork()) == 0:
            node.close()
            fine = not node.hosts and seat.path.exists() and _Seat.taken(node._key) is None
            os._exit(0 if fine and not seat.leave.alive and node._lock.acquire(blocking=False) else 1)
        assert os.waitpid(child, 0)[1] == 0
    assert node.hosts
    ready, begun = os.pipe()
    end, alive = os.pipe()
    if (child := os.fork()) == 0:
        os.write(begun, b"x")
        os.read(end, 1)
        os._exit(0)
    try:
        os.read(ready, 1)
        seat.leave.detach()
        os.close(seat.descriptor)  # as the parent's death does
        taken = _Seat.taken(node._key)
        assert taken is not None
        taken.leave()
    finally:
        os.write(alive, b"x")
        os.waitpid(child, 0)
        for descriptor in (ready, begun, end, alive):
            os.close(descriptor)
        node.close()


def test_a_folder_that_takes_no_lock_is_said_at_once(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "removed"))
    with pytest.raises(InferError, match=r"locks a file in the folder for temporary files, .*removed, which failed"):
        NodeInferencer(nn.Linear(3, 2))(X)


def test_what_is_no_model_or_option_is_refused_where_it_is_given():
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, not function"):
        NodeInferencer(lambda x: x)
    with pytest.raises(TypeError, match="unexpected keyword argument 'replica'"):
        NodeInferencer(nn.Linear(3, 2), replica=2)
    with pytest.raises(TypeError, match="restart is no option here"):
        NodeInferencer(nn.Linear(3, 2), restart=False)
    with pytest.raises(ValueError, match="start_timeout_s must be positive and finite, not nan"):
        NodeInferencer(nn.Linear(3, 2), start_timeout_s=math.nan)  # by which the wait for another would never end


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (1.5, "version must be a whole number, not 1.5"),
        (1 << 63, "version must be a number of 64 bits, one of them its sign, not 9223372036854775808"),
        (10**5000, r"version must be a number of 64 bits, .* not about 2\*\*16609"),
    ],
    ids=["broken", "large", "enormous"],
)
def test_a_number_that_no_version_has_changes_nothing(pretended, version, message):
    with NodeInferencer(nn.Linear(3, 2)) as asked:
        with pytest.raises((TypeError, ValueError), match=message):
            asked.update_params(asked._given["model"].state_dict(), version)
        asked(X)  # which would start with what was refused
        assert asked.version == 0


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
