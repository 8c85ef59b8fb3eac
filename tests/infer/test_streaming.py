"""Replies in parts: a model that yields, its client, and what ends them."""

import asyncio
import gc
import os
import sys
from types import SimpleNamespace

import cloudpickle
import pytest
import torch
from torch import nn

from ai.infer import Inferencer, InPartsError, RequestError, WorkerDiedError
from ai.infer.transport.frames import Kind
from ai.infer.transport.wire import layout_of
from ai.infer.worker.connected_client import MAX_UNSENT_BYTES, Request
from ai.infer.worker.engine import Engine
from ai.infer.worker.streaming.streams import Streams
from tests.infer.waiting import wait_until

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers know nothing of the tests


def read_globals():
    attention = [torch._C._get_flash_sdp_enabled(), torch._C._get_math_sdp_enabled()]
    return [str(torch.empty(()).device), str(torch.get_default_dtype()), *attention]


class Parts(nn.Module):
    """Does what its keyword says."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)
        self.n_closed = self.n_made = 0

    def forward(self, x, *, do="count"):
        if do == "asked":
            return torch.tensor([self.n_made, self.n_closed])
        if do == "plain":
            return self.fc(x)
        if do == "switches":
            return [torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), torch.is_inference_mode_enabled()]
        if do == "globals":
            return read_globals()
        if do in ("gradients", "autocast", "inference", "many", "random"):
            return getattr(self, do)()
        return self.parts(x, do)

    def gradients(self):
        with torch.enable_grad():
            for _ in range(9):
                yield torch.is_grad_enabled()

    def autocast(self):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            for _ in range(9):
                yield self.fc(torch.ones(1, 3)).dtype is torch.bfloat16

    def inference(self):
        with torch.inference_mode():
            for _ in range(9):
                yield torch.is_inference_mode_enabled()

    def many(self):
        from torch.nn.attention import SDPBackend, sdpa_kernel  # cannot be pickled by value

        with sdpa_kernel(SDPBackend.MATH), torch.device("meta"):
            torch.set_default_dtype(torch.float64)
            try:
                for _ in range(9):
                    yield read_globals() == ["meta", "torch.float64", False, True]
            finally:
                torch.set_default_dtype(torch.float32)

    def random(self):
        with torch.random.fork_rng():
            torch.manual_seed(7)
            for _ in range(9):
                yield float(torch.rand(()))

    def parts(self, x, do):
        try:
            for i in range(int(x.flatten()[0])):
                if do == "fail" and i == 2:
                    raise ValueError("the third part cannot be")
                if do == "die" and i == 1:
                    sys.exit(3)
                self.n_made += 1
                yield {"text": f"part {i}", "y": self.fc(x) * i, "grad": torch.is_grad_enabled()}
        finally:
            self.n_closed += 1


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Parts().eval()


@pytest.fixture(scope="module")
def streaming(model):
    with Inferencer(model, "cpu", 4, timeout_s=100) as inferencer:
        yield inferencer


def made_and_closed(inferencer):
    return inferencer(torch.zeros(1, 3), do="asked").tolist()


def test_parts_come_in_order_and_are_the_models_own(streaming, model):
    x = torch.tensor([[3.0, 1.0, 2.0]])
    parts = list(streaming.stream(x))
    assert [part["text"] for part in parts] == ["part 0", "part 1", "part 2"]
    assert [part["grad"] for part in parts] == [False] * 3
    for i, part in enumerate(parts):
        assert torch.equal(part["y"], model.fc(x) * i)


def test_reply_that_does_not_come_in_parts_is_one(streaming, model):
    x = torch.ones(2, 3)
    (part,) = streaming.stream(x, do="plain")
    assert torch.equal(part, model.fc(x))


def test_model_that_yields_is_to_be_asked_by_stream(streaming):
    for transport in ("shm", "socket"):
        with streaming.create_client(transport=transport, timeout_s=100) as client:
            with pytest.raises(InPartsError, match="the model returns its reply in parts: ask it by stream"):
                client(torch.ones(1, 3))


def test_others_are_answered_between_the_parts(streaming, model):
    """One that nobody takes from stops making parts, and takes its turn again."""
    x = torch.full((1, 3), 1000.0)
    before = made_and_closed(streaming)
    slow, other = streaming.stream(x), streaming.stream(x)
    assert next(slow)["text"] == next(other)["text"] == "part 0"
    assert torch.equal(streaming(x, do="plain"), model.fc(x))
    wait_until(lambda: made_and_closed(streaming)[0] == before[0] + 128)  # 64 ahead, each
    assert [next(slow)["text"] for _ in range(200)] == [f"part {i}" for i in range(1, 201)]
    assert streaming.stats().queued == 2
    slow.close()
    other.close()
    wait_until(lambda: made_and_closed(streaming)[1] == before[1] + 2)
    assert streaming.stats().queued == 0


def test_more_streams_than_rows_wait_for_their_turn(streaming):
    streams = [streaming.stream(torch.full((1, 3), float(n))) for n in (2, 3, 4, 5, 6, 7)]
    firsts = [next(stream) for stream in streams[:4]]
    assert len(firsts) == 4
    assert [1 + len(list(stream)) for stream in streams[:4]] == [2, 3, 4, 5]
    assert [len(list(stream)) for stream in streams[4:]] == [6, 7]


def test_stream_that_waits_for_its_client_takes_nobodys_turn(streaming):
    x = torch.full((1, 3), 1000.0)
    kept = [streaming.stream(x) for _ in range(5)]  # one more than there are rows
    assert [next(stream)["text"] for stream in kept] == ["part 0"] * 5
    for stream in kept:
        stream.close()
    wait_until(lambda: streaming.stats().queued == 0)


@pytest.mark.parametrize("do", ["gradients", "autocast", "inference", "many"])
def test_switches_that_a_paused_generator_has_set_are_its_own(streaming, model, do):
    """Two that take turns, the first of which ends first, and a call between them."""
    x = torch.ones(1, 3)
    first, second = streaming.stream(x, do=do), streaming.stream(x, do=do)
    assert next(first)
    assert next(second)
    assert list(first) == [True] * 8
    assert streaming(x, do="switches") == [False, False, False]
    assert streaming(x, do="globals") == ["cpu", "torch.float32", True, True]
    assert torch.equal(streaming(x, do="plain"), model.fc(x))
    assert list(second) == [True] * 8
    assert streaming(x, do="switches") == [False, False, False]


def test_random_numbers_of_replies_that_take_turns_are_their_own(streaming):
    x = torch.ones(1, 3)
    alone = torch.Generator().manual_seed(7)
    expected = [float(torch.rand((), generator=alone)) for _ in range(9)]
    streams = [streaming.stream(x, do="random") for _ in range(2)]
    drawn = [[next(stream) for stream in streams] for _ in range(9)]
    assert drawn == [[value, value] for value in expected]


def test_stream_that_the_garbage_collector_ends_amid_another_request(streaming):
    """It may do so wherever memory is asked for, also where this thread holds the connection's lock."""
    client = streaming.create_client(timeout_s=100)
    before = made_and_closed(streaming)[1]
    cycle = [client.stream(torch.full((1, 3), 1e6))]
    next(cycle[0])
    cycle.append(cycle)
    (connection,) = client._session.connections
    del cycle
    with connection.lock:
        gc.collect()
    assert client(torch.zeros(1, 3), do="asked").shape == (2,)
    wait_until(lambda: made_and_closed(streaming)[1] == before + 1)
    client.close()


