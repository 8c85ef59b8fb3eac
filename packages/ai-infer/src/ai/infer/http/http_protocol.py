"""uvicorn's HTTP/1.1, and what others that are kept do beyond it: offers of h2c, replies in one piece, and ends.

Source: RFC 9110, sections 7.8 (a server may ignore `Upgrade`, and then answers the request as it stands) and 15.5.9.
"""

import asyncio
import contextlib
import logging
import sys
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

if sys.platform == "linux":
    import fcntl
    import termios

END_GRACE_S = 5
"""How long who sends nothing more of a request, or takes nothing of a reply, is waited for at the end."""
CLOSE_GRACE_S = 1.0
_log = logging.getLogger("ai.infer")
_COPIED_BYTES = 1 << 16  # at most, to save a call
_LATE = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
_MAX_HEAD_BYTES = 1 << 16  # also of what comes after a body, or within it, and is none of it
_LONG = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class HttpProtocol(HttpToolsProtocol):
    """One connection, whose offers to speak another protocol are passed over, and which ends soon once it is to.

    httptools gives up where a request offers h2c, as Java's and curl's clients do: what follows, the body, would be
    read as another request. Such a head is read again without its offer, by the parser of any other request, which
    finds the body's end and keeps the connection as it does for others.
    """

    flow: "_Flow"
    _heard_at = 0.0  # or answered, where that was later
    _seen: tuple[Any, int, int, bool] = (None, 0, 0, False)  # by the last look: request, written, untaken, closing
    _moved_at = 0.0  # when a look first found it so
    _last: Any = None  # by the last look: the head that has begun, else the last request
    _waits_since = 0.0  # when a look first found it so
    _ends = False  # as soon as what was asked is answered
    _reads_again = False  # the head, which offers another protocol
    _n_beside = 0  # bytes of packets that came since any of a body did, or the end of a head

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins; who asks nothing, or half of something, is not waited for without end."""
        super().connection_made(transport)
        self.flow = _Flow(transport)
        self._heard_at = self._waits_since = self.loop.time()
        self._look_in(self.timeout_keep_alive)

    def data_received(self, data: bytes) -> None:
        """Reads what came."""
        self._heard_at = self.loop.time()
        self._n_beside += len(data)
        try:
            while data:
                try:
                    self.parser.feed_data(data)
                    if self._n_beside > _MAX_HEAD_BYTES:  # of packets within one head, or after one body
                        self._refuse_long_head()
                    return
                except httptools.HttpParserUpgrade as offer:
                    if not self._offers():  # CONNECT, after which nothing is HTTP
                        return
                    data = self._head_without_offer() + data[offer.args[0] :]
                    self.parser = httptools.HttpRequestParser(self)  # the other may take the head for the last one
                    with contextlib.suppress(AttributeError):  # httptools before 0.6.3
                        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, _LongHeadError):
                self._refuse_long_head()
                return
            self.logger.warning("Invalid HTTP request received.")
            self.send_400_response("Invalid HTTP request received.")

    def connection_lost(self, exc: Exception | None) -> None:
        """Lets go of the connection, also of one that was reset: the timer would hold it for 75 s."""
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def on_response_complete(self) -> None:
        """Goes on with the next request, or waits for one: by one timer a connection, as one a request costs."""
        self._heard_at = self.loop.time()
        if self.pipeline or self.transport.is_closing():
            super().on_response_complete()
            if not self.transport.is_closing():  # it has ended the timer
                self._look_in(self.timeout_keep_alive)
            return
        self.server_state.total_requests += 1
        self.flow.resume_reading()

    def timeout_keep_alive_handler(self) -> None:
        """Hangs up on who has neither said nor taken anything for so long, and does not wait for us; else looks later.

        What was written and not taken stays in memory, and keeps a transport that was closed from being so. Bytes that
        come alone hold nothing up: by the look after next a head that has begun is whole, or ends with its connection.
        """
        self._unset_keepalive_if_required()
        now, n_untaken, is_closing = self.loop.time(), _n_untaken(self.transport), self.transport.is_closing()
        seen = (self.cycle, self.flow.n_written, n_untaken, is_closing)
        if seen != self._seen:
            self._seen, self._moved_at = seen, now
        is_asked = self.cycle is not None and not self.cycle.response_complete
        is_unsent = self._ends and is_asked and self.cycle.more_body
        is_begun = self._has_begun()
        last = self.scope if is_begun else self.cycle
        if is_asked or last is not self._last:
            self._last, self._waits_since = last, now
        seconds: float = self.timeout_keep_alive
        if n_untaken:
            since = self._moved_at
        elif is_closing:  # TLS alone would wait half a minute for the other's farewell
            since, seconds = self._moved_at, CLOSE_GRACE_S
        else:
            if is_asked and (not is_unsent or self.pipeline or self.flow.read_paused):  # it waits for us
                self._heard_at = now
            since = self._heard_at if is_asked else min(self._heard_at, self._waits_since)
        if since + seconds > now:
            self._look_in(since + seconds - now)
        elif n_untaken or is_closing:
            self.transport.abort()
        else:
            # Nothing was begun, and another server takes it whole.
            if (not self.cycle.response_started) if is_asked else is_begun:
                self.transport.write(_LATE)
            self.transport.close()
            self._look_in(CLOSE_GRACE_S)

    def _look_in(self, seconds: float) -> None:
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def on_headers_complete(self) -> None:
        """Begins with a request, unless its head is to be read again."""
        if self._n_beside > _MAX_HEAD_BYTES and self._n_head_bytes() > _MAX_HEAD_BYTES:
            raise _LongHeadError
        self._n_beside = 0
        self._reads_again = self._offers()
        if self._reads_again:
            return
        super().on_headers_complete()
        self.cycle.__class__ = _Cycle  # uvicorn names its own where it makes it; the request's task has yet to run
        if not self.parser.should_keep_alive():  # older uvicorns see to it as they reply
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """Takes some of a body."""
        self._n_beside = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Ends a request's body, unless it is to be read yet."""
        if not self._reads_again:
            super().on_message_complete()

    def _has_begun(self) -> bool:
        """Whether there is a head of which more is to come."""
        return self.scope is not None and (self.cycle is None or self.cycle.scope is not self.scope)

    def _n_head_bytes(self) -> int:
        first = len(self.parser.get_method()) + len(self.url) + len("  HTTP/1.1\r\n\r\n")
        return first + sum(len(name) + len(value) + len(": \r\n") for name, value in self.headers)

    def _refuse_long_head(self) -> None:
        if not self.transport.is_closing():
            # Else it would be taken for the reply to another.
            if self._has_begun() and (self.cycle is None or self.cycle.response_complete):
                self.transport.write(_LONG)
            self.transport.close()
            self._look_in(CLOSE_GRACE_S)

    def _offers(self) -> bool:
        return self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT"

    def _head_without_offer(self) -> bytes:
        first = b"%s %s HTTP/%s\r\n" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        fields = (b"%s: %s\r\n" % (name, value) for name, value in self.headers if name != b"upgrade")
        return b"".join([first, *fields, b"\r\n"])

    def shutdown(self) -> None:
        """Ends the connection once its request is answered, and the answer taken; if the rest does not come, soon."""
        if not self.transport.is_closing():  # twice, asyncio's TLS forgets what is to be aborted
            super().shutdown()
        self._ends, self._heard_at, self.timeout_keep_alive = True, self.loop.time(), END_GRACE_S
        self._seen = HttpProtocol._seen  # what is taken counts from here
        self.timeout_keep_alive_handler()


