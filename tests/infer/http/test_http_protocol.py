"""The connection without a network: given packets, and asked what it writes."""

import asyncio
import contextlib
import logging

import pytest

uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("httptools")

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol  # noqa: E402
from uvicorn.server import ServerState  # noqa: E402

from ai.infer.http import http_protocol  # noqa: E402
from ai.infer.http.http_protocol import HttpProtocol  # noqa: E402

OFFER = b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n"
SIZED = b"content-length: 9\r\n\r\nGET / HTT"  # which read as a request would be another
CHUNKED = b"transfer-encoding: chunked\r\n\r\n4\r\nGET \r\n5\r\n/ HTT\r\n0\r\nx-sum: 1\r\n\r\n"
NEXT = b"GET /next?a=b HTTP/1.1\r\nhost: x\r\n\r\n"


class Transport:
    """As much of a transport as a connection uses."""

    def __init__(self):
        self.pieces, self.closed, self.aborted = [], asyncio.Event(), False
        self.n_closes = 0
        self.n_untaken = 0  # bytes that the other side has yet to read

    def get_extra_info(self, name, default=None):
        return default

    def write(self, data):
        assert not self.closed.is_set()
        self.pieces.append(data)

    @property
    def written(self):
        return b"".join(self.pieces)

    def close(self):
        self.n_closes += 1
        self.closed.set()

    def abort(self):
        self.aborted = True

    def is_closing(self):
        return self.closed.is_set()

    def get_write_buffer_size(self):
        return self.n_untaken

    def pause_reading(self):
        pass

    def resume_reading(self):
        pass


async def echo(scope, receive, send):
    """Says what was asked for, and by what body."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body, more = body + message["body"], message["more_body"]
    said = f"{scope['method']} {scope['raw_path']} {scope['query_string']} {body}".encode()
    length = (b"content-length", str(len(said)).encode())
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": said})


class Clock:
    """The running loop's own, which goes on when it is told to."""

    def __init__(self, monkeypatch):
        self.now, self.timers = 0.0, []
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: self.now)
        monkeypatch.setattr(asyncio.get_running_loop(), "call_later", self.call_later)

    def call_later(self, seconds, call, *arguments):
        self.timers.append(asyncio.TimerHandle(self.now + seconds, call, arguments, asyncio.get_running_loop()))
        return self.timers[-1]

    def go_on(self, seconds):
        end = self.now + seconds
        while due := [each for each in self.timers if each.when() <= end]:
            timer = min(due, key=asyncio.TimerHandle.when)
            self.timers.remove(timer)
            self.now = timer.when()
            if not timer.cancelled():
                timer._run()
        self.now = end


def connected(protocol, app=echo, *, access_log=False, transport=None):
    config = uvicorn.Config(app, http=protocol, ws="none", lifespan="off", log_config=None)
    config.load()
    transport, state = transport or Transport(), ServerState()
    connection = protocol(config, state, {})
    connection.access_log = access_log
    connection.connection_made(transport)
    return connection, transport, state


async def replies(packets, protocol=HttpProtocol):
    connection, transport, state = connected(protocol)
    for packet in packets:
        if not transport.is_closing():
            connection.data_received(packet)
        for _ in range(3):
            await asyncio.sleep(0)
    while state.tasks and not transport.is_closing():
        done, _ = await asyncio.wait(state.tasks, timeout=100)
        assert done
    ended = transport.is_closing()
    connection.connection_lost(None)
    return transport.written, ended


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
@pytest.mark.parametrize("ending", [SIZED, CHUNKED, b"\r\n"], ids=["sized", "chunked", "without a body"])
@pytest.mark.parametrize("keep", [b"", b"connection: close\r\n"], ids=["kept", "closed"])
def test_an_offer_of_h2c_is_answered_as_the_request_without_it(version, ending, keep):
    """In one packet, a byte at a time, and cut in two at each place; and so is what follows on the connection."""
    first = b"POST /models/m HTTP/%s\r\nhost: x\r\n" % version

    async def scene():
        expected = await replies([first + keep + ending + NEXT], HttpToolsProtocol)
        assert expected[0].count(b"HTTP/1.1 200 ") == (2 if version == b"1.1" and not keep else 1)
        offered = first + OFFER + keep + ending + NEXT
        assert await replies([offered]) == expected
        assert await replies([bytes([byte]) for byte in offered]) == expected
        for i in range(1, len(offered), 3):
            assert await replies([offered[:i], offered[i:]]) == expected

    asyncio.run(scene())