def test_stream_belongs_to_the_process_that_began_it(streaming):
    """A forked child is told so, and can ask anew, whoever held the lock when it was forked."""
    client = streaming.create_client(timeout_s=100)
    parts = client.stream(torch.full((1, 3), 1e6))
    next(parts)
    (connection,) = client._session.connections
    with connection.lock:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                list(parts)
            except WorkerDiedError as error:
                asked_anew = [part["text"] for part in client.stream(torch.full((1, 3), 2.0))]
                code = 0 if "this process was forked" in str(error) and asked_anew == ["part 0", "part 1"] else 2
            finally:
                os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert [next(parts)["text"] for _ in range(100)] == [f"part {i}" for i in range(1, 101)]
    parts.close()
    client.close()


def test_failure_follows_the_parts_before_it(streaming):
    parts = streaming.stream(torch.full((1, 3), 9.0), do="fail")
    assert [next(parts)["text"], next(parts)["text"]] == ["part 0", "part 1"]
    with pytest.raises(RequestError, match="the third part cannot be"):
        next(parts)
    with pytest.raises(RequestError, match="SystemExit"):
        list(streaming.stream(torch.full((1, 3), 9.0), do="die"))
    assert len(list(streaming.stream(torch.full((1, 3), 2.0)))) == 2


def test_parts_in_an_event_loop(streaming):
    async def scene():
        async def collect(n):
            return [part["text"] async for part in streaming.astream(torch.full((1, 3), float(n)))]

        several = await asyncio.gather(*(collect(n) for n in (100, 2, 0)))
        assert [len(each) for each in several] == [100, 2, 0]
        before = made_and_closed(streaming)[1]
        parts = streaming.astream(torch.full((1, 3), 1e6))
        assert (await anext(parts))["text"] == "part 0"
        await parts.aclose()
        wait_until(lambda: made_and_closed(streaming)[1] == before + 1)

    asyncio.run(scene())


def test_client_that_hangs_up_ends_its_streams(streaming):
    client = streaming.create_client(timeout_s=100)
    before = made_and_closed(streaming)[1]
    parts = client.stream(torch.full((1, 3), 1e6))
    next(parts)
    client.close()
    wait_until(lambda: made_and_closed(streaming)[1] == before + 1)
    with pytest.raises(WorkerDiedError, match="this client was closed"):
        list(parts)


def test_no_part_is_made_for_a_client_that_leaves_too_many_bytes_unread():
    sent = []
    line = SimpleNamespace(n_unsent=MAX_UNSENT_BYTES, send=lambda kind, *_, **__: sent.append(kind))
    streams = Streams(Engine(nn.Identity(), torch.device("cpu")), 4, lambda request: None)
    x = torch.ones(1, 3)
    streams.put(Request(SimpleNamespace(stream=line), -1, 1, layout_of(["u", ["u", ["t"]], ["d"]], [x]), [x]))
    assert not streams.can_go_on()
    streams.advance(0)
    assert sent == []
    line.n_unsent = 0
    assert streams.can_go_on()
    streams.advance(0)
    streams.advance(0)
    assert sent == [Kind.PART, Kind.END]
