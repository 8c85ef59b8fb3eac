"""A connection as an event loop of asyncio uses it: nothing here waits, and whoever waits is called back."""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from ai.infer.connection.pending_request import Parts, Ticket
from ai.infer.errors import InferError
from ai.infer.transport.slots import SLOTS_PER_CLIENT
from ai.infer.transport.wire import Layout, Tree

if TYPE_CHECKING:
    from ai.infer.connection.connection import Connection


class LoopSide:
    """Lets one event loop at a time watch a connection.

    Args:
        connection: whose lock guards what is here, too.
    """

    def __init__(self, connection: "Connection") -> None:
        self._line = connection
        self._loop: asyncio.AbstractEventLoop | None = None
        self._last_loop: asyncio.AbstractEventLoop | None = None  # that watched until it was detached
        self._room_waiters: deque[asyncio.Future[None]] = deque()
        self._finished: deque[tuple[Callable[[Ticket], object], Ticket]] = deque()
        self._flush_due = self._wake_due = False
        self._sweep_at = math.inf  # when the loop next looks for awaited requests that are overdue

    @property
    def attached(self) -> bool:
        """Whether a loop watches."""
        return self._loop is not None

    # Asking -----------------------------------------------------------------------------------------------------

    def start(
        self, layout: Layout, tensors: Sequence[Parts], waiter: Callable[[Ticket], object], deadline: float | None
    ) -> Ticket | None:
        """Sends a request of raw tensors and returns its ticket; None: there is no room just now.

        Args:
            layout: of the request.
            tensors: the layout's, as `RawTensor`s.
            waiter: called once in the running loop, when `Connection.outcome` has something to tell.
            deadline: when to give up, by `time.monotonic()`.
        """
        line = self._line
        ticket = Ticket(0, raw=True)
        with line.lock:
            line.check_alive()
            self._attach(asyncio.get_running_loop())
            if not line.submit_now(ticket, layout, tensors):
                return None
            self._await(ticket, waiter, deadline)
            self._wake_worker_soon()
        return ticket

    async def submit(
        self,
        layout: Layout,
        tensors: Sequence[Parts],
        device: torch.device | None,
        deadline: float | None,
        *,
        raw: bool = False,
    ) -> Ticket:
        """Like `Connection.submit`, without holding up the event loop."""
        line = self._line
        ticket = Ticket(0, device, raw)
        while True:
            with line.lock:
                line.check_alive()
                self._attach(asyncio.get_running_loop())
                if line.submit_now(ticket, layout, tensors):
                    self._wake_worker_soon()
                    return ticket
                waiter = asyncio.get_running_loop().create_future()
                self._room_waiters.append(waiter)
            async with asyncio.timeout(None if deadline is None else deadline - time.monotonic()):
                await waiter

    async def result(self, ticket: Ticket, deadline: float | None = None) -> tuple[int, Tree]:
        """Like `Connection.result`, without holding up the event loop."""
        line = self._line
        with line.lock:
            self._attach(asyncio.get_running_loop())
            if not line.is_done(ticket):
                line.check_alive()
                future = asyncio.get_running_loop().create_future()
                self._await(ticket, lambda _: _resolve_all([future]), deadline)
            else:
                return ticket.fetch()
        await future
        return line.outcome(ticket)

    def _await(self, ticket: Ticket, waiter: Callable[[Ticket], object], deadline: float | None) -> None:
        ticket.waiter = waiter
        ticket.overdue = False
        if deadline is not None:
            ticket.deadline = deadline
            self._sweep_by(deadline)

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
        line = self._line
        lone: Ticket | None = None
        with line.lock:
            self._wake_due = False
            slots = line.slots
            if slots is None:  # closed meanwhile, or all goes by socket
                return
            slots.wake_worker()
            if len(slots.busy) != 1 or line.polling:
                return
            slots.is_awake()
            (lone,) = slots.busy.values()
        line.spin(lone)
        with line.lock:
            if line.slots is None or self._loop is None:
                return
            line.slots.will_sleep()
            self._flush_due = True  # at once, below
            line.free_a_slot()
            self.offer_room()
            line.notify()
        self._flush()

    # Waking those who wait --------------------------------------------------------------------------------------

    def finish(self, ticket: Ticket) -> None:
        """Has the loop call whoever awaits a request, from whatever thread; the lock is held."""
        waiter, ticket.waiter = ticket.waiter, None
        if waiter is None or self._loop is None or self._loop.is_closed():
            return
        self._finished.append((waiter, ticket))
        if not self._flush_due:
            self._flush_due = True
            self._call_soon(self._flush)

    def _flush(self) -> None:
        """Calls those whose requests are done; the lock is not held, so that they may ask anew."""
        self._flush_due = False
        while self._finished:
            waiter, ticket = self._finished.popleft()
            try:
                waiter(ticket)
            except Exception as error:
                if self._loop is not None:
                    context = {"message": "a callback of an inference client failed", "exception": error}
                    self._loop.call_exception_handler(context)

    def offer_room(self) -> None:
        """Lets those who wait for room try again; the lock is held."""
        if not self._room_waiters:
            return
        waiting: list[asyncio.Future[None]] = []
        while self._room_waiters and len(waiting) < SLOTS_PER_CLIENT:  # as many as can be; who finds none waits again
            waiter = self._room_waiters.popleft()
            if not waiter.done():
                waiting.append(waiter)
        self._call_soon(_resolve_all, waiting)

    def flush_soon(self) -> None:
        """Has the loop send what the socket did not take at once; the lock is held."""
        self._call_soon(self._watch_for_room)

    def _watch_for_room(self) -> None:
        line = self._line
        with line.lock:
            loop = self._loop
            if loop is None or loop is not _running_loop() or not line.alive:  # closed, or of another loop, meanwhile
                return
            if line.flush():
                self.offer_room()
            else:
                descriptor = line.descriptors()[0]
                loop.add_writer(descriptor, self._on_writable, descriptor)

    def _on_writable(self, descriptor: int) -> None:
        line = self._line
        with line.lock:
            if self._loop is not None and (not line.alive or line.flush()):
                self._loop.remove_writer(descriptor)
                self.offer_room()

    def _call_soon(self, callback: Callable[..., None], *arguments: object) -> None:
        loop = self._loop
        if loop is None or loop.is_closed():
            return
        if _running_loop() is loop:
            loop.call_soon(callback, *arguments)
        else:
            loop.call_soon_threadsafe(callback, *arguments)

    def _sweep_by(self, deadline: float) -> None:
        """Makes the event loop end overdue waits at a deadline: one timer for all, since each of them costs."""
        if deadline < self._sweep_at:
            self._sweep_at = deadline
            assert self._loop is not None
            self._loop.call_later(max(0.0, deadline - time.monotonic()), self._end_overdue, deadline)

    def _end_overdue(self, due: float) -> None:
        with self._line.lock:
            if due != self._sweep_at or self._loop is None:  # an earlier timer has taken over
                return
            self._sweep_at = math.inf
            now = time.monotonic()
            awaited = [ticket for ticket in self._line.all_tickets() if ticket.waiter is not None]
            for ticket in awaited:
                if ticket.deadline <= now:
                    ticket.overdue = True
                    self.finish(ticket)
            later = [ticket.deadline for ticket in awaited if now < ticket.deadline < math.inf]
            if later:
                self._sweep_by(min(later))

    # Watching ---------------------------------------------------------------------------------------------------

    def _attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Lets `loop` watch what `Connection._wait` would poll; the lock is held."""
        if self._loop is loop or not self._line.alive:
            return
        if self._loop is not None and not self._loop.is_closed():
            raise InferError("a client must be awaited in one event loop at a time; create another client for this one")
        self._loop = self._last_loop = loop
        self._wake_due = self._flush_due = False  # a loop that ended took its last calls with it
        self._finished.clear()
        self._room_waiters.clear()
        self._sweep_at = math.inf
        if self._line.slots is not None:
            self._line.slots.will_sleep()  # as long as a loop watches: it may be asleep at any time
        for descriptor in self._line.descriptors():
            loop.add_reader(descriptor, self._on_readable, descriptor)
        self.flush_soon()

    def detach(self, then: Callable[[], None] | None = None) -> None:
        """Ends the loop's watch and every wait, then calls `then`, which may close descriptors; the lock is held."""
        loop = self._loop
        descriptors: list[int] = []
        waiting: list[asyncio.Future[None]] = []
        if loop is not None and not loop.is_closed():
            for ticket in self._line.all_tickets():
                self.finish(ticket)
            waiting += self._room_waiters
            self._room_waiters.clear()
            descriptors = self._line.descriptors()
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
        line = self._line
        with line.lock:
            # A polling thread takes what there is, and wakes those who await it; after a failure nothing is left.
            if not line.polling and line.alive:
                self._flush_due = True  # at once, below
                line.handle([(descriptor, 1)])
                line.notify()
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
