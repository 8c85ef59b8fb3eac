"""The bytes of HTTP, over a transport that is a list."""

import asyncio
import json
import random
from types import SimpleNamespace

import pytest
import torch

from ai.infer.http import connection as module
from ai.infer.http.app import App
from ai.infer.http.connection import HttpConnection
from ai.infer.http.models import ModelSource
from ai.infer.http.tensors import to_bytes

X = torch.arange(16, dtype=torch.float32).view(2, 8)
LOOP = asyncio.Runner()


@pytest.fixture(scope="module", autouse=True)
def _close_loop():
    yield
    LOOP.close()


@pytest.fixture
def app(inferencer):
    application = App([ModelSource.parse("m=nowhere:factory?input=x:FP32:-1,8")], max_body_bytes=100_000)
    served = application.repository.find("m")
    served.inferencer, served.reason = inferencer, ""
    yield application
    served.inferencer = None


class Wire(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self):
        super().__init__()
        self.sent, self.closed, self.ended, self.reading = b"", False, False, True
        self.changed = asyncio.Event()

    def write(self, data):
        assert not self.closed
        self.sent += data
        self.changed.set()

    def close(self):
        self.closed = True
        self.changed.set()

    def is_closing(self):
        return self.closed

    def can_write_eof(self):
        return True

    def write_eof(self):
        self.ended = True

    def pause_reading(self):
        self.reading = False

    def resume_reading(self):
        self.reading = True


class Client:
    def __init__(self, app):
        self.wire = Wire()
        self.state = SimpleNamespace(connections=set(), total_requests=0)
        self.line = HttpConnection(app, self.state)
        self.line.connection_made(self.wire)

    async def settle(self):
        """Waits until nothing is being answered."""
        while self.line._current is not None or self.line._queue:
            self.wire.changed.clear()
            async with asyncio.timeout(30):
                await self.wire.changed.wait()

    def replies(self):
        """Returns status, headers and body of all that was sent."""
        rest, replies = self.wire.sent, []
        while rest:
            head, _, rest = rest.partition(b"\r\n\r\n")
            status, *lines = head.decode().split("\r\n")
            headers = dict(line.split(": ", 1) for line in lines)
            n_bytes = int(headers.get("content-length", 0))
            replies.append((int(status.split()[1]), headers, rest[:n_bytes]))
            rest = rest[n_bytes:]
        return replies


def talk(app, *pieces):
    """Sends pieces of bytes; returns the client once all is answered."""

    async def main():
        client = Client(app)
        for piece in pieces:
            client.line.data_received(piece)
        await client.settle()
        client.line.connection_lost(None)
        return client

    return LOOP.run(main())


def post(path="/models/m", body=b"", headers="", version="1.1", method="POST"):
    return f"{method} {path} HTTP/{version}\r\nhost: x\r\ncontent-length: {len(body)}\r\n{headers}\r\n".encode() + body


def test_requests_sent_at_once_are_answered_in_order(app, model):
    health = b"GET /v2/health/live HTTP/1.1\r\n\r\n"
    client = talk(app, post(body=to_bytes(X)) + health + post("/models/n") + post(body=to_bytes(2 * X)))
    replies = client.replies()
    assert [status for status, _, _ in replies] == [200, 200, 404, 200]
    assert torch.equal(torch.frombuffer(bytearray(replies[3][2]), dtype=torch.float32).view(2, 4), model(2 * X))
    assert not client.wire.closed


def test_bytes_may_come_one_by_one_and_in_chunks(app, model):
    request = post(body=to_bytes(X))
    (reply,) = talk(app, *(request[i : i + 1] for i in range(len(request)))).replies()
    assert torch.equal(torch.frombuffer(bytearray(reply[2]), dtype=torch.float32).view(2, 4), model(X))
    body = to_bytes(X)
    chunked = b"POST /models/m HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n"
    chunked += b"".join(b"%x\r\n%b\r\n" % (10, body[i : i + 10]) for i in range(0, 60, 10)) + b"4\r\n" + body[60:]
    assert talk(app, chunked + b"\r\n0\r\n\r\n").replies()[0][2] == reply[2]