class _LongHeadError(Exception):
    """A head has more bytes than any that is meant."""


class _Flow(FlowControl):
    """What uvicorn keeps of a connection's flow, and how much of replies in parts was written."""

    n_written = 0


class _Cycle(RequestResponseCycle):
    """One request and its reply, whose head goes out with the first of its body, by one call of the system, not two.

    ASGI leaves it to the server to keep the head until then. Who asked is not woken for a head alone, and of a reply
    that fails before it has a body nothing is said.
    """

    flow: _Flow
    _start: Any = None  # what was said of the reply that has yet to go out

    async def send(self, message: Any) -> None:
        """Takes what the application says; writes a whole reply by a head that is known from an earlier one."""
        start = self._start
        if start is None:
            if self.response_started or message["type"] != "http.response.start" or self.scope["method"] == "HEAD":
                await super().send(message)
                return
            # Headers may be any iterable of pairs, also one that can be read once.
            self._start = {**message, "headers": tuple(map(tuple, message.get("headers", ())))}
            self.response_started, self.waiting_for_100_continue = True, False
            return
        self._start = None
        body = message.get("body", b"")
        is_plain = message["type"] == "http.response.body" and not message.get("more_body", False)
        is_watched = self.access_log or self.default_headers or self.disconnected or self.flow.write_paused
        if is_plain and self.keep_alive and not is_watched:
            head, n_bytes = _known_head(start["status"], start["headers"])
            if n_bytes == len(body) <= _COPIED_BYTES:
                self.transport.write(head + body)
                self.response_complete = True
                self.message_event.set()
                self.on_response()
                return
        self.response_started = False
        self.transport = _ReplyTransport(self.transport, self.flow)  # type: ignore[assignment]
        await super().send(start)
        if is_plain and self.scope["scheme"] == "https":
            # TLS takes a write of any length at once, does not say how much waits, and drops it 30 s after its end.
            while len(body) > _COPIED_BYTES:
                part: Any = {"type": message["type"], "body": body[:_COPIED_BYTES], "more_body": True}
                await super().send(part)
                body = memoryview(body)[_COPIED_BYTES:]
            message = {"type": message["type"], "body": body}
        await super().send(message)


