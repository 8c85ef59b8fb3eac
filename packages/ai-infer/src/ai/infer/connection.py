"""A client's end of the line to one worker: slots, the socket beside them, and waiting that always ends."""

import asyncio
import contextlib
import json
import math
import os
import select
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ai.infer.errors import InferError, RequestCancelledError, RequestError, WorkerDiedError
from ai.infer.frames import Frame, FrameStream, Kind
from ai.infer.slots import SLOTS_PER_CLIENT, WORKER, Area, Board, fence
from ai.infer.spin import Spinner
from ai.infer.wire import Layout, Tree, parse, unflatten

PROTOCOL = 1
Transport = Literal["auto", "shm", "socket"]


Parts = Tensor | list[Tensor]


class Ticket:
    """One request on its way."""

    __slots__ = ("by_socket", "cancelled", "deadline", "device", "future", "id", "outcome", "slot")

    def __init__(self, request_id: int, slot: int | None, device: torch.device | None) -> None:
        self.id = request_id
        self.slot = slot  # None: it travels by socket, or its slot has been given back
        self.by_socket = slot is None
        self.device = device  # where the reply's tensors go; None: they stay on the CPU
        self.outcome: tuple[int, Tree] | InferError | None = None
        self.cancelled = False
        self.future: asyncio.Future[None] | None = None
        self.deadline = math.inf  # of `future`, by `time.monotonic()`


