"""Replies in parts: iterators that a model returned, of which the worker takes a part each between its batches."""

from collections import deque
from collections.abc import Callable
from typing import Any

from ai.infer.transport.frames import STREAM_WINDOW, Kind
from ai.infer.transport.trees import flatten, unflatten
from ai.infer.transport.wire import layout_of
from ai.infer.worker.connected_client import MAX_UNSENT_BYTES, ConnectedClient, Request, error_header
from ai.infer.worker.engine import Engine
from ai.infer.worker.faults import answer_for
from ai.infer.worker.streaming.parts import ReplyParts

_END: Any = object()
_CANCELLED = b'{"cancelled":1}'


class _Stream:
    """One request that is answered in parts."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.parts: ReplyParts | None = None  # until it has begun
        self.room = STREAM_WINDOW  # for parts that the client has not taken yet

    @property
    def can_go_on(self) -> bool:
        """Whether its client has room for a part."""
        return self.room > 0 and self.request.client.stream.n_unsent < MAX_UNSENT_BYTES


class Streams:
    """The requests that are answered in parts: they take turns, a part each, and one that waits for its client none.

    Args:
        engine: calls the model.
        max_running: how many take turns at once, since each keeps what it has begun; others wait until one ends, or
            waits for its client.
        on_sent: called with a request when something was sent to its client.
    """

    def __init__(self, engine: Engine, max_running: int, on_sent: Callable[[Request], None]) -> None:
        self._engine = engine
        self._max_running = max_running
        self._on_sent = on_sent
        self.running: list[_Stream] = []
        """Those that take turns, or wait for their clients; empty only if there is no other."""
        self._waiting: deque[_Stream] = deque()
        self.n_requests = self.n_errors = self.n_cancelled = 0

    @property
    def n_open(self) -> int:
        """Requests that have not had their last part."""
        return len(self.running) + len(self._waiting)

    def put(self, request: Request) -> None:
        """Adds a request."""
        self._waiting.append(_Stream(request))
        self._fill()

    def make_room(self, client: ConnectedClient, request_id: int, n: int) -> None:
        """Takes note that a client has taken parts."""
        for stream in self.running:
            if stream.request.client is client and stream.request.id == request_id:
                stream.room = min(stream.room + n, STREAM_WINDOW)

    def cancel(self, client: ConnectedClient, request_id: int) -> bool:
        """Ends a reply that its client wants no more of; returns whether there is one."""
        for stream in (*self.running, *self._waiting):
            if stream.request.client is client and stream.request.id == request_id:
                self.n_cancelled += 1
                self._end(stream, Kind.ERROR, _CANCELLED)
                self._fill()
                return True
        return False

    def drop(self, client: ConnectedClient) -> None:
        """Ends what was for a client that is gone."""
        for stream in self.running:
            if stream.request.client is client:
                _close(stream)
        self.running = [each for each in self.running if each.request.client is not client]
        self._waiting = deque(each for each in self._waiting if each.request.client is not client)
        self._fill()

    def can_go_on(self) -> bool:
        """Returns whether `advance` has something to do."""
        return bool(self.running) and any(each.can_go_on for each in self.running)

    def advance(self, version: int) -> None:
        """Sends the next part of each reply whose client has room for it; `version` is that of the weights."""
        for stream in list(self.running):
            if stream in self.running:  # the part of one before it may have ended a client
                self._advance(stream, version)
        self._fill()

    def _fill(self) -> None:
        if self._waiting:
            free = self._max_running - sum(each.can_go_on for each in self.running)
            for _ in range(min(free, len(self._waiting))):
                self.running.append(self._waiting.popleft())

    def _advance(self, stream: _Stream, version: int) -> None:
        request = stream.request
        if not stream.can_go_on:
            return
        try:
            if stream.parts is None:
                args, kwargs = unflatten(request.layout.tree, iter(request.tensors))
                stream.parts = ReplyParts(self._engine, args, kwargs)
                request.tensors = []
            part = stream.parts.next(_END)
            if part is _END:
                self._end(stream, Kind.END, b"", version)
                return
            node, tensors = flatten(part, "a part of the model's reply")
            tensors = [x.cpu() for x in tensors]
            layout = layout_of(node, tensors)
            body = layout.body(tensors)
        except BaseException as error:
            self.n_errors += 1
            self._end(stream, Kind.ERROR, error_header(answer_for(error), 1 << 20))
            return
        stream.room -= 1
        request.client.stream.send(Kind.PART, request.id, version=version, header=layout.header, body=body.numpy().data)
        self._on_sent(request)

    def _end(self, stream: _Stream, kind: Kind, header: bytes, version: int = 0) -> None:
        (self.running if stream in self.running else self._waiting).remove(stream)
        self.n_requests += 1
        _close(stream)
        stream.request.client.stream.send(kind, stream.request.id, version=version, header=header)
        self._on_sent(stream.request)


def _close(stream: _Stream) -> None:
    """Ends what has begun; what that raises is of a request that nobody waits for any more."""
    parts, stream.parts = stream.parts, None
    if parts is not None:
        try:
            parts.close()
        except BaseException as error:
            answer_for(error)  # which ends the worker if the device is lost
