"""One connection of HTTP/1.1: bytes to requests by httptools, each to the application, replies back in their order.

uvicorn owns the socket, the loop, the signals and the drain; this stands in the place of its own protocol, which makes
a task, an event and a scope of every request. That costs as much as all the rest of a small inference request.
"""

import asyncio
from collections import deque
from functools import lru_cache, partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from ai.infer.http.inference import error_body, refuse
from ai.infer.http.messages import JSON, Headers, Reply, Request

if TYPE_CHECKING:
    from ai.infer.http.app import App, Running

_MAX_HEAD_BYTES = 1 << 16  # beyond the piece of data in which a request begins
_MAX_QUEUED = 16  # requests that were sent before the replies to earlier ones
_IDLE_S = 75.0  # after which a connection without a request is closed
_LINGER_S = 5.0  # that a refused client has to read why
_JOINED_BYTES = 1 << 16  # up to which head and body are sent as one piece
_KNOWN_BYTES = 1 << 12  # up to which a head is kept, to know it again


class HttpConnection(asyncio.Protocol):
    """Serves one client.

    Args:
        app: answers its requests.
        server_state: of uvicorn, which keeps count of connections in it and asks each of them to end at its own end.
    """

    def __init__(self, app: "App", server_state: Any) -> None:
        import httptools

        self._errors = httptools
        self._parser = httptools.HttpRequestParser(self)
        self._app = app
        self._connections: set[HttpConnection] = server_state.connections
        self._server_state = server_state
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._timer: asyncio.TimerHandle | None = None
        self._queue: deque[tuple[Request | None, Reply | None]] = deque()  # whose turn has not come
        self._current: Request | None = None  # which is being answered
        self._running: Running | None = None
        self._writable = True
        self._paused = False  # reading, because too many requests wait
        self._turning = False  # in `_next`
        self._reading = False  # in the middle of a request
        self._closing = False  # once all that was asked is answered
        self._deaf = False  # to whatever else the client sends
        self._refused = False  # in the middle of a request, so that bytes may come that nobody reads
        self._in_head = True
        self._n_begun = self._n_head_bytes = 0
        self._known_head = b""  # of the last request that came whole, in one piece of data
        self._known_size = 0  # of that request
        self._known: Request
        self._since = self._loop.time()  # when the request now being read began, or the last one was answered

    # The transport's calls --------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begins."""
        self._transport = transport  # type: ignore[assignment]
        self._connections.add(self)
        self._timer = self._loop.call_later(min(self._app.timeout_s, _IDLE_S), self._look_at_clock)

    def connection_lost(self, error: Exception | None) -> None:
        """Drops what the client no longer waits for."""
        self._connections.discard(self)
        self._closing = True
        self._queue.clear()
        if self._timer is not None:
            self._timer.cancel()
        if self._running is not None:
            self._running.cancel()
        self._running = self._current = None

    def data_received(self, data: bytes) -> None:
        """Takes bytes in."""
        if self._deaf:
            return
        if 0 < self._known_size == len(data) and not self._reading and data.startswith(self._known_head):
            self._repeat(data)
            return
        between, was_in_head, n_begun = not self._reading, self._in_head, self._n_begun
        self._known_size = 0
        try:
            self._parser.feed_data(data)
        except self._errors.HttpParserUpgrade:  # to what is not spoken here: the request itself is answered
            self._deaf = True
        except self._errors.HttpParserError:
            self._refuse((400, JSON, error_body("the bytes must be a request of HTTP/1.1")))
        if self._in_head and was_in_head and n_begun == self._n_begun:
            self._n_head_bytes += len(data)
            if self._n_head_bytes > _MAX_HEAD_BYTES:
                self._refuse((431, JSON, error_body(f"the headers must have at most {_MAX_HEAD_BYTES} bytes")))
        if between and self._n_begun == n_begun + 1 and not self._reading and not self._deaf:
            self._remember(data)

    def _remember(self, data: bytes) -> None:
        """Keeps the head of the request that this piece of data was, if the next one may begin with the same bytes."""
        request = self._request
        n_head = data.find(b"\r\n\r\n") + 4
        whole = 4 <= n_head <= _KNOWN_BYTES and data[n_head:] == request.body
        if whole and self._refusal is None and not request.headers.keys() & {b"transfer-encoding", b"expect"}:
            self._known_head, self._known_size = data[:n_head], len(data)
            self._known = Request(request.method, request.path, request.headers)

    def _repeat(self, data: bytes) -> None:
        """Takes in a request whose head is known to the byte, so that it need not be read again.

        The same head has the same length of body, and `App.check` finds the same in it: the data is one whole request.
        """
        known = self._known
        self._n_begun += 1
        self._since = self._loop.time()
        self._request = Request(known.method, known.path, known.headers, data[len(self._known_head) :])
        self._arrived(self._request, None)

    def eof_received(self) -> bool:
        """Leaves the connection open for replies that are due."""
        self._closing, self._reading = True, False
        return self._current is not None or bool(self._queue)

    def pause_writing(self) -> None:
        """Takes on no further request while the client does not read its replies."""
        self._writable = False

    def resume_writing(self) -> None:
        """Goes on."""
        self._writable = True
        self._next()

    def shutdown(self) -> None:
        """Ends the connection once the requests on their way are answered; called by uvicorn."""
        self._closing = True
        if self._current is None and not self._queue and not self._reading:
            self._transport.close()

    # The parser's calls -----------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Begins a request."""
        self._url = b""
        self._headers: dict[bytes, bytes] = {}
        self._chunks: list[bytes] = []
        self._n_bytes = 0
        self._refusal: Reply | None = None
        self._n_begun += 1
        self._n_head_bytes = 0
        self._reading = True
        self._since = self._loop.time()

    def on_url(self, url: bytes) -> None:
        """Takes in a part of the target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Takes in a header."""
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """Refuses what can be refused before the body comes."""
        self._in_head = False
        parser = self._parser
        path = self._url.partition(b"?")[0].decode("latin1")
        if not path.startswith("/"):  # the absolute form
            path = "/" + path.partition("://")[2].partition("/")[2]
        if "%" in path:
            path = unquote(path)
        keep_alive = parser.get_http_version() == "1.1" and parser.should_keep_alive() and not parser.should_upgrade()
        method = parser.get_method().decode("latin1")
        self._request = request = Request(method, path, self._headers, keep_alive=keep_alive)
        self._refusal = self._app.check(request)
        expects = self._headers.get(b"expect", b"").lower() == b"100-continue"
        if self._refusal is not None:
            if self._refusal[0] == 413 or expects:  # a body that is large, or that will not come
                self._refuse(self._refusal)
        elif expects and self._current is None and not self._queue:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, chunk: bytes) -> None:
        """Takes in a part of the body."""
        if self._refusal is None and not self._deaf:
            self._n_bytes += len(chunk)
            if self._n_bytes > self._app.max_body_bytes:
                self._chunks.clear()
                self._refuse(refuse(self._app.too_large()))
                return
            self._chunks.append(chunk)

    def on_message_complete(self) -> None:
        """Hands the request on, or has it wait for its turn."""
        self._in_head, self._reading = True, False
        if self._deaf:
            return
        request, chunks = self._request, self._chunks
        request.body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        self._deaf = not request.keep_alive
        self._arrived(request, self._refusal)

    def _arrived(self, request: Request, refusal: Reply | None) -> None:
        self._queue.append((request, refusal))
        if len(self._queue) > _MAX_QUEUED and not self._paused:
            self._paused = True
            self._transport.pause_reading()
        self._next()

    # Replies ----------------------------------------------------------------------------------------------------

    def _next(self) -> None:
        """Turns to the next request, unless one is being answered."""
        if self._turning:
            return
        self._turning = True
        while self._current is None and self._queue and self._writable:
            request, reply = self._queue.popleft()
            if self._paused and len(self._queue) <= _MAX_QUEUED:
                self._paused = False
                self._transport.resume_reading()
            if reply is not None or request is None:
                assert reply is not None
                self._write(request, reply)
                continue
            self._current = request
            running = self._app.begin(request, partial(self._reply, request))
            if self._current is request:
                self._running = running
        self._turning = False

    def _reply(self, request: Request, reply: Reply) -> None:
        if self._current is not request:  # the client is gone
            return
        self._current = self._running = None
        self._write(request, reply)
        if self._queue:
            self._next()

    def _write(self, request: Request | None, reply: Reply) -> None:
        """Writes the reply to a request, or to what was none."""
        if self._transport.is_closing():
            return
        self._server_state.total_requests += 1
        self._since = self._loop.time()
        keep_alive = request is not None and request.keep_alive
        if self._closing and not self._queue and not self._reading:
            keep_alive = False
        status, headers, body = reply
        head = _head(status, headers, len(body), keep_alive)
        if request is not None and request.method == "HEAD":
            self._transport.write(head)
        elif len(body) <= _JOINED_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            self._transport.write(body)
        if not keep_alive:
            self._deaf = True
            self._queue.clear()
            if self._refused:
                self._linger()
            else:
                self._transport.close()

    def _refuse(self, reply: Reply) -> None:
        """Answers in its turn, reads no further request, and closes."""
        if not self._deaf:
            self._deaf = self._refused = True
            self._reading = False
            self._queue.append((None, reply))
            self._next()

    def _linger(self) -> None:
        """Closes once the client has read its last reply: to close on bytes not yet read would take it from it."""
        self._closing = True
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._loop.call_later(_LINGER_S, self._transport.close)

    def _look_at_clock(self) -> None:
        """Ends a connection on which nothing happens; one timer for its life, since each of them costs."""
        waited = self._loop.time() - self._since
        limit = self._app.timeout_s if self._reading else _IDLE_S
        if self._current is not None or self._queue or not self._writable:
            limit, waited = _IDLE_S, 0.0
        if waited < limit:
            self._timer = self._loop.call_later(min(limit - waited, self._app.timeout_s), self._look_at_clock)
        elif self._reading:
            self._refuse((408, JSON, error_body(f"a request must be sent within {self._app.timeout_s} s")))
        else:
            self._transport.close()


@lru_cache(maxsize=4096)
def _head(status: int, headers: Headers, n_bytes: int, keep_alive: bool) -> bytes:
    """Returns a reply's status line and headers."""
    lines = [b"HTTP/1.1 %d %s" % (status, HTTPStatus(status).phrase.encode())]
    lines += [name + b": " + value for name, value in headers]
    lines.append(b"content-length: %d" % n_bytes)
    if not keep_alive:
        lines.append(b"connection: close")
    return b"\r\n".join(lines) + b"\r\n\r\n"