class Connection:
    """The line to one worker; safe to use from several threads.

    Args:
        path: the worker's socket.
        transport: "auto" takes shared memory where worker and system offer it, "shm" insists, "socket" declines.
        slot_bytes: room for one request and one reply in shared memory; larger ones go through the socket.
        deadline: when to give up, by `time.monotonic()`.

    Raises:
        WorkerDiedError: nobody answers at `path`.
        TimeoutError: the worker was busy until the deadline.
    """

    def __init__(self, path: Path, transport: Transport, slot_bytes: int, deadline: float | None = None) -> None:
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._spinner = Spinner()
        self._polling = False
        self._failure: str | None = None  # why no more replies can come
        self._tickets: dict[int, Ticket] = {}
        self._last_id = 0
        self._by_socket = 0
        self._answers: dict[int, bytes] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._room_waiters: deque[asyncio.Future[None]] = deque()
        self._wake_due = False
        self._sweep_at = math.inf  # when the event loop next looks for awaited requests that are overdue
        self._area: Area | None = None
        self._worker_event = self._reply_event = self._pidfd = -1
        self._stream = FrameStream(_connect(path))
        self._poller = select.poll()
        self._poller.register(self._stream.fileno(), select.POLLIN)
        self._watch_worker()
        try:
            self._greet(transport, slot_bytes, deadline)
        except BaseException:
            self.close()
            raise

    def _watch_worker(self) -> None:
        """Opens a handle on the worker's process: its death shows even if a child of it keeps the socket open."""
        if hasattr(os, "pidfd_open") and hasattr(socket, "SO_PEERCRED"):
            credentials = self._stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            pid = struct.unpack("3i", credentials)[0]
            try:
                self._pidfd = os.pidfd_open(pid)
            except OSError:  # another process namespace, or already gone: the socket's end of file will tell
                return
            self._poller.register(self._pidfd, select.POLLIN)

    def _greet(self, transport: Transport, slot_bytes: int, deadline: float | None) -> None:
        hello = {"protocol": PROTOCOL, "transport": transport, "slot_bytes": slot_bytes}
        self._stream.send(Kind.HELLO, header=json.dumps(hello).encode())
        frame: Frame | None = None
        descriptors: list[int] = []
        worker_lives = True
        while worker_lives and frame is None:
            timeout = None if deadline is None else max(0.0, deadline - time.monotonic())
            events = self._poller.poll(_milliseconds(timeout))
            if not events and timeout is not None:
                raise TimeoutError("the worker did not answer in time")
            worker_lives = self._pidfd not in [descriptor for descriptor, _ in events]
            try:
                frame, descriptors = self._stream.receive_with_descriptors(4)
            except BlockingIOError:
                pass
            except OSError:
                self._stream.closed = True
            worker_lives = worker_lives and not self._stream.closed
        if frame is None:
            raise WorkerDiedError("the worker stopped before it answered")
        if frame.kind is not Kind.HELLO:
            raise WorkerDiedError(frame.header.decode())
        reply = json.loads(frame.header)
        if "error" in reply:
            raise InferError(reply["error"])
        self.batch_size: int = reply["batch_size"]
        if descriptors:
            board, area, self._worker_event, self._reply_event = descriptors
            self._board = Board(board)
            self._first_slot: int = reply["first_slot"]
            self._area = Area(area, reply["slot_bytes"], self._board, self._first_slot)
            os.close(board)
            os.close(area)
            self._requested = self._board.requested_at[self._first_slot : self._first_slot + SLOTS_PER_CLIENT]
            self._answered = self._board.answered_at[self._first_slot : self._first_slot + SLOTS_PER_CLIENT]
            self._cancelled = self._board.cancelled_at[self._first_slot : self._first_slot + SLOTS_PER_CLIENT]
            self._versions = self._board.version_at[self._first_slot : self._first_slot + SLOTS_PER_CLIENT]
            self._asleep = self._board.asleep_at[self._first_slot // SLOTS_PER_CLIENT :][:1]
            self._worker_asleep = self._board.asleep_at[WORKER:]
            self._free = list(range(SLOTS_PER_CLIENT - 1, -1, -1))
            self._in_slot: list[Ticket | None] = [None] * SLOTS_PER_CLIENT
            self._poller.register(self._reply_event, select.POLLIN)

    @property
    def transport(self) -> str:
        """What requests travel through: "shm" or "socket"."""
        return "shm" if self._area is not None else "socket"

    @property
    def alive(self) -> bool:
        """Whether no failure has been seen."""
        return self._failure is None

    @property
    def n_pending(self) -> int:
        """Requests on their way."""
        waiting = 0 if self._area is None else SLOTS_PER_CLIENT - len(self._free)
        return waiting + len(self._tickets)

    # Requests ---------------------------------------------------------------------------------------------------

    def submit(
        self, layout: Layout, tensors: Sequence[Parts], device: torch.device | None, deadline: float | None
    ) -> Ticket:
        """Sends a request and returns its ticket; waits while all slots are busy.

        Args:
            layout: of the request.
            tensors: the layout's; for each either it, or the pieces that make it up row after row.
            device: where the reply's tensors go; None: the CPU.
            deadline: when to give up waiting for a slot, by `time.monotonic()`.

        Raises:
            TimeoutError: no slot came free in time; nothing was sent.
            WorkerDiedError: the worker is gone.
        """
        with self._lock:
            if self._failure is not None:
                raise WorkerDiedError(self._failure)
            if self._area is not None and self._area.fits(layout):
                if not self._free and not self._wait(self._free_a_slot, deadline):
                    raise TimeoutError(f"all {SLOTS_PER_CLIENT} slots of this client stayed busy")
                return self._submit_slot(layout, tensors, device)
            if not self._wait(lambda: self._by_socket < SLOTS_PER_CLIENT, deadline):
                raise TimeoutError(f"all {SLOTS_PER_CLIENT} requests of this client stayed unanswered")
            return self._submit_socket(layout, tensors, device, deadline)

    async def asubmit(
        self, layout: Layout, tensors: Sequence[Parts], device: torch.device | None, deadline: float | None
    ) -> Ticket:
        """Like `submit`, without holding up the event loop."""
        while True:
            with self._lock:
                if self._failure is not None:
                    raise WorkerDiedError(self._failure)
                self._attach(asyncio.get_running_loop())
                if self._area is not None and self._area.fits(layout):
                    if self._free or self._free_a_slot():
                        ticket = self._put_in_slot(layout, tensors, device)
                        self._wake_worker_soon()
                        return ticket
                elif self._by_socket < SLOTS_PER_CLIENT:
                    return self._submit_socket(layout, tensors, device, None)
                waiter = asyncio.get_running_loop().create_future()
                self._room_waiters.append(waiter)
            async with asyncio.timeout(None if deadline is None else deadline - time.monotonic()):
                await waiter

    def _submit_slot(self, layout: Layout, tensors: Sequence[Parts], device: torch.device | None) -> Ticket:
        ticket = self._put_in_slot(layout, tensors, device)
        fence()
        if self._worker_asleep[0]:
            os.eventfd_write(self._worker_event, 1)
        return ticket

    def _wake_worker_soon(self) -> None:
        """Wakes the worker once for all requests that the event loop has in hand, so that they meet in one batch.

        A worker woken by the first of them would run it alone, and take this process's core to do so.
        """
        if not self._wake_due:
            self._wake_due = True
            assert self._loop is not None
            self._loop.call_soon(self._wake_worker)

    def _wake_worker(self) -> None:
        with self._lock:
            self._wake_due = False
            if self._area is None:  # closed meanwhile
                return
            fence()
            if self._worker_asleep[0]:
                os.eventfd_write(self._worker_event, 1)

    def _put_in_slot(self, layout: Layout, tensors: Sequence[Parts], device: torch.device | None) -> Ticket:
        assert self._area is not None
        slot = self._free.pop()
        try:
            for view, x in zip(self._area.write(2 * slot, layout), tensors, strict=True):
                _copy(x, view)
        except BaseException:
            self._free.append(slot)
            raise
        self._last_id = request_id = self._last_id + 1
        ticket = Ticket(request_id, slot, device)
        self._in_slot[slot] = ticket
        self._requested[slot] = request_id
        return ticket

    def _submit_socket(
        self, layout: Layout, tensors: Sequence[Parts], device: torch.device | None, deadline: float | None
    ) -> Ticket:
        body = torch.empty(layout.n_bytes, dtype=torch.uint8)
        for view, x in zip(layout.views(body), tensors, strict=True):
            _copy(x, view)
        self._last_id = request_id = self._last_id + 1
        ticket = Ticket(request_id, None, device)
        self._tickets[request_id] = ticket
        self._by_socket += 1
        self._send(Kind.REQUEST, request_id, layout.header, body.numpy().data, deadline)
        return ticket

    def _send(
        self, kind: Kind, request_id: int, header: bytes, body: memoryview | bytes, deadline: float | None
    ) -> None:
        """Sends a frame whole: half a frame would garble all that follow, so a deadline cannot cut it short."""
        self._stream.send(kind, request_id, header=header, body=body)
        if self._stream.n_unsent:
            descriptor = self._stream.fileno()
            self._poller.modify(descriptor, select.POLLIN | select.POLLOUT)
            self._wait(self._stream.flush, None)
            if self._failure is None:
                self._poller.modify(descriptor, select.POLLIN)
                self._stream.flush()

    def cancel(self, ticket: Ticket) -> None:
        """Tells the worker to skip a request if it has not begun it; its slot comes back when the worker answers."""
        with self._lock:
            done = ticket.cancelled or ticket.outcome is not None
            ticket.cancelled = True
            if done:
                return
            if ticket.slot is not None:
                self._cancelled[ticket.slot] = ticket.id
            elif self._failure is None and ticket.by_socket:
                self._send(Kind.CANCEL, ticket.id, b"", b"", None)
            if ticket.future is not None and not ticket.future.done():
                ticket.future.cancel()

    # Replies ----------------------------------------------------------------------------------------------------

    def result(self, ticket: Ticket, deadline: float | None) -> tuple[int, Tree]:
        """Waits for a reply and returns the version of the weights that made it, and what the model returned.

        Raises:
            TimeoutError: the deadline passed; the request is still on its way.
            RequestError: the request failed.
            WorkerDiedError: the worker is gone.
        """
        with self._lock:
            if not self._ready(ticket) and not self._spin(ticket):
                if not self._wait(lambda: self._ready(ticket), deadline):
                    raise TimeoutError("the worker did not answer in time")
            return self._fetch(ticket)

    async def aresult(self, ticket: Ticket, deadline: float | None = None) -> tuple[int, Tree]:
        """Like `result`, without holding up the event loop."""
        while True:
            with self._lock:
                self._attach(asyncio.get_running_loop())
                if self._ready(ticket):
                    return self._fetch(ticket)
                if self._failure is not None:
                    raise WorkerDiedError(self._failure)
                ticket.future = asyncio.get_running_loop().create_future()
                if deadline is not None:
                    ticket.deadline = deadline
                    self._sweep_by(deadline)
            await ticket.future

    def _sweep_by(self, deadline: float) -> None:
        """Makes the event loop end overdue waits at a deadline: one timer for all, since each of them costs."""
        if deadline < self._sweep_at:
            self._sweep_at = deadline
            assert self._loop is not None
            self._loop.call_later(max(0.0, deadline - time.monotonic()), self._end_overdue, deadline)

    def _end_overdue(self, due: float) -> None:
        with self._lock:
            if due != self._sweep_at or self._loop is None:  # an earlier timer has taken over
                return
            self._sweep_at = math.inf
            now = time.monotonic()
            awaited = [ticket for ticket in self._all_tickets() if ticket.future is not None]
            for ticket in awaited:
                assert ticket.future is not None
                if ticket.deadline <= now and not ticket.future.done():
                    ticket.future.set_exception(TimeoutError("the worker did not answer in time"))
            later = [ticket.deadline for ticket in awaited if now < ticket.deadline < math.inf]
            if later:
                self._sweep_by(min(later))

    def ready(self, ticket: Ticket) -> bool:
        """Returns whether `result` would return, or raise, at once."""
        with self._lock:
            if not self._polling:
                self._handle(self._poller.poll(0))
            return self._ready(ticket) or self._failure is not None

    def _spin(self, ticket: Ticket) -> bool:
        """Looks for a reply in shared memory for a moment; returns whether it came."""
        if ticket.slot is None:
            return False
        answered, slot, request_id = self._answered, ticket.slot, ticket.id
        if self._polling or not self._spinner.wait(lambda: answered[slot] == request_id):
            return False
        return self._ready(ticket)

    def _ready(self, ticket: Ticket) -> bool:
        if ticket.cancelled or ticket.outcome is not None:
            return True
        slot = ticket.slot
        if slot is not None and self._answered[slot] == ticket.id:
            self._take(slot, ticket)
            return ticket.outcome is not None
        return False

    def _fetch(self, ticket: Ticket) -> tuple[int, Tree]:
        outcome = ticket.outcome
        if ticket.cancelled:
            raise RequestCancelledError("this request was cancelled")
        assert outcome is not None
        if isinstance(outcome, InferError):
            raise outcome
        return outcome

    def _take(self, slot: int, ticket: Ticket) -> None:
        """Takes an answered request's reply out of its slot, which is free thereafter."""
        assert self._area is not None
        place = 2 * slot + 1
        try:
            if not ticket.cancelled:
                entry = self._area.known(place)
                header = b"" if entry is not None else self._area.read_header(place)
                if header.startswith(b"{"):
                    ticket.outcome = _special_reply(header)
                    if ticket.outcome is None:  # too large for its slot: it follows by socket
                        self._tickets[ticket.id] = ticket
                else:
                    _, layout, views = entry or self._area.read(place, parse(header))
                    ticket.outcome = (self._versions[slot], _build(layout, views, ticket.device, own=False))
        except Exception as error:  # the reply names a class that is not here, or its device is full
            ticket.outcome = RequestError(f"the reply could not be read: {error}")
        ticket.slot = None
        self._in_slot[slot] = None
        self._free.append(slot)
        if ticket.future is not None:
            self._resolve(ticket.future)

    def _free_a_slot(self) -> bool:
        """Takes every reply that is there out of its slot; returns whether a slot is free."""
        for slot, ticket in enumerate(self._in_slot):
            if ticket is not None and self._answered[slot] == ticket.id:
                self._take(slot, ticket)
        return bool(self._free)

    def _all_tickets(self) -> list[Ticket]:
        in_slots = [] if self._area is None else [ticket for ticket in self._in_slot if ticket is not None]
        return in_slots + list(self._tickets.values())

    def _absorb(self, frame: Frame) -> None:
        """Takes in a frame from the worker."""
        if frame.kind is Kind.BYE:
            self._fail(frame.header.decode())
            return
        if frame.kind in (Kind.PING, Kind.STATS):
            self._answers[frame.id] = frame.header
            return
        if frame.id not in self._tickets and self._area is not None:
            self._free_a_slot()  # a slot says that its reply was too large, and this is that reply
        ticket = self._tickets.pop(frame.id, None)
        if ticket is None:
            return
        if ticket.by_socket:
            self._by_socket -= 1
        if ticket.cancelled:
            return
        try:
            if frame.kind is Kind.REPLY:
                layout = parse(frame.header)
                views = layout.views(torch.frombuffer(frame.body or bytearray(1), dtype=torch.uint8))
                ticket.outcome = (frame.version, _build(layout, views, ticket.device, own=True))
            else:
                ticket.outcome = _special_reply(frame.header)
        except Exception as error:
            ticket.outcome = RequestError(f"the reply could not be read: {error}")
        if ticket.future is not None:
            self._resolve(ticket.future)

    # Waiting ----------------------------------------------------------------------------------------------------

    def ask(self, kind: Kind, deadline: float | None) -> bytes:
        """Sends a question that is no request, and returns the answer's header."""
        with self._lock:
            if self._failure is not None:
                raise WorkerDiedError(self._failure)
            self._last_id = question = self._last_id + 1
            self._send(kind, question, b"", b"", deadline)
            if not self._wait(lambda: question in self._answers, deadline):
                raise TimeoutError("the worker did not answer in time")
            return self._answers.pop(question)

    def _wait(self, done: Callable[[], bool], deadline: float | None) -> bool:
        """Waits until `done()`, with the lock held before and after; returns whether it is, raises on failure.

        Of several waiting threads one polls, and wakes the others whenever anything has happened.
        """
        while not done():
            if self._failure is not None:
                raise WorkerDiedError(self._failure)
            timeout = None if deadline is None else deadline - time.monotonic()
            if timeout is not None and timeout <= 0:
                return False
            if self._polling:
                self._changed.wait(timeout)
                continue
            if self._area is not None:
                self._asleep[0] = 1
                fence()
                if done():  # answered before the worker could see that we sleep
                    break
            self._polling = True
            self._lock.release()
            events: list[tuple[int, int]] = []
            try:
                events = self._poller.poll(_milliseconds(timeout))
            finally:
                self._lock.acquire()
                self._polling = False
                self._handle(events)
                self._changed.notify_all()
        if self._area is not None and self._loop is None and not self._polling:
            self._asleep[0] = 0
        return True

    def _handle(self, events: list[tuple[int, int]]) -> None:
        """Does what the poll's events ask for; the lock is held."""
        for descriptor, _ in events:
            if descriptor == self._reply_event:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(descriptor)
            elif descriptor == self._pidfd:
                self._read_socket()
                self._fail("the worker died")
            else:
                self._read_socket()
        if self._loop is not None:
            self._take_all()

    def _read_socket(self) -> None:
        try:
            for frame in self._stream.receive():
                self._absorb(frame)
        except ValueError as error:
            self._fail(f"the worker sent what is no frame: {error}")
        if self._stream.closed:
            self._fail("the worker died")

    def _fail(self, reason: str) -> None:
        if self._failure is None:
            self._failure = f"{reason}; requests without a reply are lost"
            for descriptor in (self._stream.fileno(), self._pidfd):  # they would end every poll from now on
                if descriptor >= 0:
                    with contextlib.suppress(KeyError):
                        self._poller.unregister(descriptor)
            if self._loop is not None:
                self._detach()

    # The event loop of asyncio ----------------------------------------------------------------------------------

    def _attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Lets `loop` watch what `_wait` would poll; the lock is held."""
        if self._loop is loop or self._failure is not None:
            return
        if self._loop is not None and not self._loop.is_closed():
            raise InferError("a client must be awaited in one event loop at a time; create another client for this one")
        self._loop = loop
        self._wake_due = False  # a loop that ended took its last calls with it
        self._sweep_at = math.inf
        if self._area is not None:
            self._asleep[0] = 1  # as long as a loop watches; it may be asleep at any time
            fence()
        for descriptor in (self._reply_event, self._stream.fileno(), self._pidfd):
            if descriptor >= 0:
                loop.add_reader(descriptor, self._on_readable, descriptor)

    def _detach(self) -> None:
        """Stops the loop's watch of descriptors that are about to be closed; the lock is held."""
        loop, self._loop = self._loop, None
        waiting = [ticket.future for ticket in self._all_tickets() if ticket.future is not None]
        waiting += self._room_waiters
        self._room_waiters.clear()
        descriptors = [fd for fd in (self._reply_event, self._stream.fileno(), self._pidfd) if fd >= 0]

        def finish() -> None:
            assert loop is not None
            for descriptor in descriptors:
                loop.remove_reader(descriptor)
            for future in waiting:
                if not future.done():
                    future.set_result(None)

        if loop is None or loop.is_closed():
            return
        if _running_loop() is loop:
            finish()
        else:
            loop.call_soon_threadsafe(finish)

    def _on_readable(self, descriptor: int) -> None:
        with self._lock:
            # A polling thread takes what there is, and wakes those who await it; after a failure nothing is left.
            if not self._polling and self._failure is None:
                self._handle([(descriptor, select.POLLIN)])
                self._changed.notify_all()

    def _take_all(self) -> None:
        """Takes every reply that is there, which wakes those who await it, and wakes those who wait for room."""
        if self._area is not None:
            self._free_a_slot()
        # One for each free slot at least; those who find none wait again.
        for _ in range(min(len(self._room_waiters), SLOTS_PER_CLIENT)):
            self._resolve(self._room_waiters.popleft())

    def _resolve(self, future: asyncio.Future[None]) -> None:
        """Ends a wait in the event loop, from whatever thread."""
        if _running_loop() is self._loop:
            if not future.done():
                future.set_result(None)
        elif self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_set_result, future)

    def close(self) -> None:
        """Hangs up; requests on their way are dropped. To be called once nobody waits."""
        with self._lock:
            self._fail("this client was closed")
            if self._loop is not None:
                self._detach()
            self._stream.close()
            for descriptor in (self._worker_event, self._reply_event, self._pidfd):
                if descriptor >= 0:
                    os.close(descriptor)
            self._worker_event = self._reply_event = self._pidfd = -1
            self._area = None

    def abandon(self) -> None:
        """Closes a forked child's copies of the descriptors, so that the parent's death still shows as end of file."""
        for descriptor in (self._stream.fileno(), self._worker_event, self._reply_event, self._pidfd):
            if descriptor >= 0:
                os.close(descriptor)
        self._stream.socket.detach()