def test_thousands_of_requests_sent_at_once_wait_their_turn(app):
    client = talk(app, post(body=to_bytes(X)) + post(body=b"1") * 3000)
    assert [status for status, _, _ in client.replies()] == [200] + [400] * 3000
    assert client.wire.reading


@pytest.mark.parametrize(
    ("request_bytes", "kept"),
    [
        (post(), True),
        (post(headers="connection: close\r\n"), False),
        (post(version="1.0"), False),
        (post(headers="connection: upgrade\r\nupgrade: websocket\r\n"), False),
    ],
)
def test_connection_is_kept_or_closed_as_asked(app, request_bytes, kept):
    client = talk(app, request_bytes + post())
    assert client.wire.closed != kept
    assert len(client.replies()) == (2 if kept else 1)
    assert ("connection" in client.replies()[0][1]) != kept


def test_head_has_no_body(app):
    client = talk(app, post("/v2", method="HEAD"))
    assert client.wire.sent.startswith(b"HTTP/1.1 405 ")
    assert client.wire.sent.endswith(b"\r\n\r\n")


def test_paths_are_decoded(app):
    for path in ("/models/%6d", "http://some.where/models/m", "/models/m?a=/b"):
        assert talk(app, post(path, to_bytes(X))).replies()[0][0] == 200


def test_client_that_waits_for_100_continue_is_told(app):
    request = post(body=to_bytes(X), headers="expect: 100-continue\r\n")
    client = talk(app, request)
    assert client.wire.sent.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 ")
    refused = talk(app, post(body=b"", headers="expect: 100-continue\r\ncontent-encoding: gzip\r\n"))
    assert [status for status, _, _ in refused.replies()] == [415]


@pytest.mark.parametrize(
    ("pieces", "status", "message"),
    [
        ([b"POST /models/m HTTP/1.1\r\ncontent-length: 100001\r\n\r\n", b"x" * 500], 413, "at most 100000 bytes, not"),
        (
            [b"POST /models/m HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n", b"fffff\r\n" + bytes(0xFFFFF)],
            413,
            "the body must have at most 100000 bytes",
        ),
        ([b"POST / HTTP/1.1\r\n", *[b"a" * 50_000] * 3], 431, "the headers must have at most 65536 bytes"),
        ([b"GET /" + b"a" * 50_000, *[b"a" * 50_000] * 2], 431, "the headers must have at most 65536 bytes"),
        ([b"\0\1\2\3" * 9], 400, "the bytes must be a request of HTTP/1.1"),
        ([post() + b"rubbish\r\n\r\n"], 400, "the bytes must be a request of HTTP/1.1"),
        ([b"POST / HTTP/1.1\r\ncontent-length: -5\r\n\r\n"], 400, "the bytes must be a request of HTTP/1.1"),
        (
            [b"POST / HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n"],
            400,
            "the bytes must be a request of HTTP/1.1",
        ),
    ],
)
def test_what_is_no_request_is_refused_and_the_rest_ignored(app, pieces, status, message):
    client = talk(app, *pieces, post())
    reply = client.replies()[-1]
    assert (reply[0], reply[1]["connection"]) == (status, "close")
    assert message in json.loads(reply[2])["error"]
    assert client.wire.ended  # and the socket is closed once the client has had time to read that


def test_token_is_asked_for_before_the_body(inferencer):
    app = App([ModelSource.parse("m=nowhere:factory?input=x:FP32:-1,8")], tokens=["secret"])
    head = b"POST /models/m HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 64\r\n\r\n"
    assert [status for status, _, _ in talk(app, head).replies()] == [401]
    assert [status for status, _, _ in talk(app, post(body=bytes(64)) * 2).replies()] == [401, 401]


def test_request_that_does_not_end_and_connection_that_idles_are_closed(app, monkeypatch):
    app.timeout_s = 0.001
    monkeypatch.setattr(module, "_IDLE_S", 0.001)
    monkeypatch.setattr(module, "_LINGER_S", 0.001)

    async def main(sent):
        client = Client(app)
        client.line.data_received(sent)
        async with asyncio.timeout(30):
            while not client.wire.closed:
                client.wire.changed.clear()
                await client.wire.changed.wait()
        return [status for status, _, _ in client.replies()]

    assert LOOP.run(main(b"POST /models/m HTTP/1.1\r\ncontent-le")) == [408]
    assert LOOP.run(main(b"")) == []