def test_any_number_of_offers_follow_on_one_another():
    """As many as calls that lie in one another would not bear."""

    async def scene():
        written, ended = await replies([(b"POST / HTTP/1.1\r\n" + OFFER + SIZED) * 1100])
        assert written.count(b"POST b'/' b'' b'GET / HTT'") == 1100
        assert not ended

    asyncio.run(scene())


@pytest.mark.parametrize(
    "ending",
    [
        b"content-length: 9\r\ntransfer-encoding: chunked\r\n\r\n",
        b"content-length: 9\r\ncontent-length: 8\r\n\r\n",
        b"transfer-encoding: chunked\r\n\r\nz\r\n",
    ],
)
def test_a_body_whose_end_is_in_doubt_is_refused_beside_an_offer_too(ending, caplog):
    caplog.set_level(logging.CRITICAL)

    async def scene():
        written, ended = await replies([b"POST / HTTP/1.1\r\n" + OFFER + ending + NEXT])
        assert written.startswith(b"HTTP/1.1 400 ")
        assert b"next" not in written
        assert ended

    asyncio.run(scene())


def test_what_offers_anything_else_is_answered_and_connect_is_refused(caplog):
    async def scene():
        chat = b"GET /chat HTTP/1.1\r\nconnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
        written, _ = await replies([chat])
        assert written.endswith(b"GET b'/chat' b'' b''")
        assert caplog.text == ""
        written, _ = await replies([b"CONNECT /there HTTP/1.1\r\nhost: x\r\n\r\nwhatever"])
        assert written.count(b"HTTP/1.1 ") == 1

    asyncio.run(scene())


def test_a_connection_that_is_reset_is_kept_by_nothing():
    async def scene():
        connection, transport, state = connected(HttpProtocol)
        connection.data_received(NEXT)
        await asyncio.wait(state.tasks)
        await asyncio.sleep(0)
        assert transport.written.startswith(b"HTTP/1.1 200 ")
        assert connection.timeout_keep_alive_task is not None
        timer = connection.timeout_keep_alive_task
        connection.connection_lost(ConnectionResetError("by the other side"))
        assert timer.cancelled()

    asyncio.run(scene())


LONG = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
BEGUN = b"GET / HTTP/1.1\r\n"
FIELDS = b"".join(b"x-%d: %s\r\n" % (i, b"y" * 100) for i in range(700))
ENDLESS = {  # what comes first, and again and again
    "fields": (BEGUN, FIELDS),
    "a value": (BEGUN + b"x: ", b"y" * 5000),
    "a name": (BEGUN, b"x" * 5000),
    "a path": (b"GET /", b"x" * 5000),
    "a byte at a time": (BEGUN + b"x: " + b"y" * 66000, b"y"),
    "an upgrade": (BEGUN + OFFER, FIELDS),
    "after others": (2 * NEXT + BEGUN, FIELDS),
}


@pytest.mark.parametrize(("first", "more"), ENDLESS.values(), ids=ENDLESS)
def test_a_head_without_end_is_refused_and_takes_no_memory(first, more):
    async def scene():
        written, ended = await replies([first, *[more] * 100])
        assert written.endswith(LONG)
        assert written.count(b"HTTP/1.1 ") == 1 + first.count(NEXT)
        assert ended

    asyncio.run(scene())


CHUNKS = b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("first", "more", "n_replies"),
    [
        (CHUNKS + b"0\r\nx: ", b"y" * 5000, 0),
        (CHUNKS + b"0\r\n", FIELDS, 0),
        (CHUNKS + b"4;x=", b"y" * 5000, 0),
        (NEXT, b"\r\n" * 2500, 1),
    ],
    ids=["a field after a body", "fields after it", "within a body", "between two"],
)
def test_what_is_no_head_and_no_body_has_an_end(first, more, n_replies):
    async def scene():
        written, ended = await replies([first, *[more] * 20])
        assert written.count(b"HTTP/1.1 ") == n_replies
        assert ended

    asyncio.run(scene())