def _milliseconds(timeout: float | None) -> int | None:
    return None if timeout is None else math.ceil(timeout * 1000)


def _copy(x: Parts, view: Tensor) -> None:
    if isinstance(x, Tensor):
        view.copy_(x)
    else:
        if x[0].is_cpu:
            torch.cat(x, out=view)
        else:
            view.copy_(torch.cat(x))


def _connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(os.fspath(path))
    except OSError as error:
        connection.close()
        raise WorkerDiedError(f"no worker answers at {path}: {error.strerror}") from None
    return connection


def _special_reply(header: bytes) -> InferError | None:
    """Returns what a reply without tensors says; None: the reply was too large for its slot and follows."""
    document = json.loads(header)
    if "error" in document:
        return RequestError(document["error"])
    if "cancelled" in document:
        return RequestCancelledError("this request was cancelled")
    return None


def _build(layout: Layout, views: list[Tensor], device: torch.device | None, *, own: bool) -> Tree:
    """Returns a reply's tree, its tensors copied out of the slot, or as they are if they `own` their memory."""
    if device is not None:
        tensors = [view.to(device) for view in views]
    else:
        tensors = views if own else [view.clone() for view in views]
    return tensors[0] if layout.is_tensor else unflatten(layout.tree, iter(tensors))


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _set_result(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
