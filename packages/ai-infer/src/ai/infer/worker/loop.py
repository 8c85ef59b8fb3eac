"""The loop of the process that holds the model.

One thread, one loop: find new requests, take what the starter asks, run the next batch, answer.
"""

import json
import os
import selectors
import socket
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ai.infer.stats import Stats
from ai.infer.transport.errors import WireError
from ai.infer.transport.frames import Frame, FrameStream, Kind
from ai.infer.transport.shared_memory import anonymous_file, shared_slots_supported
from ai.infer.transport.shared_weights import SharedWeights, apply_extra_state, try_extra_state
from ai.infer.transport.slots import BOARD_BYTES, SLOTS_PER_CLIENT, WORKER, Board, fence
from ai.infer.transport.socket_folder import EXTRA_STATE_FILE
from ai.infer.transport.spin import Spinner
from ai.infer.transport.vitals import BEAT_S, Vitals
from ai.infer.transport.wire import Layout, layout_of, parse
from ai.infer.worker.batch_call import BatchCall
from ai.infer.worker.batch_limit import BatchLimit
from ai.infer.worker.connected_client import ConnectedClient, Request, request_from_frame
from ai.infer.worker.engine import Engine
from ai.infer.worker.faults import answer_for
from ai.infer.worker.listener import Listener
from ai.infer.worker.options import WorkerOptions
from ai.infer.worker.reply_writer import ReplyWriter
from ai.infer.worker.request_queue import RequestQueue
from ai.infer.worker.rows.batch_axes import BatchAxes
from ai.infer.worker.rows.sharing import Sharing
from ai.infer.worker.streaming.streams import Streams

_SPC = SLOTS_PER_CLIENT
_DELAY_GRAIN_S = 0.0005
_POLL_INTERVAL_S = 0.001
"""A look at the sockets costs as much as a small batch does: a busy worker takes one a millisecond."""
_SPIN_S = 400e-6
"""How long an idle worker looks: a lone client over HTTP asks again some 200 µs after its reply, now less, now more."""
_SHOW_INTERVAL_S = 0.01  # of its counters, while they change


