"""A connection as an event loop of asyncio uses it: nothing here waits, and whoever waits is called back."""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence

import torch

from ai.infer.connection.connection import Connection
from ai.infer.connection.pending_request import Parts, PendingRequest
from ai.infer.errors import InferError
from ai.infer.transport.slots import SLOTS_PER_CLIENT
from ai.infer.transport.trees import Tree
from ai.infer.transport.wire import Layout


class EventLoopWatcher:
    """Lets one event loop at a time watch a connection; it is the connection's `Watcher` from then on.

    Args:
        connection: whose lock guards what is here, too.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._loop: asyncio.AbstractEventLoop | None = None
        self._last_loop: asyncio.AbstractEventLoop | None = None  # that watched until it was detached
        self._room_waiters: deque[asyncio.Future[None]] = deque()
        self._finished: deque[tuple[Callable[[PendingRequest], object], PendingRequest]] = deque()
        self._flush_due = self._wake_due = False
        self._sweep_at = math.inf  # when the loop next looks for awaited requests that are overdue
        connection.watcher = self

    @classmethod
    def of(cls, connection: Connection) -> "EventLoopWatcher":
        """Returns a connection's watcher, which is made when the first request is awaited."""
        watcher = connection.watcher
        if isinstance(watcher, cls):
            return watcher
        with connection.lock:
            return connection.watcher if isinstance(connection.watcher, cls) else cls(connection)

    @property
    def attached(self) -> bool:
        """Whether a loop watches."""
        return self._loop is not None

    # Asking -----------------------------------------------------------------------------------------------------

    def start(
        self,
        request: PendingRequest,
        layout: Layout,
        tensors: Sequence[Parts],
        waiter: Callable[[PendingRequest], object],
        deadline: float | None,
    ) -> bool:
        """Sends a request; returns whether there is room just now.

        Args:
            request: that is to be sent.
            layout: of the request.
            tensors: the layout's.
            waiter: called with it in the running loop, once, when `Connection.outcome` has something to tell.
            deadline: when to give up, by `time.monotonic()`.
        """
        connection = self._connection
        with connection.lock:
            if connection.failure is not None:
                connection.check_alive()
            loop = asyncio.get_running_loop()
            if self._loop is not loop:
                self._attach(loop)
            if not connection.submit_now(request, layout, tensors):
                return False
            self._await(request, waiter, deadline)
            if not self._wake_due:
                self._wake_worker_soon()
        return True

    async def submit(
        self,
        layout: Layout,
        tensors: Sequence[Parts],
        device: torch.device | None,
        deadline: float | None,
        *,
        raw: bool = False,
    ) -> PendingRequest:
        """Like `Connection.submit`, without holding up the event loop."""
        connection = self._connection
        request = PendingRequest(0, device, raw)
        while True:
            with connection.lock:
                connection.check_alive()
                self._attach(asyncio.get_running_loop())
                if connection.submit_now(request, layout, tensors):
                    self._wake_worker_soon()
                    return request
                waiter = asyncio.get_running_loop().create_future()
                self._room_waiters.append(waiter)
            timeout = None if deadline is None else deadline - time.monotonic()
            try:
                async with asyncio.timeout(connection.check_hang.slice_s(timeout)):
                    await waiter
            except TimeoutError:
                connection.check_hang()
                if deadline is not None and time.monotonic() >= deadline:
                    raise

    async def result(self, request: PendingRequest, deadline: float | None = None) -> tuple[int, Tree]:
        """Like `Connection.result`, without holding up the event loop."""
        connection = self._connection
        with connection.lock:
            self._attach(asyncio.get_running_loop())
            if not connection.is_done(request):
                connection.check_alive()
                future = asyncio.get_running_loop().create_future()
                self._await(request, lambda _: _resolve_all([future]), deadline)
            else:
                return request.fetch()
        await future
        return connection.outcome(request)

    def _await(
        self, request: PendingRequest, waiter: Callable[[PendingRequest], object], deadline: float | None
    ) -> None:
        request.waiter = waiter
        if request.overdue:
            request.overdue = False
        if deadline is not None:
            request.deadline = deadline
        if request.deadline < self._sweep_at or self._sweep_at == math.inf:  # else a look that comes sooner is due
            look_s = self._connection.check_hang.interval_s
            self._sweep_by(request.deadline if look_s is None else min(request.deadline, time.monotonic() + look_s))

    def _wake_worker_soon(self) -> None:
        """Wakes the worker once for all requests that the event loop has in hand, so that they meet in one batch.

        A worker woken by the first of them would run it alone, and take this process's core to do so.
        """
        if not self._wake_due:
            self._wake_due = True
            assert self._loop is not None
            self._loop.call_soon(self._wake_worker)

    def _wake_worker(self) -> None:
        """Wakes the worker, and looks for the reply to a lone request for a moment: nobody else waits for the loop."""
        connection = self._connection
        lone: PendingRequest | None = None
        with connection.lock:
            self._wake_due = False
            slots = connection.slots
            if slots is None:  # closed meanwhile, or all goes by socket
                return
            if len(slots.busy) != 1 or connection.polling:
                slots.wake_worker()
                return
            slots.is_awake()
            slots.wake_worker()
            (lone,) = slots.busy.values()
        connection.spin(lone)
        with connection.lock:
            if connection.slots is None or self._loop is None:
                return
            connection.slots.will_sleep()
            self._flush_due = True  # at once, below
            connection.free_a_slot()
            self.has_room()
            connection.notify()
        self._flush()

    # Waking those who wait --------------------------------------------------------------------------------------

    def finished(self, request: PendingRequest) -> None:
        """Has the loop call whoever awaits a request, from whatever thread; the lock is held."""
        waiter, request.waiter = request.waiter, None
        if waiter is None or self._loop is None or self._loop.is_closed():
            return
        self._finished.append((waiter, request))
        if not self._flush_due:
            self._flush_due = True
            self._call_soon(self._flush)

    def _flush(self) -> None:
        """Calls those whose requests are done; the lock is not held, so that they may ask anew."""
        self._flush_due = False
        while self._finished:
            waiter, request = self._finished.popleft()
            if request.is_dropped:
                continue
            try:
                waiter(request)
            except Exception as error:
                if self._loop is not None:
                    context = {"message": "a callback of an inference client failed", "exception": error}
                    self._loop.call_exception_handler(context)

    def has_room(self) -> None:
        """Lets those who wait for room try again; the lock is held."""
        if not self._room_waiters:
            return
        waiting: list[asyncio.Future[None]] = []
        while self._room_waiters and len(waiting) < SLOTS_PER_CLIENT:  # as many as can be; who finds none waits again
            waiter = self._room_waiters.popleft()
            if not waiter.done():
                waiting.append(waiter)
        self._call_soon(_resolve_all, waiting)

    def has_unsent(self) -> None:
        """Has the loop send what the socket did not take at once; the lock is held."""
        self._call_soon(self._watch_for_room)

    def _watch_for_room(self) -> None:
        connection = self._connection
        with connection.lock:
            loop = self._loop
            if (
                loop is None or loop is not _running_loop() or not connection.alive
            ):  # closed, or of another loop, meanwhile
                return
            if connection.flush():
                self.has_room()
            else:
                descriptor = connection.descriptors()[0]
                loop.add_writer(descriptor, self._on_writable, descriptor)

    def _on_writable(self, descriptor: int) -> None:
        connection = self._connection
        with connection.lock:
            if self._loop is not None and (not connection.alive or connection.flush()):
                self._loop.remove_writer(descriptor)
                self.has_room()

    def _call_soon(self, callback: Callable[..., None], *arguments: object) -> None:
        loop = self._loop
        if loop is None or loop.is_closed():
            return
        if _running_loop() is loop:
            loop.call_soon(callback, *arguments)
        else:
            loop.call_soon_threadsafe(callback, *arguments)

    def _sweep_by(self, deadline: float) -> None:
        """Makes the event loop look for overdue waits at a time: one timer for all, since each of them costs."""
        if deadline < self._sweep_at:
            self._sweep_at = deadline
            assert self._loop is not None
            self._loop.call_later(max(0.0, deadline - time.monotonic()), self._end_overdue, deadline)

    def _end_overdue(self, due: float) -> None:
        with self._connection.lock:
            if due != self._sweep_at or self._loop is None:  # an earlier timer has taken over
                return
            self._sweep_at = math.inf
            now = time.monotonic()
            awaited = [request for request in self._connection.all_requests() if request.waiter is not None]
            look_s = self._connection.check_hang.interval_s
            hangs = look_s is not None and self._hangs()
            for request in awaited:
                if hangs or request.deadline <= now:
                    request.overdue = True
                    self.finished(request)
            later = [request.deadline for request in awaited if not hangs and now < request.deadline]
            if later:
                self._sweep_by(min(*later, math.inf if look_s is None else now + look_s))

    def _hangs(self) -> bool:
        try:
            self._connection.check_hang()
        except TimeoutError:
            return True
        return False

    # Watching ---------------------------------------------------------------------------------------------------

    def _attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Lets `loop` watch what `Connection._wait` would poll; the lock is held."""
        if self._loop is loop or not self._connection.alive:
            return
        if self._loop is not None and not self._loop.is_closed():
            raise InferError("a client must be awaited in one event loop at a time; create another client for this one")
        self._loop = self._last_loop = loop
        self._wake_due = self._flush_due = False  # a loop that ended took its last calls with it
        self._finished.clear()
        self._room_waiters.clear()
        self._sweep_at = math.inf
        if self._connection.slots is not None:
            self._connection.slots.will_sleep()  # as long as a loop watches: it may be asleep at any time
        for descriptor in self._connection.descriptors():
            loop.add_reader(descriptor, self._on_readable, descriptor)
        self.has_unsent()

    def ends(self, then: Callable[[], None] | None = None) -> None:
        """Ends the loop's watch and every wait, then calls `then`, which may close descriptors; the lock is held."""
        loop = self._loop
        descriptors: list[int] = []
        waiting: list[asyncio.Future[None]] = []
        if loop is not None and not loop.is_closed():
            for request in self._connection.all_requests():
                self.finished(request)
            waiting += self._room_waiters
            self._room_waiters.clear()
            descriptors = self._connection.descriptors()
            self._last_loop = loop
        self._loop = None
        # Only the loop itself may touch what it watches, while it runs.
        loop = self._last_loop
        if loop is None or loop.is_closed():
            _unwatch(None, descriptors, waiting, then)
        elif _running_loop() is loop or not loop.is_running():
            _unwatch(loop, descriptors, waiting, then)
        else:
            loop.call_soon_threadsafe(_unwatch, loop, descriptors, waiting, then)

    def _on_readable(self, descriptor: int) -> None:
        connection = self._connection
        with connection.lock:
            # A polling thread takes what there is, and wakes those who await it; after a failure nothing is left.
            if not connection.polling and connection.alive:
                self._flush_due = True  # at once, below
                connection.handle([(descriptor, 1)])
                connection.notify()
        self._flush()


def _unwatch(
    loop: asyncio.AbstractEventLoop | None,
    descriptors: Sequence[int],
    waiting: Sequence[asyncio.Future[None]],
    then: Callable[[], None] | None,
) -> None:
    if loop is not None:
        for descriptor in descriptors:
            loop.remove_reader(descriptor)
            loop.remove_writer(descriptor)
        _resolve_all(waiting)
    if then is not None:
        then()


def _resolve_all(waiting: Sequence[asyncio.Future[None]]) -> None:
    for future in waiting:
        if not future.done():
            future.set_result(None)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