def _known_head(status: int, headers: tuple[tuple[bytes, bytes], ...]) -> tuple[bytes, int]:
    """Returns `_head`'s, remembered unless a header is of a kind that may change, as a bytearray is."""
    try:
        return _head(status, headers)
    except (TypeError, ValueError):  # which a writable memoryview raises
        return _head.__wrapped__(status, headers)


@lru_cache(maxsize=1024)
def _head(status: int, headers: tuple[tuple[bytes, bytes], ...]) -> tuple[bytes, int]:
    """Returns the head that uvicorn writes on a connection that stays, and the bytes of the body; -1: it is not said.

    Raises:
        RuntimeError: a header is none.
    """
    written: list[bytes] = []
    cycle = RequestResponseCycle(
        scope={"method": "GET", "headers": []},  # type: ignore[typeddict-item]
        transport=SimpleNamespace(write=written.append),  # type: ignore[arg-type]
        flow=SimpleNamespace(write_paused=False),  # type: ignore[arg-type]
        logger=_log,
        access_logger=_log,
        access_log=False,
        default_headers=[],
        message_event=asyncio.Event(),
        expect_100_continue=False,
        keep_alive=True,
        on_response=lambda: None,
    )
    with contextlib.suppress(StopIteration):  # it waits for nothing
        cycle.send({"type": "http.response.start", "status": status, "headers": headers}).send(None)
    is_said = cycle.chunked_encoding is False and cycle.keep_alive
    return written[0], cycle.expected_content_length if is_said else -1


class _ReplyTransport:
    """What a reply is written to that is long, or comes in parts: its head goes out with the first of them.

    Args:
        transport: of the connection.
        flow: likewise.
    """

    __slots__ = ("_begun", "_flow", "_head", "_transport", "close", "is_closing")

    def __init__(self, transport: asyncio.Transport, flow: _Flow) -> None:
        self._transport = transport
        self._flow = flow
        self._head = b""
        self._begun = False
        self.close, self.is_closing = transport.close, transport.is_closing

    def write(self, data: bytes) -> None:
        """Writes the body and what was said before it; keeps the head until then."""
        self._flow.n_written += len(data)
        if self._begun:
            self._transport.write(data)
        elif not self._head:
            self._head = data
        else:
            self._begun = True
            if len(data) <= _COPIED_BYTES:
                self._transport.write(self._head + data)
            else:
                self._transport.write(self._head)
                self._transport.write(data)


def _n_untaken(transport: asyncio.Transport) -> int:
    """Returns how many bytes were written that the other side has not taken, as far as the system tells."""
    n_bytes = transport.get_write_buffer_size()
    connection = transport.get_extra_info("socket")
    if sys.platform == "linux" and connection is not None:  # under TLS what waits is known to the system alone
        with contextlib.suppress(OSError, ValueError):  # closed
            n_bytes += int.from_bytes(fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    return n_bytes