def test_client_that_hangs_up_is_not_answered_and_leaves_nothing(app, inferencer):
    async def main():
        client = Client(app)
        client.line.data_received(post(body=to_bytes(X)) * 20)
        assert client.line._current is not None
        assert not client.wire.reading
        client.line.connection_lost(None)
        assert app.context.n_pending == 0
        other = Client(app)
        other.line.data_received(post(body=to_bytes(X)))
        await other.settle()
        return client, other

    client, other = LOOP.run(main())
    assert client.wire.sent == b""
    assert [status for status, _, _ in other.replies()] == [200]
    assert app.context.n_pending == 0
    assert not client.state.connections


def test_client_that_does_not_read_gets_no_further_request_begun(app):
    async def main():
        client = Client(app)
        client.line.pause_writing()
        client.line.data_received(post(body=to_bytes(X)) * 3)
        assert client.line._current is None
        client.line.resume_writing()
        await client.settle()
        return client

    assert [status for status, _, _ in LOOP.run(main()).replies()] == [200] * 3


def test_shutdown_answers_what_was_asked_and_closes(app):
    async def main():
        idle, busy, half = Client(app), Client(app), Client(app)
        busy.line.data_received(post(body=to_bytes(X)) * 2)
        half.line.data_received(post(body=to_bytes(X))[:-5])
        for client in (idle, busy, half):
            client.line.shutdown()
        assert (idle.wire.closed, busy.wire.closed, half.wire.closed) == (True, False, False)
        half.line.data_received(to_bytes(X)[-5:])
        for client in (busy, half):
            await client.settle()
            assert client.wire.closed
        return busy, half

    busy, half = LOOP.run(main())
    assert [status for status, _, _ in busy.replies()] == [200, 200]
    assert [status for status, _, _ in half.replies()] == [200]
    assert half.replies()[0][1]["connection"] == "close"


def _mutate(rng, data):
    data = bytearray(data)
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(data) + 1)
        how = rng.randrange(5)
        if how == 0 and data:
            data[at % len(data)] = rng.randrange(256)
        elif how == 1:
            data[at:at] = rng.randbytes(rng.randrange(1, 9))
        elif how == 2:
            del data[at : at + rng.randrange(1, 9)]
        elif how == 3:
            rubbish = [
                b"\r\n",
                b"\r\n\r\n",
                b": ",
                b"\0",
                b"%00",
                b"content-length: 7\r\n",
                b"expect: 100-continue\r\n",
            ]
            data[at:at] = rng.choice([*rubbish, b"transfer-encoding: chunked\r\n", b"connection: upgrade\r\n"])
        else:
            data[at : at + 1] = rng.choice([b"null", b"-1", b"1e999", b"[[", b"{}", b'"', b"99999999999999999999"])
    return bytes(data)


