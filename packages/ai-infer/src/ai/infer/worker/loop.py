"""The loop of the process that holds the model.

One thread, one loop: find new requests, take what the starter asks, run the next batch, answer.
"""

import heapq
import json
import logging
import os
import selectors
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ai.infer.errors import InferError
from ai.infer.stats import Stats
from ai.infer.transport.errors import WireError
from ai.infer.transport.frames import PROTOCOL, Frame, FrameStream, Kind
from ai.infer.transport.shared_memory import anonymous_file, shared_slots_supported
from ai.infer.transport.shared_weights import SharedWeights, apply_extra_state
from ai.infer.transport.slots import BOARD_BYTES, MAX_CLIENTS, SLOTS_PER_CLIENT, WORKER, Board, fence
from ai.infer.transport.spin import Spinner
from ai.infer.transport.vitals import Vitals
from ai.infer.transport.wire import Layout, layout_of, parse
from ai.infer.worker.batch_axes import Axes, BatchAxes
from ai.infer.worker.batch_call import BatchCall
from ai.infer.worker.batch_limit import BatchLimit
from ai.infer.worker.connected_client import MAX_UNSENT_BYTES, ConnectedClient, Request, request_from_frame
from ai.infer.worker.engine import Engine, Precision
from ai.infer.worker.faults import WorkerFaultError, answer_for, is_out_of_descriptors
from ai.infer.worker.request_queue import RequestQueue
from ai.infer.worker.sharing import Share, Sharing

_SPC = SLOTS_PER_CLIENT
_log = logging.getLogger("ai.infer")
_DELAY_GRAIN_S = 0.0005
_LOOK_INTERVAL_S = 5.0  # between two looks whether the clients' processes live
_POLL_INTERVAL_S = 0.001
"""A look at the sockets costs as much as a small batch does: a busy worker takes one a millisecond."""


