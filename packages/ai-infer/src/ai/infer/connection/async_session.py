"""A client's questions as asyncio asks them: by tasks, or by calling back, over the core that threads use as well."""

import asyncio
from collections.abc import Callable, Sequence

from ai.infer.connection.connection import Connection
from ai.infer.connection.event_loop import EventLoopWatcher
from ai.infer.connection.pending_request import END, PendingRequest
from ai.infer.connection.raw_request import RawRequest
from ai.infer.connection.session import Session
from ai.infer.errors import InferError
from ai.infer.transport.trees import RawInput, Tree
from ai.infer.transport.wire import raw_call


class AsyncParts:
    """The parts of a reply, one after the other, for `async for`.

    Args:
        session: of the client.
        connection: the connection that the request took.
        request: the request.
        timeout_s: how long each part may take; None: the client's own.
    """

    def __init__(
        self, session: Session, connection: Connection, request: PendingRequest, timeout_s: float | None
    ) -> None:
        self._session = session
        self._connection = connection
        self._request = request
        self._timeout_s = timeout_s

    def __aiter__(self) -> "AsyncParts":
        return self

    async def __anext__(self) -> Tree:
        try:
            watcher = EventLoopWatcher.of(self._connection)
            version, part = await watcher.result(self._request, self._session.deadline(self._timeout_s))
        except BaseException:
            self.cancel()
            raise
        self._session.saw(version)
        if part is END:
            raise StopAsyncIteration
        self._connection.took_part(self._request)
        return part

    def cancel(self) -> None:
        """Ends the reply: the worker makes no more parts of it, and who waits for one is told."""
        self._connection.cancel(self._request)


class AsyncSession:
    """The asyncio face of a client.

    Args:
        session: the client's core.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    async def infer(self, args: tuple[Tree, ...], kwargs: dict[str, Tree]) -> Tree:
        """Returns the reply to a request; cancelling the task cancels the request."""
        deadline = self._session.deadline()
        connection = await self._pick(deadline)
        layout, tensors, device = self._session.prepare(args, kwargs)
        request = await EventLoopWatcher.of(connection).submit(layout, tensors, device, deadline)
        return await self._result(connection, request, deadline)

    async def infer_raw(self, inputs: Sequence[RawInput]) -> Tree:
        """Like `infer`, for tensors that are there as bytes, and so are those of the reply."""
        deadline = self._session.deadline()
        connection = await self._pick(deadline)
        layout, tensors = raw_call(inputs)
        request = await EventLoopWatcher.of(connection).submit(layout, tensors, None, deadline, raw=True)
        return await self._result(connection, request, deadline)

    def start_raw(
        self, inputs: Sequence[RawInput], done: Callable[[PendingRequest], object], timeout_s: float | None
    ) -> RawRequest | None:
        """Sends a request that calls back; see `InferencerClient.start_raw`."""
        session = self._session
        connection = session.ready()
        if connection is None:
            return None
        layout, tensors = raw_call(inputs)
        request = RawRequest(connection, session.saw)
        watcher = EventLoopWatcher.of(connection)
        return request if watcher.start(request, layout, tensors, done, session.deadline(timeout_s)) else None

    async def wait(self, request_id: int, timeout: float | None) -> Tree:
        """Returns the reply to a request that was sent before; one given up can be waited for again."""
        connection, request = self._session.find(request_id)
        try:
            version, output = await EventLoopWatcher.of(connection).result(request, self._session.deadline(timeout))
        except InferError:
            self._session.pending.pop(request_id, None)
            raise
        self._session.pending.pop(request_id, None)
        self._session.saw(version)
        return output

    async def stream(self, args: tuple[Tree, ...], kwargs: dict[str, Tree]) -> AsyncParts:
        """Sends a request whose reply is to come in parts."""
        connection = await self._pick(self._session.deadline())
        layout, tensors, device = self._session.prepare(args, kwargs)
        return AsyncParts(self._session, connection, connection.submit_stream(layout, tensors, device), None)

    async def stream_raw(self, inputs: Sequence[RawInput], timeout_s: float | None) -> AsyncParts:
        """Like `stream`, for tensors that are there as bytes, and so are those of the parts."""
        connection = await self._pick(self._session.deadline(timeout_s))
        request = connection.submit_stream(*raw_call(inputs), None, raw=True)
        return AsyncParts(self._session, connection, request, timeout_s)

    async def _pick(self, deadline: float | None) -> Connection:
        connection = self._session.ready()
        if connection is None:
            connection = await asyncio.to_thread(self._session.pick, deadline)
        return connection

    async def _result(self, connection: Connection, request: PendingRequest, deadline: float | None) -> Tree:
        try:
            version, output = await EventLoopWatcher.of(connection).result(request, deadline)
        except BaseException:
            connection.cancel(request)
            raise
        self._session.saw(version)
        return output