@pytest.mark.parametrize("n_requests", [2000, pytest.param(50_000, marks=pytest.mark.slow)])
def test_malformed_requests_harm_nobody(app, inferencer, n_requests):
    """Mutated bytes of good requests: each is answered, refused, or waits for more; then a good one is answered."""
    rng = random.Random(0)
    about = {"name": "x", "datatype": "FP32", "shape": [2, 8], "parameters": {"binary_data_size": 64}}
    head = json.dumps({"inputs": [about], "parameters": {"binary_data_output": True}}).encode()
    numbers = {"name": "x", "datatype": "FP32", "shape": [2, 8], "data": X.flatten().tolist()}
    good = [
        post("/v2/models/m/infer", head + to_bytes(X), f"inference-header-content-length: {len(head)}\r\n"),
        post("/v2/models/m/infer", json.dumps({"id": "a", "inputs": [numbers]}).encode()),
        post("/models/m", to_bytes(X), "x-shape: 2,8\r\nx-datatype: FP32\r\n"),
        post("/models/m", json.dumps(X.tolist()).encode(), "content-type: application/json\r\n"),
        post("/v2/repository/models/zz/load", b"{}"),
        b"GET /v2/models/m HTTP/1.1\r\n\r\n",
    ]
    seen = {}

    async def main():
        for _ in range(n_requests):
            client = Client(app)
            data = _mutate(rng, rng.choice(good)) + (rng.choice(good) if rng.random() < 0.2 else b"")
            cut = rng.randrange(len(data) + 1)
            for piece in (data[:cut], data[cut:]):
                if not client.wire.closed:
                    client.line.data_received(piece)
            if rng.random() < 0.9:
                await client.settle()
            for status in {int(part[:3]) for part in client.wire.sent.split(b"HTTP/1.1 ")[1:]}:
                seen[status] = seen.get(status, 0) + 1
            client.line.connection_lost(None)
        client = Client(app)
        client.line.data_received(good[2])
        await client.settle()
        client.line.connection_lost(None)
        return client.replies()[0][0]

    assert LOOP.run(main()) == 200
    assert set(seen) <= {100, 200, 400, 404, 405, 408, 413, 415, 429, 431, 503}
    assert min(seen[200], seen[400], seen[404]) > n_requests // 100
    assert app.context.n_pending == 0
    assert inferencer.ping(timeout=30) > 0


class Deaf:
    """A parser that must not be asked."""

    def feed_data(self, data):
        raise AssertionError(data)


def test_a_head_that_comes_again_is_not_read_again(app, model):
    async def main():
        client = Client(app)
        client.line.data_received(post(body=to_bytes(X)))
        await client.settle()
        client.line._parser = Deaf()
        for k in (2, 3):
            client.line.data_received(post(body=to_bytes(k * X)))
            await client.settle()
        with pytest.raises(AssertionError):
            client.line.data_received(post(body=to_bytes(X), headers="x-shape: 2,8\r\n"))
        client.line.connection_lost(None)
        return client.replies()

    replies = LOOP.run(main())
    for k, (status, _, body) in enumerate(replies, 1):
        assert status == 200
        assert torch.equal(torch.frombuffer(bytearray(body), dtype=torch.float32).view(2, 4), model(k * X))
    assert len(replies) == 3


def test_replies_are_the_same_whether_heads_are_known_again_or_not(app, monkeypatch):
    rng = random.Random(1)
    requests = [post(body=to_bytes(X)), post(body=to_bytes(2 * X)), post(body=b"\r\n\r\n" * 16), post(body=b"")]
    requests += [post(body=to_bytes(X), headers="connection: close\r\n"), post("/models/n", to_bytes(X))]
    requests += [b"GET /v2/models/m HTTP/1.1\r\n\r\n", post(body=b"1" * 200_000)]
    requests += [b"POST /models/m HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n4\r\n0000\r\n0\r\n\r\n"]
    requests += [post(body=to_bytes(X), headers="expect: 100-continue\r\n")]

    def pieces():
        request = rng.choice(requests[:4] if rng.random() < 0.7 else requests)
        if rng.random() < 0.1:
            request = b"\r\n" + request
        if rng.random() < 0.1:
            request += rng.choice([b"\r\n", b"\r\n\r\n", request, b"POST"])
        if rng.random() < 0.1:
            request = _mutate(rng, request)
        cut = rng.randrange(len(request) + 1) if rng.random() < 0.2 else 0
        return [piece for piece in (request[:cut], request[cut:]) if piece]

    async def answer(spoken):
        client = Client(app)
        for request in spoken:
            for piece in request:
                if not client.wire.closed:
                    client.line.data_received(piece)
            await client.settle()
        client.line.connection_lost(None)
        return client.wire.sent

    differ = 0
    for _ in range(300):
        spoken = [pieces() for _ in range(rng.randrange(2, 6))]
        sent = []
        for known in (1 << 12, 0):
            monkeypatch.setattr(module, "_KNOWN_BYTES", known)
            sent.append(LOOP.run(answer(spoken)))
        assert sent[0] == sent[1], spoken
        differ += len(set(map(tuple, spoken))) < len(spoken)
    assert differ > 50  # many of them said the same again
