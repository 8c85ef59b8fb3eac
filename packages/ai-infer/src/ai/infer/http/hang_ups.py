"""Noticing that whoever asked is gone, for requests that take long enough to make that worth a task."""

import asyncio

from ai.infer.http.formats.bodies import Receive

_PATIENCE_S = 0.05  # from which on it pays to look whether the client still waits


class WaitingRequest:
    """A request that waits for its worker.

    Args:
        receive: of the request, which says that its client is gone.
        loop: the running one.
    """

    __slots__ = ("_receive", "done", "since", "watcher")

    def __init__(self, receive: Receive, loop: asyncio.AbstractEventLoop) -> None:
        self._receive = receive
        self.watcher: asyncio.Task[None] | None = None
        """What looks whether the client is gone, once that is worth it."""
        self.since = loop.time()
        self.done: asyncio.Future[None] = loop.create_future()
        """Comes true when there is a reply; raises ConnectionResetError when the client hung up."""

    def finish(self, _: object) -> None:
        """Says that there is a reply."""
        if not self.done.done():
            self.done.set_result(None)

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Looks from now on whether the client is gone."""
        self.watcher = loop.create_task(self._await_end())

    async def _await_end(self) -> None:
        # Where there is an end, some say so again and again.
        while (await self._receive())["type"] != "http.disconnect":
            await asyncio.sleep(_PATIENCE_S)
        if not self.done.done():
            self.done.set_exception(ConnectionResetError("the client hung up"))


class HangUps:
    """Begins to watch the clients of requests that wait long: one timer for all, since each of them costs."""

    def __init__(self) -> None:
        self._waiting: dict[WaitingRequest, None] = {}  # those not yet watched, in the order in which they came
        self._loop: asyncio.AbstractEventLoop | None = None  # in which the timer runs; None: there is none

    def begin(self, receive: Receive) -> WaitingRequest:
        """Returns a request that waits from now on, until `end`."""
        loop = asyncio.get_running_loop()
        request = WaitingRequest(receive, loop)
        self._waiting[request] = None
        if self._loop is not loop:  # none runs, or its loop has ended
            self._loop = loop
            loop.call_later(_PATIENCE_S, self._look, loop)
        return request

    def end(self, request: WaitingRequest) -> None:
        """Says that a request waits no longer."""
        self._waiting.pop(request, None)
        if request.watcher is not None:
            request.watcher.cancel()

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = None
        now = loop.time()
        while self._waiting:
            request = next(iter(self._waiting))
            left_s = request.since + _PATIENCE_S - now
            if left_s > 0:
                self._loop = loop
                loop.call_later(left_s, self._look, loop)
                return
            del self._waiting[request]
            request.watch(loop)