@pytest.mark.parametrize("n_packets", [1, 2, 50])
@pytest.mark.parametrize("n_more", [0, 1])
def test_a_head_of_64_kib_is_taken_however_it_comes_and_none_above(n_more, n_packets):
    fields = b"".join(b"x-%d: %s\r\n" % (i, b"y" * 100) for i in range(550))
    head = BEGUN + fields + b"last: %s\r\n\r\n"
    head %= b"z" * ((1 << 16) + n_more - len(head) + len(b"%s"))
    size = -(-len(head) // n_packets)

    async def scene():
        written, ended = await replies([head[i : i + size] for i in range(0, len(head), size)])
        assert written.startswith(LONG if n_more else b"HTTP/1.1 200 ")
        assert ended == bool(n_more)

    asyncio.run(scene())


def test_long_bodies_count_for_no_head():
    body = b"POST / HTTP/1.1\r\ncontent-length: 300000\r\n\r\n" + bytes(300000) + NEXT + BEGUN

    async def scene():
        written, ended = await replies([body[i : i + 70000] for i in range(0, len(body), 70000)] + [b"x: y\r\n\r\n"])
        assert written.count(b"HTTP/1.1 200 ") == 3
        assert not ended

    asyncio.run(scene())


HALF = b"POST / HTTP/1.1\r\ncontent-length: 6\r\n\r\nabc"
LATE = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


def test_half_a_request_is_waited_for_a_little_at_the_end(monkeypatch):
    async def scene():
        clock = Clock(monkeypatch)
        late, slow, _ = connected(HttpProtocol)
        soon, quick, _ = connected(HttpProtocol)
        whole, answered, state = connected(HttpProtocol)
        late.data_received(HALF)
        soon.data_received(HALF)
        whole.data_received(HALF + b"def")
        clock.go_on(60.0)
        idle, nothing, _ = connected(HttpProtocol)
        idle.data_received(HALF[:9])
        for connection in (late, soon, whole, idle):
            connection.shutdown()
        assert nothing.is_closing()  # nothing was asked there
        clock.go_on(0.9 * http_protocol.CLOSE_GRACE_S)
        assert not nothing.aborted
        clock.go_on(0.1 * http_protocol.CLOSE_GRACE_S)
        assert nothing.aborted  # TLS waits for a farewell that a client which does not read never sends
        soon.data_received(b"def")  # in time
        clock.go_on(http_protocol.END_GRACE_S)
        assert slow.written == LATE
        assert (slow.n_closes, nothing.n_closes) == (1, 1)  # twice, asyncio's TLS forgets what is to be aborted
        await asyncio.wait(state.tasks)
        while not quick.is_closing():
            await asyncio.sleep(0)
        for transport in (quick, answered):
            assert transport.is_closing()
            assert transport.written.startswith(b"HTTP/1.1 200 ")
            assert b"POST b'/' b'' b'abcdef'" in transport.written
        late.connection_lost(None)
        await asyncio.wait(late.tasks)  # whoever waited for the rest of its body does no more

    asyncio.run(scene())


def test_an_upload_that_moves_is_not_cut_at_the_end(monkeypatch):
    """It may take long; what counts is how long nothing came."""

    async def scene():
        clock = Clock(monkeypatch)
        long, slow, _ = connected(HttpProtocol)
        stuck, halted, _ = connected(HttpProtocol)
        for connection in (long, stuck):
            connection.data_received(HALF)
            connection.shutdown()
        for byte in (b"d", b"e"):
            clock.go_on(0.9 * http_protocol.END_GRACE_S)
            long.data_received(byte)
            if byte == b"d":
                stuck.data_received(byte)
        clock.go_on(0.05 * http_protocol.END_GRACE_S)
        assert not halted.written
        clock.go_on(0.06 * http_protocol.END_GRACE_S)
        assert halted.written == LATE
        assert not slow.is_closing()
        long.data_received(b"f")
        while not slow.is_closing():
            await asyncio.sleep(0)
        assert b"POST b'/' b'' b'abcdef'" in slow.written

    asyncio.run(scene())


def test_half_a_request_behind_others_takes_no_reply_of_theirs(monkeypatch):
    async def scene():
        clock, gate = Clock(monkeypatch), asyncio.Event()

        async def patient(scope, receive, send):
            await gate.wait()
            await echo(scope, receive, send)

        connection, transport, _ = connected(HttpProtocol, patient)
        connection.data_received(NEXT + HALF)
        connection.shutdown()
        clock.go_on(10 * http_protocol.END_GRACE_S)
        assert transport.written == b""
        assert not transport.is_closing()
        gate.set()
        while not transport.written:
            await asyncio.sleep(0)
        clock.go_on(2 * http_protocol.END_GRACE_S)
        first, _, second = transport.written.partition(b"GET b'/next' b'a=b' b''")
        assert first.startswith(b"HTTP/1.1 200 ")
        assert second == LATE

    asyncio.run(scene())


UNTAKEN = {  # what is asked, and whether more is written than the transport has room for
    "whole": (NEXT, False),
    "the last": (NEXT[:-2] + b"connection: close\r\n\r\n", False),
    "begun": (NEXT, True),
    "two": (2 * NEXT, True),
}


@pytest.mark.parametrize("ends", [False, True], ids=["", "at the end"])
@pytest.mark.parametrize(("packet", "is_paused"), UNTAKEN.values(), ids=UNTAKEN)
def test_a_reply_is_waited_for_while_it_is_taken_and_no_longer(packet, is_paused, ends, monkeypatch):
    """Closing would wait for ever: for the bytes, and with them what the request has taken, and the server's end."""

    async def scene():
        clock = Clock(monkeypatch)
        connection, transport, state = connected(HttpProtocol)
        if is_paused:
            connection.pause_writing()
        connection.data_received(packet)
        for _ in range(9):  # as many turns as it takes to be answered, or to wait for room
            await asyncio.sleep(0)
        assert bool(state.tasks) == is_paused
        transport.n_untaken = 9
        seconds = http_protocol.END_GRACE_S if ends else connection.timeout_keep_alive
        if ends:
            connection.shutdown()
        with contextlib.ExitStack() as end:
            end.callback(connection.connection_lost, None)
            for _ in range(8):
                clock.go_on(0.9 * seconds)
                assert not transport.aborted
                transport.n_untaken -= 1
            clock.go_on(0.9 * seconds)
            assert not transport.aborted
            clock.go_on(1.2 * seconds)
            assert transport.aborted
        while state.tasks:
            await asyncio.wait(state.tasks)
        assert not [timer for timer in clock.timers if not timer.cancelled()]

    asyncio.run(scene())


@pytest.mark.parametrize("ending", ["asked for", "of the server", "given up"])
def test_a_long_reply_over_tls_is_taken_before_its_connection_is_closed(ending):
    """It is given over in parts: TLS that is closed drops what it holds half a minute later, whoever still reads."""

    class Tls(Transport):
        def get_extra_info(self, name, default=None):
            return self if name == "sslcontext" else default

        def write(self, data):
            super().write(data)
            if len(data) > 1 << 16:
                connection.pause_writing()

    async def scene():
        nonlocal connection
        connection, transport, state = connected(HttpProtocol, speaks, transport=Tls())
        close = b"connection: close\r\n" if ending == "asked for" else b""
        connection.data_received(b"GET /say/70000 HTTP/1.1\r\n%s\r\n" % close)
        for _ in range(9):
            await asyncio.sleep(0)
        assert 1 << 16 < len(transport.written) < 70000
        if ending == "of the server":
            connection.shutdown()
        assert not transport.is_closing()
        if ending != "given up":
            connection.resume_writing()
            await asyncio.wait(state.tasks)
            assert transport.is_closing()
            assert transport.written.endswith(b"x\r\n0\r\n\r\n")
            assert sum(piece.count(b"x") for piece in transport.pieces) == 70000 - len(b"HTTP/1.1 100 ")
        connection.connection_lost(None)
        while state.tasks:
            await asyncio.wait(state.tasks)

    connection = None
    asyncio.run(scene())


def test_the_end_leaves_one_timer_a_connection(monkeypatch):
    """Another would look at a connection that is gone, of which asyncio's TLS knows nothing any more."""

    async def scene():
        clock = Clock(monkeypatch)
        connection, _, _ = connected(HttpProtocol)
        connection.data_received(HALF)
        connection.shutdown()
        assert len([timer for timer in clock.timers if not timer.cancelled()]) == 1
        connection.connection_lost(None)
        assert not [timer for timer in clock.timers if not timer.cancelled()]
        await asyncio.wait(connection.tasks)

    asyncio.run(scene())


def test_a_reply_that_was_read_at_the_end_ends_its_connection_soon(monkeypatch):
    async def scene():
        clock = Clock(monkeypatch)
        connection, transport, state = connected(HttpProtocol)
        connection.data_received(NEXT)
        await asyncio.wait(state.tasks)
        transport.n_untaken = 9
        connection.shutdown()
        clock.go_on(0.9 * http_protocol.END_GRACE_S)
        assert transport.is_closing()
        transport.n_untaken = 0
        clock.go_on(0.1 * http_protocol.END_GRACE_S + http_protocol.CLOSE_GRACE_S)
        assert transport.aborted
        connection.connection_lost(None)

    asyncio.run(scene())


def test_parts_that_are_taken_are_waited_for_though_as_many_bytes_are_on_their_way_each_time(monkeypatch):
    async def scene():
        clock, go_on = Clock(monkeypatch), asyncio.Event()

        async def app(scope, receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while True:
                await send({"type": "http.response.body", "body": b"part", "more_body": True})
                await go_on.wait()
                go_on.clear()

        connection, transport, state = connected(HttpProtocol, app)
        connection.data_received(NEXT)
        transport.n_untaken = 9
        for _ in range(5):
            while go_on.is_set() or not transport.pieces:
                await asyncio.sleep(0)
            transport.pieces.clear()
            go_on.set()
            clock.go_on(connection.timeout_keep_alive)
            assert not transport.aborted
        clock.go_on(2 * connection.timeout_keep_alive)
        assert transport.aborted
        connection.connection_lost(None)
        for task in list(state.tasks):
            task.cancel()

    asyncio.run(scene())


async def speaks(scope, receive, send):
    """Answers with the parts that the path names by their sizes, and reads the body before where it says so."""
    if scope["path"].startswith("/read"):
        await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    sizes = [int(size) for size in scope["path"].split("/")[2:]]
    for i, size in enumerate(sizes):
        body = b"HTTP/1.1 100 "[:size].ljust(size, b"x")
        await send({"type": "http.response.body", "body": body, "more_body": i + 1 < len(sizes)})
    if not sizes:
        raise ValueError("nothing to say")


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        (b"GET", b"/say/20", [(b"HTTP/1.1 200", b"\r\n0\r\n\r\n")]),
        (b"GET", b"/say/20/3/0", [(b"HTTP/1.1 200", b"x\r\n"), (b"3\r\n", b"\r\n"), (b"0\r\n", b"\r\n")]),
        (b"GET", b"/say/0", [(b"HTTP/1.1 200", b"\r\n0\r\n\r\n")]),
        (b"GET", b"/say/70000", [(b"HTTP/1.1 200", b"\r\n\r\n"), (b"11170\r\nHTTP/1.1 100 ", b"\r\n0\r\n\r\n")]),
        (b"HEAD", b"/say/20", [(b"HTTP/1.1 200", b"\r\n\r\n")]),
        (b"POST", b"/read/20", [(b"HTTP/1.1 100", b"\r\n\r\n"), (b"HTTP/1.1 200", b"\r\n0\r\n\r\n")]),
        (b"GET", b"/say", []),
    ],
)
def test_the_head_of_a_reply_goes_out_with_the_first_of_its_body(method, path, expected, caplog):
    """And with no more than that; a reply without a body is none, and its connection ends."""

    async def run():
        connection, transport, state = connected(HttpProtocol, speaks)
        for n_before in (0, len(expected)):  # twice on one connection
            if not transport.is_closing():
                assert len(transport.pieces) == n_before
                expects = b"expect: 100-continue\r\n" if path.startswith(b"/read") else b""
                connection.data_received(b"%s %s HTTP/1.1\r\nhost: x\r\n%s\r\n" % (method, path, expects))
                await asyncio.wait(state.tasks, timeout=100)
        ended = transport.is_closing()
        connection.connection_lost(None)
        return transport, ended

    transport, ended = asyncio.run(run())
    assert ended == (not expected)
    assert len(transport.pieces) == 2 * len(expected)
    for piece, (start, end) in zip(transport.pieces, expected * 2, strict=True):
        assert (piece[: len(start)], piece[-len(end) :]) == (start, end)


