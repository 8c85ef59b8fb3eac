"""Server-sent events: the application called as uvicorn would call it, its client there or gone."""

import asyncio
import contextlib
import json
import sys

import cloudpickle
import pytest
import torch
from torch import nn

from ai.infer import Inferencer
from ai.infer.http import app as make_app
from tests.infer.waiting import wait_until

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers know nothing of the tests


class Parts(nn.Module):
    """Yields as many parts as the first number says; a negative one fails after one part."""

    def __init__(self):
        super().__init__()
        self.n_closed = 0

    def forward(self, x):
        if x[0, 0] == 99:
            return torch.tensor([float(self.n_closed)])
        return self.parts(x)

    def parts(self, x):
        try:
            for i in range(int(x[0, 0].abs())):
                yield f"line\n{i}" if x[0, 0] > 0 else x * (float("inf") if x[0, 1] else 1)
                if x[0, 0] < 0:
                    raise ValueError("there is no second part")
        finally:
            self.n_closed += 1


@pytest.fixture(scope="module")
def streaming():
    with Inferencer(Parts(), "cpu", 4, timeout_s=100) as inferencer:
        yield inferencer


class Exchange:
    """One request and what was sent as its reply."""

    def __init__(self, app, numbers, accept="text/event-stream", path="/models/m", body=None):
        self.sent = []
        self.hung_up = asyncio.Event()
        self.may_send = asyncio.Event()
        self.may_send.set()
        headers = [(b"content-type", b"application/json"), (b"accept", accept.encode())]
        scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
        self._messages = [{"type": "http.request", "body": body or json.dumps([numbers]).encode()}]
        self.task = asyncio.ensure_future(app(scope, self._receive, self._send))

    async def _receive(self):
        if not self._messages:
            await self.hung_up.wait()
            return {"type": "http.disconnect"}
        return self._messages.pop(0)

    async def _send(self, message):
        await self.may_send.wait()
        self.sent.append(message)

    @property
    def status(self):
        return self.sent[0]["status"]

    @property
    def events(self):
        body = b"".join(message["body"] for message in self.sent[1:]).decode()
        return [dict(line.split(": ", 1) for line in each.split("\n")) for each in body.split("\n\n")[:-1]]


def metrics(app):
    return {code: n for (_, _, code), n in app.metrics._n_requests.items()}


def test_parts_come_as_events(streaming):
    async def scene(stack):
        app = stack.enter_context(contextlib.closing(make_app({"m": streaming})))
        one = Exchange(app, [3, 0])
        await one.task
        assert one.status == 200
        assert dict(one.sent[0]["headers"])[b"content-type"] == b"text/event-stream"
        assert [json.loads(event["data"]) for event in one.events[:-1]] == [[f"line\n{i}"] for i in range(3)]
        assert one.events[-1] == {"event": "end", "data": "{}"}
        assert [message["more_body"] for message in one.sent[1:]] == [True, True, True, False]
        none = Exchange(app, [0, 0])
        await none.task
        assert none.events == [{"event": "end", "data": "{}"}]
        assert metrics(app) == {200: 2}
        assert app.context.n_pending == 0

    with contextlib.ExitStack() as stack:
        asyncio.run(scene(stack))


def test_a_whole_reply_of_a_model_that_makes_parts_is_the_clients_mistake(streaming, caplog):
    async def scene(stack):
        app = stack.enter_context(contextlib.closing(make_app({"m": streaming})))
        asked = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [3, 0]}]}).encode()
        plain = Exchange(app, [3, 0], accept="application/json, text/event-stream;q=0")
        protocol = Exchange(app, [3, 0], accept="*/*", path="/v2/models/m/infer", body=asked)
        await asyncio.gather(plain.task, protocol.task)
        said = "the model returns its reply in parts: send the plain form, POST /models/NAME, with accept: "
        for one in (plain, protocol):
            assert one.status == 400
            assert json.loads(one.sent[1]["body"]) == {"error": said + "text/event-stream"}
        assert metrics(app) == {400: 2}
        assert not [record for record in caplog.records if record.levelname == "ERROR"]  # the model is not at fault

    with contextlib.ExitStack() as stack:
        asyncio.run(scene(stack))


def test_failure_is_a_status_before_the_first_part_and_an_event_after_it(streaming):
    async def scene(stack):
        app = stack.enter_context(contextlib.closing(make_app({"m": streaming})))
        late = Exchange(app, [-1, 0])
        await late.task
        assert late.status == 200
        assert json.loads(late.events[0]["data"]) == [[-1.0, 0.0]]
        assert late.events[1]["event"] == "error"
        assert "there is no second part" in json.loads(late.events[1]["data"])["error"]
        assert len(late.events) == 2
        unwritable, malformed = Exchange(app, [-1, 1]), Exchange(app, "x")
        await asyncio.gather(unwritable.task, malformed.task)
        assert (unwritable.status, malformed.status) == (400, 400)
        assert b"JSON cannot write" in unwritable.sent[1]["body"]
        assert metrics(app) == {500: 1, 400: 2}

    with contextlib.ExitStack() as stack:
        asyncio.run(scene(stack))


def test_client_that_hangs_up_frees_the_worker(streaming):
    """While it waits for the first part, between parts, and when it does not take what is sent."""

    async def scene(stack):
        app = stack.enter_context(contextlib.closing(make_app({"m": streaming})))
        app._timeout_s = 0.01  # that a client may take to take a part
        closed = streaming(torch.tensor([[99.0, 0.0]])).item()
        gone, deaf = Exchange(app, [1e9, 0]), Exchange(app, [1e9, 0])
        while not (gone.sent and deaf.sent):
            await asyncio.sleep(0)
        gone.hung_up.set()
        deaf.may_send.clear()
        await asyncio.gather(gone.task, deaf.task)
        await asyncio.to_thread(
            wait_until,
            lambda: streaming(torch.tensor([[99.0, 0.0]])).item() == closed + 2 and not streaming.client.n_pending,
        )
        assert metrics(app) == {499: 2}
        assert app.context.n_pending == 0

    with contextlib.ExitStack() as stack:
        asyncio.run(scene(stack))
    assert streaming.stats().queued == 0