@dataclass(frozen=True)
class WorkerOptions:
    """What a worker is told beside the model; see `Inferencer` for what each means."""

    device: str = "cpu"
    batch_size: int | None = 64
    """None: tune it."""
    max_delay_s: float = 0.0
    precision: Precision = "model"
    compile: bool | str = False
    graph_rows: tuple[int, ...] = ()
    pad: Callable[[Tensor], Tensor] | None = None
    share: Share = "auto"
    in_axes: Axes = 0
    out_axes: Axes = 0
    torch_state: dict[str, Any] = field(default_factory=dict)
    """The starter's own settings that decide how torch rounds."""


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
    ) -> None:
        self._vitals = vitals
        self._control = control
        self._weights = weights
        self._listener = listener
        self._pad = options.pad
        self._shared = shared_slots_supported()
        self._board: Board | None = None
        if self._shared:
            self._board_file = anonymous_file(BOARD_BYTES)
            self._board = Board(self._board_file)
            self._taken = np.zeros_like(self._board.requested)  # requests that are in the queue or answered
            self._worker_event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._spinner = Spinner()
        self._n_scanned = 0  # slots beyond this have never been used
        self._clients: dict[int, ConnectedClient] = {}  # by place on the board
        self._streams: dict[int, ConnectedClient] = {}  # by descriptor
        self._free_indices = list(range(MAX_CLIENTS))
        self._engine = Engine(
            model, torch.device(options.device), options.precision, options.compile, options.graph_rows
        )
        self._batch_limit = BatchLimit() if options.batch_size is None else None
        max_rows = self._batch_limit.rows if self._batch_limit is not None else options.batch_size
        assert max_rows is not None
        self._axes = BatchAxes(options.in_axes, options.out_axes)
        sharing = Sharing(options.share, self._axes, self._engine.coarsest)
        self._batch_call = BatchCall(self._engine, self._board, max_rows, self._axes, sharing)
        # Clients may send several requests as one message where that can gain anything.
        self._packs = options.share is not False and self._pad is None and self._axes.are_first
        self._batch_call.on_sent = self._after_send
        self._queue: RequestQueue[Request] = RequestQueue(max_rows, options.max_delay_s, sharing.refuses)
        self._stopping = self._orphaned = False
        self._busy_s = self._poll_due = 0.0
        self._look_at_clients_at = 0.0
        self._reserve = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)  # with which a newcomer can be refused
        if version:
            weights.apply(version, model)
            self._batch_call.version = version
        self._selector = selectors.DefaultSelector()
        self._watch(control.fileno(), self._read_control)
        self._watch(listener.fileno(), self._accept)
        if self._shared:
            self._watch(self._worker_event, self._clear_event)
        if hasattr(os, "pidfd_open") and os.getppid() == starter:
            self._watch(os.pidfd_open(starter), self._become_orphan)
        elif os.getppid() != starter:
            self._become_orphan()
        self._started = time.monotonic()

    def serve(self) -> bool:
        """Answers requests until told to stop; returns whether the starter is gone."""
        queue = self._queue
        while not self._stopping:
            if not self._scan() and not queue.n_requests:
                if not self._spinner.wait(self._scan):
                    self._sleep(_LOOK_INTERVAL_S if self._streams else None)
                continue
            delay = queue.delay_s()
            if delay:
                self._sleep(delay)
                if delay > _DELAY_GRAIN_S:
                    continue  # look again who came
            start = time.monotonic()
            if start >= self._poll_due:
                self._poll(0)
            # After the requests were found: whoever asked after an update was announced gets that version.
            if self._weights.announced != self._batch_call.version or not self._shared:
                self._read_control()
            batch = queue.next_batch()
            self._vitals.begin_call(start)
            self._batch_call.answer(batch)
            self._vitals.end_call()
            elapsed = time.monotonic() - start
            self._busy_s += elapsed
            if self._batch_limit is not None:
                cap = self._batch_limit.update(sum(request.rows for request in batch), elapsed, bool(queue.n_requests))
                queue.max_rows = self._batch_call.max_rows = cap
        self.tell_all("the inferencer was stopped")
        return self._orphaned

    def tell_all(self, reason: str) -> None:
        """Tells every client that no more replies come, and why."""
        for client in list(self._streams.values()):
            client.stream.send(Kind.BYE, header=reason.encode())

    # Requests ---------------------------------------------------------------------------------------------------

    def _scan(self) -> bool:
        """Queues the requests that are new in the slots; returns whether there were any."""
        n = self._n_scanned
        if not n or self._board is None:
            return False
        requested = self._board.requested[:n]
        fresh = np.flatnonzero(requested != self._taken[:n])
        if not len(fresh):
            return False
        ids = requested[fresh]
        self._taken[fresh] = ids
        now = time.monotonic()
        forms = self._board.asked_form[fresh].tolist()
        for slot, request_id, form in zip(fresh.tolist(), ids.tolist(), forms, strict=True):
            client = self._clients.get(slot // _SPC)
            if client is None or client.area is None:
                continue
            request = client.last[slot % _SPC]
            if request is not None and request.header_number == form:  # the slot's last request, with other numbers
                request.id = request_id
                request.arrived = now
                self._enqueue(request)
                continue
            try:
                place = 2 * (slot % _SPC)
                layout = _parse_call(client.area.read_header(place))
                tensors = client.area.views(place, layout)
            except Exception as error:
                request = Request(client, slot, request_id, _EMPTY, [])
                self._batch_call.refuse(request, f"{type(error).__name__}: {error}")
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
                self._batch_call.refuse(request, f"pad failed on this request: {answer_for(error)}")
                return
        if request.form is None or not self._axes.are_first:
            request.take_form(self._axes.form(request.layout, request.tensors))
        self._queue.put(request, None if request.form is None else request.form.key)

    def _read_client(self, client: ConnectedClient) -> None:
        """Takes in what a client sent by socket; hangs up on one that sends what is no frame."""
        try:
            for frame in client.stream.receive():
                self._take_frame(client, frame)
        except WorkerFaultError:
            raise
        except Exception as error:  # whatever it is, the client's own words led to it
            _log.info("a client's connection was closed: %s", f"{type(error).__name__}: {error}"[:200])
            client.stream.closed = True
        if client.stream.closed:
            self._drop(client)

    def _take_frame(self, client: ConnectedClient, frame: Frame) -> None:
        if frame.kind is Kind.HELLO and not client.greeted:
            self._greet(client, frame)
        elif frame.kind is Kind.REQUEST:
            try:
                request = request_from_frame(client, frame.id, _parse_call(frame.header), frame.body)
            except Exception as error:
                request = Request(client, -1, frame.id, _EMPTY, [])
                self._batch_call.refuse(request, f"{type(error).__name__}: {error}")
                return
            self._enqueue(request)
        elif frame.kind is Kind.CANCEL:
            if len(client.cancelled) < 4 * _SPC:
                client.cancelled.add(frame.id)
        elif frame.kind is Kind.PING:
            client.stream.send(Kind.PING, frame.id)
            self._update_interest(client)
        elif frame.kind is Kind.STATS:
            client.stream.send(Kind.STATS, frame.id, header=json.dumps(vars(self._stats())).encode())
            self._update_interest(client)
        else:
            raise ValueError(f"a client must not send a frame of kind {frame.kind.name}")

    def _stats(self) -> Stats:
        batch_call = self._batch_call
        return Stats(
            requests=batch_call.n_requests,
            rows=batch_call.n_rows,
            batches=batch_call.n_batches,
            errors=batch_call.n_errors,
            cancelled=batch_call.n_cancelled,
            queued=self._queue.n_requests,
            clients=len(self._streams),
            version=batch_call.version,
            busy_s=self._busy_s,
            uptime_s=time.monotonic() - self._started,
        )

    # Clients ----------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError as error:  # the client was faster gone than accepted, or no descriptor is left
            if is_out_of_descriptors(error):
                self._turn_away()
            return
        client = ConnectedClient(connection)
        self._streams[client.stream.fileno()] = client
        self._watch(client.stream.fileno(), lambda: self._serve_socket(client))

    def _turn_away(self) -> None:
        """Tells a newcomer that there is no room, with the one descriptor kept for that."""
        if self._reserve < 0 and not self._reopen_reserve():
            time.sleep(_POLL_INTERVAL_S)  # somebody else took it; the newcomer waits in the system's queue
            return
        os.close(self._reserve)
        try:
            connection, _ = self._listener.accept()
            reason = self._no_room(len(self._streams))
            FrameStream(connection).send(Kind.HELLO, header=json.dumps(reason).encode())
            connection.close()
        except OSError:
            pass
        finally:
            self._reopen_reserve()

    def _reopen_reserve(self) -> bool:
        try:
            self._reserve = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._reserve = -1
        return self._reserve >= 0

    def _no_room(self, n_clients: int) -> dict[str, Any]:
        reason = f"the worker has no descriptor left for a client beside the {n_clients} it has"
        _log.error("a client was turned away: %s", reason)
        return {"error": reason}

    def _drop_the_dead(self) -> None:
        """Forgets clients whose process has ended while a child of it keeps their socket open."""
        for client in [client for client in self._streams.values() if client.is_gone()]:
            self._drop(client)

    def _greet(self, client: ConnectedClient, frame: Frame) -> None:
        """Answers a client's first message, with shared memory where both sides can use it."""
        client.greeted = True
        hello = json.loads(frame.header)
        transport = hello.get("transport")
        descriptors: list[int] = []
        reply: dict[str, Any] = {"batch_size": self._queue.max_rows if self._packs else 1}
        try:
            if hello.get("protocol") != PROTOCOL:
                raise InferError(f"the client must speak protocol {PROTOCOL}, not {hello.get('protocol')!r:.40}")
            if transport != "socket" and self._board is not None and self._free_indices:
                index = self._free_indices[0]
                descriptors = client.open_area(
                    index, hello["slot_bytes"], self._board, self._board_file, self._worker_event
                )
                heapq.heappop(self._free_indices)
                self._clients[index] = client
                self._n_scanned = max(self._n_scanned, (index + 1) * _SPC)
                reply |= {"first_slot": index * _SPC, "slot_bytes": client.area.slot_bytes if client.area else 0}
            elif transport == "shm":
                raise InferError(
                    "transport 'shm' needs shared memory, which this system or this worker has no room for"
                )
        except InferError as error:
            reply = {"error": str(error)}
        except OSError as error:
            if not is_out_of_descriptors(error):
                raise
            reply = {
                "error": f"the worker has no descriptor left for a client beside the {len(self._streams) - 1} it has"
            }
            _log.error("a client was turned away: %s", reply["error"])
        client.stream.send_with_descriptors(Kind.HELLO, json.dumps(reply).encode(), descriptors)
        if descriptors:
            os.close(descriptors[1])

    def _serve_socket(self, client: ConnectedClient) -> None:
        client.stream.flush()
        # One that does not read its replies is not read from, so that what is unsent stays bounded.
        if client.stream.n_unsent < MAX_UNSENT_BYTES:
            self._read_client(client)
        if client.stream.closed:
            self._drop(client)
        else:
            self._update_interest(client)

    def _after_send(self, request: Request) -> None:
        self._update_interest(request.client)

    def _update_interest(self, client: ConnectedClient) -> None:
        if client.stream.fileno() not in self._streams:
            return
        unsent = client.stream.n_unsent
        events = selectors.EVENT_READ if unsent < MAX_UNSENT_BYTES else 0
        if unsent:
            events |= selectors.EVENT_WRITE
        key = self._selector.get_key(client.stream.fileno())
        if key.events != events:
            self._selector.modify(client.stream.fileno(), events, key.data)

    def _drop(self, client: ConnectedClient) -> None:
        """Forgets a client that is gone: its requests, its slots, its descriptors."""
        if self._streams.pop(client.stream.fileno(), None) is None:
            return
        self._selector.unregister(client.stream.fileno())
        self._queue.drop(client)
        if client.index >= 0:
            assert self._board is not None
            del self._clients[client.index]
            slots = slice(client.index * _SPC, (client.index + 1) * _SPC)
            for words in (self._board.requested, self._board.answered, self._board.cancelled, self._taken):
                words[slots] = 0
            self._board.asleep_at[client.index] = 0
            heapq.heappush(self._free_indices, client.index)
        client.close()

    # Events -----------------------------------------------------------------------------------------------------

    def _watch(self, descriptor: int, action: Callable[[], None]) -> None:
        self._selector.register(descriptor, selectors.EVENT_READ, action)

    def _sleep(self, timeout: float | None) -> None:
        """Polls until something happens; says so first, so that a client knows that it has to wake us."""
        self._vitals.write(self._stats())
        if self._board is None:
            self._poll(timeout)
            return
        self._board.asleep_at[WORKER] = 1
        fence()
        if not self._scan():
            self._poll(timeout)
        self._board.asleep_at[WORKER] = 0

    def _poll(self, timeout: float | None) -> None:
        """Serves the sockets: new clients, what came by socket, deaths; between batches it does so now and then."""
        for key, _ in self._selector.select(timeout):
            if key.fd in self._selector.get_map():  # an earlier action may have dropped it
                key.data()
        now = time.monotonic()
        self._poll_due = now + _POLL_INTERVAL_S
        self._vitals.write(self._stats())
        if self._control.n_unsent:
            self._control.flush()
        if now >= self._look_at_clients_at:
            self._look_at_clients_at = now + _LOOK_INTERVAL_S
            self._drop_the_dead()

    def _clear_event(self) -> None:
        os.eventfd_read(self._worker_event)

    def _read_control(self) -> None:
        """Takes in what the starter asks: new weights, or to stop."""
        for frame in self._control.receive():
            if frame.kind is Kind.UPDATE:
                self._weights.apply(frame.version, self._engine.model)
                if frame.body:
                    apply_extra_state(self._engine.model, bytes(frame.body))
                self._batch_call.version = frame.version
                self._control.send(Kind.UPDATE, version=frame.version)
            elif frame.kind is Kind.BYE:
                self._stopping = True
        if self._control.closed:
            self._become_orphan()

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


def torch_state() -> dict[str, Any]:
    """Returns this process's settings that decide how torch rounds."""
    return {
        "num_threads": torch.get_num_threads(),
        "default_dtype": torch.get_default_dtype(),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "deterministic_warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "mkldnn": torch.backends.mkldnn.enabled,
        "cudnn_tf32": torch.backends.cudnn.allow_tf32,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "cudnn_deterministic": torch.backends.cudnn.deterministic,
    }