def test_a_connection_that_asks_nothing_more_ends_after_its_time_and_no_sooner(monkeypatch):
    """One timer sees to all requests of a connection: what was asked meanwhile puts the end off."""

    async def scene():
        clock, answer = Clock(monkeypatch), asyncio.Event()

        async def app(scope, receive, send):
            if scope["path"] == "/slow":
                await answer.wait()
            await echo(scope, receive, send)

        connection, transport, state = connected(HttpProtocol, app)
        seconds = connection.timeout_keep_alive
        connection.data_received(NEXT)
        await asyncio.wait(state.tasks)
        clock.go_on(0.6 * seconds)
        connection.data_received(NEXT)
        await asyncio.wait(state.tasks)
        clock.go_on(0.6 * seconds)
        assert not transport.is_closing()
        connection.data_received(NEXT.replace(b"next", b"slow"))
        clock.go_on(2 * seconds)
        assert not transport.is_closing()  # what is asked is waited for by others
        answer.set()
        await asyncio.wait(state.tasks)
        connection.data_received(NEXT[:9])
        clock.go_on(0.9 * seconds)
        assert not transport.is_closing()
        connection.data_received(NEXT[9:])
        await asyncio.wait(state.tasks)
        clock.go_on(0.9 * seconds)
        assert not transport.is_closing()
        clock.go_on(0.2 * seconds)
        assert transport.is_closing()
        assert transport.written.count(b"HTTP/1.1 200 ") == 4
        connection.connection_lost(None)

    asyncio.run(scene())