class Worker:
    """Serves one model to all who connect to a socket.

    Args:
        model: what to run.
        options: how.
        listener: a listening Unix socket.
        control: the line to the starter.
        weights: where the starter puts new weights.
        starter: the starter's process id.
        version: of the weights to begin with; 0: those of `model`.
        vitals: where the worker shows how it is.
        folder: the starter's.
        extra: the number of the extra state to begin with; 0: that of `model`.
    """

    def __init__(
        self,
        model: nn.Module,
        options: WorkerOptions,
        listener: socket.socket,
        control: FrameStream,
        weights: SharedWeights,
        starter: int,
        version: int,
        vitals: Vitals,
        folder: Path,
        extra: int,
    ) -> None:
        self._folder = folder
        self._extra = extra
        self._vitals = vitals
        self._control = control
        self._weights = weights
        self._pad = options.pad
        self._shared = shared_slots_supported()
        self._board: Board | None = None
        board_file = worker_event = -1
        if self._shared:
            board_file = anonymous_file(BOARD_BYTES)
            self._board = Board(board_file)
            self._taken = np.zeros_like(self._board.requested)  # requests that are in the queue or answered
            self._taken_at = self._taken.data
            worker_event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._spinner = Spinner(_SPIN_S)
        self._engine = Engine(
            model, torch.device(options.device), options.precision, options.compile, options.graph_rows
        )
        self._engine.on_call = vitals.begin_call
        self._batch_limit = BatchLimit() if options.batch_size is None else None
        max_rows = self._batch_limit.rows if self._batch_limit is not None else options.batch_size
        assert max_rows is not None
        self._axes = BatchAxes(options.in_axes, options.out_axes)
        sharing = Sharing(options.share, self._axes, self._engine.coarsest)
        self._replies = ReplyWriter(self._board)
        self._replies.on_sent = self._after_send
        self._batch_call = BatchCall(self._engine, self._replies, max_rows, self._axes, sharing)
        self._streams = Streams(self._engine, max_rows, self._after_send)
        self._queue: RequestQueue[Request] = RequestQueue(max_rows, options.max_delay_s, sharing.refuses)
        self._stopping = self._orphaned = False
        self._busy_s = self._poll_due = self._show_due = 0.0
        self._look_at_clients_at = 0.0
        if version:
            weights.apply(version, model)
            self._replies.version = version
        if extra:
            apply_extra_state(model, self._extra_file(extra))
        self._selector = selectors.DefaultSelector()
        self._watch(control.fileno(), self._read_control)
        if self._shared:
            self._watch(worker_event, lambda: os.eventfd_read(worker_event))
        # Clients may send several requests as one message where that can gain anything.
        packs = options.share is not False and self._pad is None and self._axes.are_first
        self._clients = Listener(
            listener,
            self._selector,
            self._board,
            board_file,
            worker_event,
            batch_size=lambda: self._queue.max_rows if packs else 1,
            take=self._take_frame,
            dropped=self._forget,
        )
        if hasattr(os, "pidfd_open") and os.getppid() == starter:
            self._watch(os.pidfd_open(starter), self._become_orphan)
        elif os.getppid() != starter:
            self._become_orphan()
        self._started = time.monotonic()

    @torch.no_grad()  # a model may make an output with gradients: what it is copied to would keep all it came from
    def serve(self) -> bool:
        """Answers requests until told to stop; returns whether the starter is gone."""
        queue = self._queue
        while not self._stopping:
            if not self._scan() and not queue.n_requests and not self._streams.can_go_on():
                if not self._spinner.wait(self._scan):
                    self._sleep(BEAT_S)
                continue
            delay = queue.delay_s()
            if delay:
                self._sleep(min(delay, BEAT_S))
                if delay > _DELAY_GRAIN_S:
                    continue  # look again who came
            start = time.monotonic()
            if start >= self._poll_due:
                self._poll(0)
                if start >= self._show_due:
                    self._show(start)
            # After the requests were found: whoever asked after an update was announced gets that version.
            if self._weights.announced != self._replies.version or not self._shared:
                self._read_control()
            batch = queue.next_batch()
            if batch:
                self._batch_call.answer(batch)
            if self._streams.running:
                self._streams.advance(self._replies.version)
            self._vitals.end_call()
            elapsed = time.monotonic() - start
            self._busy_s += elapsed
            if self._batch_limit is not None and batch:
                cap = self._batch_limit.update(sum(request.rows for request in batch), elapsed, bool(queue.n_requests))
                queue.max_rows = self._batch_call.max_rows = cap
        self.tell_all("the inferencer was stopped")
        return self._orphaned

    def tell_all(self, reason: str) -> None:
        """Tells every client that no more replies come, and why."""
        self._clients.tell_all(reason)

    # Requests ---------------------------------------------------------------------------------------------------

    def _scan(self) -> bool:
        """Queues the requests that are new in the slots; returns whether there were any."""
        n = self._clients.n_places * _SPC
        if not n or self._board is None:
            return False
        found = (self._board.requested[:n] != self._taken[:n]).nonzero()[0]
        if not len(found):
            return False
        if len(found) > 1:  # a client's in the order in which it asked, whichever slots were free
            found = found[np.lexsort((self._board.requested[found], found // _SPC))]
        fresh = found.tolist()
        requested, taken, forms = self._board.requested_at, self._taken_at, self._board.asked_form_at
        alike = self._axes.are_first  # else the group says what the inputs hold that have no rows
        now = time.monotonic()
        for slot in fresh:
            request_id = taken[slot] = requested[slot]
            form = forms[slot]
            client = self._clients.by_place.get(slot // _SPC)
            if client is None or client.area is None:
                continue
            request = client.last[slot % _SPC]
            if request is not None and request.header_number == form:  # the slot's last request, with other numbers
                request.id = request_id
                request.arrived = now
                if alike:
                    self._queue.put(request, request.group)
                else:
                    self._enqueue(request)
                continue
            try:
                place = 2 * (slot % _SPC)
                layout = _parse_call(client.area.read_header(place))
                tensors = client.area.views(place, layout)
            except Exception as error:
                request = Request(client, slot, request_id, _EMPTY, [])
                self._replies.refuse(request, f"{type(error).__name__}: {error}")
                continue
            request = Request(client, slot, request_id, layout, tensors, form)
            if self._pad is None:
                client.last[slot % _SPC] = request
            self._enqueue(request)
        return True

    def _enqueue(self, request: Request) -> None:
        if self._pad is not None:
            try:
                request.tensors = [self._pad(x) for x in request.tensors]
                request.layout = layout_of(request.layout.tree, request.tensors)
            except BaseException as error:
                self._replies.refuse(request, f"pad failed on this request: {answer_for(error)}")
                return
        if request.form is None or not self._axes.are_first:
            request.take_form(self._axes.form(request.layout, request.tensors))
        self._queue.put(request, request.group)

    def _take_frame(self, client: ConnectedClient, frame: Frame) -> None:
        """Does what a client asks by socket; raises what then ends its connection."""
        if frame.kind in (Kind.REQUEST, Kind.STREAM):
            try:
                request = request_from_frame(client, frame.id, _parse_call(frame.header), frame.body)
            except Exception as error:
                request = Request(client, -1, frame.id, _EMPTY, [])
                self._replies.refuse(request, f"{type(error).__name__}: {error}")
                return
            if frame.kind is Kind.STREAM:
                self._streams.put(request)
            else:
                self._enqueue(request)
        elif frame.kind is Kind.ROOM:
            self._streams.make_room(client, frame.id, frame.version)
        elif frame.kind is Kind.CANCEL:
            if not self._streams.cancel(client, frame.id):
                client.cancel(frame.id)
        elif frame.kind is Kind.PING:
            client.stream.send(Kind.PING, frame.id)
            self._clients.update_interest(client)
        elif frame.kind is Kind.STATS:
            client.stream.send(Kind.STATS, frame.id, header=json.dumps(vars(self._stats())).encode())
            self._clients.update_interest(client)
        else:
            raise ValueError(f"a client must not send a frame of kind {frame.kind.name}")

    def _after_send(self, request: Request) -> None:
        self._clients.update_interest(request.client)

    def _forget(self, client: ConnectedClient) -> None:
        self._queue.drop(client)
        self._streams.drop(client)
        if client.index >= 0:
            self._taken[client.index * _SPC : (client.index + 1) * _SPC] = 0

    def _stats(self) -> Stats:
        replies, streams = self._replies, self._streams
        return Stats(
            requests=replies.n_requests + streams.n_requests,
            rows=self._batch_call.n_rows,
            batches=self._batch_call.n_batches,
            errors=replies.n_errors + streams.n_errors,
            cancelled=replies.n_cancelled + streams.n_cancelled,
            queued=self._queue.n_requests + streams.n_open,
            clients=len(self._clients),
            version=replies.version,
            busy_s=self._busy_s,
            uptime_s=time.monotonic() - self._started,
        )

    # Events -----------------------------------------------------------------------------------------------------

    def _watch(self, descriptor: int, action: Callable[[], object]) -> None:
        self._selector.register(descriptor, selectors.EVENT_READ, action)

    def _sleep(self, timeout: float) -> None:
        """Polls until something happens; says so first, so that a client knows that it has to wake us."""
        if self._board is None:
            self._poll_and_show(timeout)
            return
        self._board.asleep_at[WORKER] = 1
        fence()
        if not self._scan():
            self._poll_and_show(timeout)
        self._board.asleep_at[WORKER] = 0

    def _poll_and_show(self, timeout: float) -> None:
        """Polls, and shows the counters before a long wait; a short one does not pay for that."""
        if time.monotonic() < self._show_due:
            if self._poll(min(timeout, _SHOW_INTERVAL_S)) or timeout <= _SHOW_INTERVAL_S:
                return
            timeout -= _SHOW_INTERVAL_S
        self._show(time.monotonic())
        self._poll(timeout)

    def _show(self, now: float) -> None:
        self._vitals.write(self._stats())
        self._show_due = now + _SHOW_INTERVAL_S

    def _poll(self, timeout: float) -> bool:
        """Serves the sockets: new clients, what came by socket, deaths; between batches it does so now and then.

        Returns whether there was anything.
        """
        events = self._selector.select(timeout)
        for key, _ in events:
            if key.fd in self._selector.get_map():  # an earlier action may have dropped it
                key.data()
        now = time.monotonic()
        self._poll_due = now + _POLL_INTERVAL_S
        if self._control.n_unsent:
            self._control.flush()
        if now >= self._look_at_clients_at:
            self._look_at_clients_at = now + BEAT_S
            self._clients.drop_the_dead()
        return bool(events)

    def _read_control(self) -> None:
        """Takes in what the starter asks: new weights, or to stop."""
        for frame in self._control.receive():
            if frame.kind is Kind.UPDATE:
                self._weights.apply(frame.version, self._engine.model)
                if frame.id != self._extra:
                    apply_extra_state(self._engine.model, self._extra_file(frame.id))
                    self._extra = frame.id
                self._replies.version = frame.version
                self._control.send(Kind.UPDATE, version=frame.version)
            elif frame.kind is Kind.TRY:
                self._control.send(Kind.TRY, frame.id, header=self._try_extra_state(frame.id).encode())
            elif frame.kind is Kind.BYE:
                self._stopping = True
        if self._control.closed:
            self._become_orphan()

    def _extra_file(self, number: int) -> Path:
        return self._folder / EXTRA_STATE_FILE.format(number)

    def _try_extra_state(self, number: int) -> str:
        """Returns why the model does not take an extra state; empty: it does."""
        try:
            try_extra_state(self._engine.model, self._extra_file(number))
        except BaseException as error:
            return answer_for(error)
        return ""

    def _become_orphan(self) -> None:
        self._stopping = self._orphaned = True


_EMPTY = layout_of(["c", None], [])


def _parse_call(header: bytes) -> Layout:
    """Returns the layout of a request, whose tree must be positional and keyword arguments."""
    layout = parse(header)
    tree = layout.tree
    if len(tree) != 3 or tree[0] != "u" or tree[1][0] != "u" or tree[2][0] != "d":
        raise WireError("a request must hold positional and keyword arguments")
    if not all(isinstance(name, str) for name, _ in tree[2][1:]):
        raise WireError("a request's keyword arguments must have names")
    return layout
