"""A client's connection to one worker: which way a request goes, by slot or socket, and waiting that always ends."""

import contextlib
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ai.infer.connection.client_socket import ClientSocket
from ai.infer.connection.handshake import Transport, milliseconds, shake_hands
from ai.infer.connection.hang_check import HangCheck
from ai.infer.connection.pending_request import Parts, PendingRequest
from ai.infer.connection.watcher import NOBODY, Watcher
from ai.infer.errors import WorkerDiedError
from ai.infer.transport.frames import STREAM_WINDOW, Frame, Kind
from ai.infer.transport.slots import SLOTS_PER_CLIENT
from ai.infer.transport.spin import Spinner
from ai.infer.transport.trees import Tree
from ai.infer.transport.wire import Layout

_TOO_LATE = "the worker did not answer in time"
_DROP_S = 0.05  # that whoever holds the lock for a moment takes at most, if it is another thread


class Connection:
    """The connection to one worker; safe to use from several threads, and from an event loop by its `watcher`.

    Args:
        path: the worker's socket.
        transport: "auto" takes shared memory where worker and system offer it, "shm" insists, "socket" declines.
        slot_bytes: room for one request and one reply in shared memory; larger ones go through the socket.
        check_hang: ends every wait for a worker that hangs.
        deadline: when to give up, by `time.monotonic()`.

    Raises:
        WorkerDiedError: nobody answers at `path`.
        TimeoutError: the worker was busy until the deadline, or hangs.
    """

    def __init__(
        self,
        path: Path,
        transport: Transport,
        slot_bytes: int,
        check_hang: HangCheck,
        deadline: float | None = None,
    ) -> None:
        self.check_hang = check_hang
        stream, self._pidfd, self.batch_size, self.slots = shake_hands(
            path, transport, slot_bytes, check_hang, deadline
        )
        self._poller = select.poll()
        self._socket = ClientSocket(stream, self._poller)
        for descriptor in self.descriptors()[1:]:
            self._poller.register(descriptor, select.POLLIN)
        self.lock = threading.Lock()
        self._changed = threading.Condition(self.lock)
        self._spinner = Spinner()
        self.polling = False
        self.failure: str | None = None
        """Why no more replies can come."""
        self._closed = False
        self._last_id = 0
        self._dropped: deque[PendingRequest] = deque()  # that are to be cancelled when the lock is free
        self.watcher: Watcher = NOBODY
        """Is told of what happens here, beside the threads that wait."""

    def descriptors(self) -> list[int]:
        """Returns what to poll: the socket, the worker's process, and the event that replies are there."""
        events = [self._pidfd, -1 if self.slots is None else self.slots.reply_event]
        return [self._socket.stream.fileno(), *(descriptor for descriptor in events if descriptor >= 0)]

    @property
    def transport(self) -> str:
        """What requests travel through: "shm" or "socket"."""
        return "shm" if self.slots is not None else "socket"

    @property
    def alive(self) -> bool:
        """Whether no failure has been seen."""
        return self.failure is None

    @property
    def n_pending(self) -> int:
        """Requests on their way."""
        return len(self._socket.pending) + (0 if self.slots is None else len(self.slots.busy))

    def all_requests(self) -> list[PendingRequest]:
        """Returns all requests on their way."""
        return [*self._socket.pending.values(), *(() if self.slots is None else self.slots.busy.values())]

    # Requests ---------------------------------------------------------------------------------------------------

    def submit(
        self, layout: Layout, tensors: Sequence[Parts], device: torch.device | None, deadline: float | None
    ) -> PendingRequest:
        """Sends a request and returns it; waits while all slots are busy.

        Args:
            layout: of the request.
            tensors: the layout's; for each either it, or the pieces that make it up row after row.
            device: where the reply's tensors go; None: the CPU.
            deadline: when to give up waiting for a slot, by `time.monotonic()`.

        Raises:
            TimeoutError: no slot came free in time, or the socket took only a part of what fits no slot, or the
                worker hangs; it skips that request.
            WorkerDiedError: the worker is gone.
        """
        slots = self.slots
        request = PendingRequest(0, device)
        with self.lock:
            if self.failure is not None:
                self.check_alive()
            if slots is not None and slots.fits(layout):
                if not slots.free and not self._wait(self.free_a_slot, deadline):
                    raise TimeoutError(f"all {SLOTS_PER_CLIENT} slots of this client stayed busy")
                self.put(request, layout, tensors)
                slots.wake_worker()
            else:
                if not self._wait(self._socket.has_room, deadline):
                    raise TimeoutError("the worker did not take this client's earlier requests in time")
                self._put_on_socket(Kind.REQUEST, request, layout, tensors)
                try:
                    if not self._wait(self.flush, deadline):
                        raise TimeoutError("the worker did not take the request in time")
                except TimeoutError:
                    self._cancel(request)
                    raise
        return request

    def submit_now(self, request: PendingRequest, layout: Layout, tensors: Sequence[Parts]) -> bool:
        """Sends a request if there is room; the lock is held, and a worker that sleeps is not woken yet."""
        slots = self.slots
        if slots is None or not slots.fits(layout):
            if not self._socket.has_room():
                return False
            self._put_on_socket(Kind.REQUEST, request, layout, tensors)
        else:
            if not slots.free and not self.free_a_slot():
                return False
            self.put(request, layout, tensors)
        return True

    def put(self, request: PendingRequest, layout: Layout, tensors: Sequence[Parts]) -> None:
        """Writes a request into a free slot; the lock is held."""
        assert self.slots is not None
        request.id = self._last_id + 1
        self.slots.put(request, layout, tensors)
        self._last_id = request.id

    def _put_on_socket(self, kind: Kind, request: PendingRequest, layout: Layout, tensors: Sequence[Parts]) -> None:
        self._last_id = request.id = self._last_id + 1
        self._socket.send_request(kind, request, layout, tensors)
        self._tell_what_is_unsent()

    def submit_stream(
        self, layout: Layout, tensors: Sequence[Parts], device: torch.device | None, *, raw: bool = False
    ) -> PendingRequest:
        """Sends a request whose reply is to come in parts: `result` returns one after the other, `END` at last.

        It waits for nothing; whoever waits for the reply sends what the socket did not take.
        """
        request = PendingRequest(0, device, raw)
        request.parts = deque()
        with self.lock:
            self.check_alive()
            self._put_on_socket(Kind.STREAM, request, layout, tensors)
        return request

    def took_part(self, request: PendingRequest) -> None:
        """Counts a part that was taken of a reply, and says now and then that there is room for more."""
        request.n_taken += 1
        if request.n_taken < STREAM_WINDOW // 2:
            return
        with self.lock:
            if self.failure is None and request.outcome is None and not request.cancelled:
                self._send(Kind.ROOM, request.id, version=request.n_taken)
        request.n_taken = 0

    def _send(self, kind: Kind, request_id: int, version: int = 0) -> None:
        self._socket.send(kind, request_id, version=version)
        self._tell_what_is_unsent()

    def _tell_what_is_unsent(self) -> None:
        if self._socket.stream.n_unsent:
            self.watcher.has_unsent()

    def flush(self) -> bool:
        """Sends what the socket takes now; returns whether nothing is left. The lock is held."""
        return self._socket.flush()

    def cancel(self, request: PendingRequest) -> None:
        """Tells the worker to skip a request if it has not begun it; its slot comes back when the worker answers."""
        with self.lock:
            self._cancel(request)

    def drop(self, request: PendingRequest) -> None:
        """Like `cancel`, from wherever the garbage collector calls it.

        That may be this thread's own hold of the lock, half way through a frame: then the next wait does it.
        """
        self._dropped.append(request)
        if self.lock.acquire(timeout=_DROP_S):
            try:
                self._cancel_dropped()
            finally:
                self.lock.release()

    def _cancel_dropped(self) -> None:
        while self._dropped:
            self._cancel(self._dropped.popleft())

    def _cancel(self, request: PendingRequest) -> None:
        done = request.cancelled or request.outcome is not None
        request.cancelled = True
        if done:
            return
        if request.slot is not None and self.slots is not None:
            self.slots.cancel(request)
        elif self.failure is None and request.by_socket:
            self._send(Kind.CANCEL, request.id)
        self.watcher.finished(request)
        # Whoever waits for it in another thread learns of it now.
        self._changed.notify_all()

    def result(self, request: PendingRequest, deadline: float | None = None) -> tuple[int, Tree]:
        """Waits for a request's reply; returns the version of the weights that made it, and the reply itself.

        Raises:
            RequestError: the request failed in the worker.
            RequestCancelledError: it was cancelled.
            WorkerDiedError: the worker is gone.
            TimeoutError: the deadline passed, or the worker hangs; the request is still on its way.
        """
        self.spin(request)
        with self.lock:
            if self._dropped:
                self._cancel_dropped()
            if not self.is_done(request) and not self._wait(lambda: self.is_done(request), deadline):
                raise TimeoutError(_TOO_LATE)
        return request.fetch()

    def outcome(self, request: PendingRequest) -> tuple[int, Tree]:
        """Returns the reply to a request of which `PendingRequest.waiter` was told; raises like `result`."""
        outcome = request.outcome
        if type(outcome) is tuple and not request.cancelled and not request.parts:  # nearly always
            return outcome
        if outcome is None and not request.cancelled and not request.parts:
            if request.overdue:
                self.check_hang()
                raise TimeoutError(_TOO_LATE)
            self.check_alive()
        return request.fetch()

    def ready(self, request: PendingRequest) -> bool:
        """Returns whether `result` would return, or raise, at once."""
        with self.lock:
            if not self.polling:
                self.handle(self._poller.poll(0))
            return self.is_done(request) or self.failure is not None

    def spin(self, request: PendingRequest) -> None:
        """Looks for a reply in shared memory for a moment, without the lock, if that has been paying off."""
        slots, slot, request_id = self.slots, request.slot, request.id
        if slots is None or slot is None or self.polling or slots.answered[slot] == request_id:
            return
        answered = slots.answered
        self._spinner.wait(lambda: answered[slot] == request_id)

    def is_done(self, request: PendingRequest) -> bool:
        """Returns whether there is something to fetch, having looked into its slot; the lock is held."""
        if request.cancelled or request.outcome is not None or request.parts:
            return True
        if self.slots is not None and self.slots.has_answered(request):
            self._take(request)
            return request.outcome is not None
        return False

    def _take(self, request: PendingRequest) -> None:
        assert self.slots is not None
        self.slots.take(request)
        if request.outcome is None and not request.cancelled:  # too large for its slot: it follows by socket
            self._socket.pending[request.id] = request
        else:
            self.watcher.finished(request)

    def free_a_slot(self) -> bool:
        """Takes every reply that is there out of its slot; returns whether a slot is free. The lock is held."""
        assert self.slots is not None
        for request in self.slots.all_answered():
            if request.slot is not None:  # else it was cancelled, and freed beside one before it
                self._take(request)
        return bool(self.slots.free)

    def _absorb(self, frame: Frame) -> None:
        """Takes in a frame from the worker."""
        if frame.kind is Kind.BYE:
            self._fail(frame.header.decode())
            return
        if frame.id not in self._socket.pending and self.slots is not None:
            self.free_a_slot()  # a slot says that its reply was too large, and this is that reply
        request = self._socket.take(frame)
        if request is not None:
            self.watcher.finished(request)

    # Waiting ----------------------------------------------------------------------------------------------------

    def check_alive(self) -> None:
        """Raises `WorkerDiedError` if no more replies can come."""
        if self.failure is not None:
            raise WorkerDiedError(self.failure)

    def ask(self, kind: Kind, deadline: float | None) -> bytes:
        """Sends a question that is no request, and returns the answer's header."""
        with self.lock:
            self.check_alive()
            self._last_id = question = self._last_id + 1
            self._send(kind, question)
            if not self._wait(lambda: question in self._socket.answers, deadline):
                raise TimeoutError(_TOO_LATE)
            return self._socket.answers.pop(question)

    def _wait(self, done: Callable[[], bool], deadline: float | None) -> bool:
        """Waits until `done()`, with the lock held before and after; returns whether it is, raises on failure.

        Of several waiting threads one polls, and wakes the others whenever anything has happened. Each looks now and
        then whether the worker hangs.
        """
        slots = self.slots
        self._cancel_dropped()
        while not done():
            self.check_alive()
            timeout = None if deadline is None else deadline - time.monotonic()
            if timeout is not None and timeout <= 0:
                return False
            timeout = self.check_hang.slice_s(timeout)
            if self.polling:
                if not self._changed.wait(timeout):
                    self.check_hang()
                continue
            if slots is not None:
                slots.will_sleep()
                if done():  # answered before the worker could see that we sleep
                    break
            self.polling = True
            self.lock.release()
            events: list[tuple[int, int]] = []
            try:
                events = self._poller.poll(milliseconds(timeout))
            finally:
                self.lock.acquire()
                self.polling = False
                self.handle(events)
                self._changed.notify_all()
            if not events and not done():
                self.check_hang()
        if slots is not None and not self.watcher.attached and not self.polling:
            slots.is_awake()
        return True

    def handle(self, events: list[tuple[int, int]]) -> None:
        """Does what the poll's events ask for; the lock is held."""
        for descriptor, _ in events:
            if self.slots is not None and descriptor == self.slots.reply_event:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(descriptor)
            else:
                self.flush()
                self._read_socket()
                if descriptor == self._pidfd:
                    self._fail("the worker died")
        if self.watcher.attached:
            if self.slots is not None:
                self.free_a_slot()
            self.watcher.has_room()

    def notify(self) -> None:
        """Wakes the threads that wait while someone else polls; the lock is held."""
        self._changed.notify_all()

    def _read_socket(self) -> None:
        try:
            for frame in self._socket.stream.receive():
                self._absorb(frame)
        except ValueError as error:
            self._fail(f"the worker sent what is no frame: {error}")
        if self._socket.stream.closed:
            self._fail("the worker died")

    def _fail(self, reason: str) -> None:
        if self.failure is None:
            self.failure = f"{reason}; requests without a reply are lost"
            self._socket.end_polling()
            if self._pidfd >= 0:  # it, too, would end every poll from now on
                with contextlib.suppress(KeyError):
                    self._poller.unregister(self._pidfd)
            self.watcher.ends()

    def close(self) -> None:
        """Hangs up; requests on their way are dropped. To be called once nobody waits."""
        with self.lock:
            if self._closed:
                return
            self._closed = True
            self._fail("this client was closed")
            slots, self.slots = self.slots, None

            def close_descriptors() -> None:
                self._socket.stream.close()
                if slots is not None:
                    slots.close()
                if self._pidfd >= 0:
                    os.close(self._pidfd)

            self.watcher.ends(close_descriptors)

    def abandon(self) -> None:
        """Closes a forked child's copies of the descriptors, so that the parent's death still shows as end of file.

        Whatever thread held the lock is not in the child.
        """
        self.lock = threading.Lock()
        self._changed = threading.Condition(self.lock)
        self.failure = "this process was forked from the one that asked, which gets the reply"
        self._socket.end_polling()
        os.close(self._socket.stream.socket.detach())
        if self._pidfd >= 0:
            os.close(self._pidfd)
        slots, self.slots = self.slots, None
        if slots is not None:
            slots.close()