@pytest.mark.parametrize("length", [19, 21])
def test_a_body_of_another_length_than_its_head_says_is_an_error_each_time(length, caplog):
    """A head that is known from an earlier reply is held to its length, too."""

    async def scene():
        async def app(scope, receive, send):
            headers = [(b"content-length", b"20")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": bytes(20 if scope["path"] == "/next" else length)})

        connection, transport, state = connected(HttpProtocol, app)
        connection.data_received(NEXT)
        await asyncio.wait(state.tasks)
        connection.data_received(NEXT.replace(b"next", b"wrong"))
        await asyncio.wait(state.tasks)
        assert transport.is_closing()
        assert "Response content" in caplog.text
        connection.connection_lost(None)

    asyncio.run(scene())


LENGTH = (b"content-length", b"5")
HEADERS = {
    "tuples": lambda: [LENGTH, (b"x-a", b"b")],
    "lists": lambda: [list(LENGTH), [b"x-a", b"b"]],
    "a generator": lambda: (pair for pair in [LENGTH, (b"x-a", b"b")]),
    "a generator without a length": lambda: (pair for pair in [(b"x-a", b"b")]),
    "iterators": lambda: [iter(LENGTH)],
    "items": lambda: {LENGTH[0]: LENGTH[1]}.items(),
    "bytearrays": lambda: [(bytearray(LENGTH[0]), bytearray(LENGTH[1]))],
    "an end": lambda: [LENGTH, (b"connection", b"close")],
}
REQUESTS = {
    "one": NEXT,
    "three": 3 * NEXT,
    "HEAD": NEXT.replace(b"GET", b"HEAD"),
    "the last": NEXT[:-2] + b"connection: close\r\n\r\n",
    "1.0": NEXT.replace(b"1.1", b"1.0"),
}


@pytest.mark.parametrize("access_log", [False, True])
@pytest.mark.parametrize("headers", HEADERS.values(), ids=HEADERS)
def test_a_reply_is_what_uvicorn_writes_however_its_headers_come(headers, access_log, caplog, monkeypatch):
    """Also twice on one connection, and where each reply is a line in a log."""
    caplog.set_level(logging.INFO, "uvicorn.access")
    monkeypatch.setattr(logging.getLogger("uvicorn.access"), "propagate", True)

    async def app(scope, receive, send):
        start = {"type": "http.response.start", "status": 200, "headers": headers()}
        await send(start)
        start.clear()  # it is the application's again
        await send({"type": "http.response.body", "body": b"abcde"})

    async def said(protocol, packet):
        connection, transport, state = connected(protocol, app, access_log=access_log)
        caplog.clear()
        for _ in range(2):
            if not transport.is_closing():
                connection.data_received(packet)
            while state.tasks:
                await asyncio.wait(state.tasks)
        ended = transport.is_closing()
        connection.connection_lost(None)
        return transport.written, ended, state.total_requests, caplog.messages

    async def scene():
        for name, packet in REQUESTS.items():
            expected = await said(HttpToolsProtocol, packet)
            assert await said(HttpProtocol, packet) == expected, name
            assert bool(expected[3]) == access_log

    asyncio.run(scene())


async def early(scope, receive, send):
    """Answers before a body is read."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body"})


EARLY = b"POST /early HTTP/1.1\r\ncontent-length: 6\r\n\r\nabc"


@pytest.mark.parametrize("packets", [[], [NEXT[:9]], [NEXT, NEXT[:9]], [EARLY, b"d", b"ef"], [NEXT, b"\r\n"]])
def test_a_connection_that_waits_for_nothing_ends_whatever_came_last(packets, monkeypatch):
    """Nothing, half a head, the rest of a body that was answered before, an empty line; the server may end then."""

    async def scene():
        clock = Clock(monkeypatch)

        connection, transport, state = connected(HttpProtocol, early)
        for packet in packets:
            clock.go_on(0.3 * connection.timeout_keep_alive)
            connection.data_received(packet)
            while state.tasks:
                await asyncio.wait(state.tasks)
        clock.go_on(0.9 * connection.timeout_keep_alive)
        assert not transport.is_closing()
        clock.go_on(0.2 * connection.timeout_keep_alive)
        assert transport.is_closing()
        connection.shutdown()
        assert transport.n_closes == 1
        connection.connection_lost(None)

    asyncio.run(scene())


TRICKLES = {  # what comes at once, what comes a byte at a time without end, and whether a request was begun
    "a head": (b"GET / HTTP/1.1\r\nx: ", b"a", True),
    "a head after a request": (NEXT + b"GET / HTTP/1.1\r\nx: ", b"a", True),
    "a first line": (b"GET /", b"a", True),
    "empty lines": (b"", b"\r\n", False),
    "a body that was answered": (b"POST /early HTTP/1.1\r\ncontent-length: 9999\r\n\r\n", b"a", False),
    "a head, and nothing taken": (NEXT + b"GET / HTTP/1.1\r\nx: ", b"a", None),
}


@pytest.mark.parametrize(("first", "then", "is_begun"), TRICKLES.values(), ids=TRICKLES)
def test_bytes_that_make_no_request_do_not_keep_a_connection(first, then, is_begun, monkeypatch):
    """However many come: a head that is not whole is told that it is late."""

    async def scene():
        clock = Clock(monkeypatch)
        connection, transport, state = connected(HttpProtocol, early)
        connection.data_received(first)
        while state.tasks:
            await asyncio.wait(state.tasks)
        transport.n_untaken = 9 if is_begun is None else 0
        n_replies = len(transport.pieces)
        while not (transport.closed.is_set() or transport.aborted) and clock.now < 10 * connection.timeout_keep_alive:
            connection.data_received(then)
            clock.go_on(0.06 * connection.timeout_keep_alive)
        assert connection.timeout_keep_alive <= clock.now <= 2.1 * connection.timeout_keep_alive
        assert transport.aborted == (is_begun is None)
        assert transport.pieces[n_replies:] == ([LATE] if is_begun else [])
        connection.connection_lost(None)

    asyncio.run(scene())


@pytest.mark.parametrize("idle", [0.0, 0.5, 0.97, 1.3])
def test_a_slow_head_has_as_long_as_an_idle_connection(idle, monkeypatch):
    """Whenever it begins, and however slowly the head before it came; what follows has as long again."""

    async def scene():
        clock = Clock(monkeypatch)
        connection, transport, state = connected(HttpProtocol, early)
        seconds = connection.timeout_keep_alive
        clock.go_on(0.97 * seconds)
        for n in (1, 2, 3):
            for i in range(len(NEXT)):
                clock.go_on(0.98 * seconds / len(NEXT))
                connection.data_received(NEXT[i : i + 1])
            while state.tasks:
                await asyncio.wait(state.tasks)
            assert transport.written.count(b"HTTP/1.1 200 ") == n
            clock.go_on(min(idle, 0.97) * seconds)
        clock.go_on(max(idle - 0.97, 0.0) * seconds)
        assert transport.is_closing() == (idle > 1.0)
        assert LATE not in transport.written
        connection.connection_lost(None)

    asyncio.run(scene())
