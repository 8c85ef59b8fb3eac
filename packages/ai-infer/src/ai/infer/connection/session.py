"""What a client holds, whichever way it asks: a connection to each replica, and the requests on their way."""

import json
import threading
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import torch
from torch import Tensor

from ai.infer.connection.connection import Connection
from ai.infer.connection.handshake import Transport
from ai.infer.connection.hang_check import HangCheck
from ai.infer.connection.pending_request import PendingRequest
from ai.infer.errors import WorkerDiedError
from ai.infer.transport.socket_folder import ADDRESS_FILE, VITALS_FILE
from ai.infer.transport.trees import Node, Tree, flatten
from ai.infer.transport.wire import Layout, has_channels_last, layout_of
from ai.model.arguments import check_real

_RECONNECT_INTERVALS_S = (0.02, 0.2)  # first and last, between two attempts to reach a worker that is restarted
_MAX_LAYOUTS = 1024

Sent = tuple[Connection, PendingRequest]


class Session:
    """The core of a client: it chooses a replica, connects anew where one died, and keeps what was asked.

    Args:
        address: the inferencer's folder.
        transport: see `InferencerClient`.
        slot_bytes: likewise.
        timeout_s: likewise.
    """

    def __init__(self, address: str, transport: Transport, slot_bytes: int, timeout_s: float | None) -> None:
        self.address = address
        self.timeout_s = timeout_s
        self._transport: Transport = transport
        self._slot_bytes = slot_bytes
        self._lock = threading.RLock()
        self._ids = count(1)
        self.pending: dict[int, Sent] = {}
        """By the ids that callers were given."""
        self.connections: list[Connection | None] = []
        """To each replica; None: not yet."""
        self._layouts: dict[tuple[torch.dtype, torch.Size, bool], Layout] = {}
        self._single: Connection | None = None  # to the only replica, while it is up
        self.version = 0
        """The newest version of the weights that any reply was made with."""

    def saw(self, version: int) -> None:
        """Takes note of the version that a reply was made with."""
        if version > self.version:
            self.version = version

    def deadline(self, timeout: float | None = None) -> float | None:
        """Returns when a wait of `timeout` seconds ends, or one of the client's `timeout_s` if it is None."""
        if timeout is None:
            timeout = self.timeout_s
        else:
            check_real(or_none=True, timeout=timeout)
        return None if timeout is None else time.monotonic() + float(timeout)

    # Requests ---------------------------------------------------------------------------------------------------

    def keep(self, sent: Sent) -> int:
        """Returns the id under which a request waits for its reply to be fetched."""
        request_id = next(self._ids)
        self.pending[request_id] = sent
        return request_id

    def find(self, request_id: int) -> Sent:
        """Returns a request by its id.

        Raises:
            ValueError: no such request waits for its reply.
        """
        try:
            return self.pending[request_id]
        except (KeyError, TypeError):
            raise ValueError(f"request_id ({request_id}) must be that of a request whose reply is due") from None

    def prepare(
        self, args: tuple[Tree, ...], kwargs: dict[str, Tree]
    ) -> tuple[Layout, Sequence[Tensor], torch.device | None]:
        """Returns a request's layout, its tensors, and the device that its reply is to lie on (None: the CPU)."""
        if len(args) == 1 and not kwargs and isinstance(args[0], Tensor) and not args[0].is_nested:
            x = args[0]
            key = (x.dtype, x.shape, not x.is_contiguous() and has_channels_last(x))
            layout = self._layouts.get(key)
            if layout is None or x.layout is not torch.strided:
                if len(self._layouts) >= _MAX_LAYOUTS:
                    self._layouts.clear()
                self._layouts[key] = layout = layout_of(*_flatten_call(args, kwargs))
            return layout, (x.detach(),) if x.requires_grad else args, None if x.is_cpu else x.device
        node, tensors = _flatten_call(args, kwargs)
        devices = [x.device for x in tensors[:1] if not x.is_cpu]
        return layout_of(node, tensors), tensors, devices[0] if devices else None

    def submit(self, args: tuple[Tree, ...], kwargs: dict[str, Tree], deadline: float | None) -> Sent:
        """Sends a request; see `Connection.submit` for how long it waits."""
        layout, tensors, device = self.prepare(args, kwargs)
        connection = self._single
        if connection is None or not connection.alive:
            connection = self.pick(deadline)
        return connection, connection.submit(layout, tensors, device, deadline)

    def stream(self, args: tuple[Tree, ...], kwargs: dict[str, Tree], deadline: float | None) -> Sent:
        """Sends a request whose reply is to come in parts."""
        layout, tensors, device = self.prepare(args, kwargs)
        connection = self.pick(deadline)
        return connection, connection.submit_stream(layout, tensors, device)

    # Connections ------------------------------------------------------------------------------------------------

    @property
    def n_pending(self) -> int:
        """Requests on their way."""
        return sum(each.n_pending for each in self.connections if each is not None and each.alive)

    def ready(self) -> Connection | None:
        """Returns the connection to ask next if that takes no waiting; None: one has yet to be made."""
        if self._single is not None and self._single.alive:
            return self._single
        living = [each for each in self.connections if each is not None and each.alive]
        if not living or len(living) < len(self.connections):
            return None
        return living[0] if len(living) == 1 else min(living, key=lambda each: each.n_pending)

    def pick(self, deadline: float | None) -> Connection:
        """Returns the connection to the replica with the fewest requests on their way; connects where needed."""
        return self.ready() or min(self.connect(deadline), key=lambda each: each.n_pending)

    def connect(self, deadline: float | None) -> list[Connection]:
        """Connects to every replica that answers; waits for one being restarted as long as a start may take."""
        folder = Path(self.address)
        interval, longest = _RECONNECT_INTERVALS_S
        began = time.monotonic()
        with self._lock:
            while True:
                try:
                    about = json.loads((folder / ADDRESS_FILE).read_text())
                except (FileNotFoundError, NotADirectoryError, ValueError):
                    raise WorkerDiedError(f"no inferencer runs at {folder}: it was stopped, or never started") from None
                n_replicas: int = about["replicas"]
                self.connections += [None] * (n_replicas - len(self.connections))
                refusal: WorkerDiedError | None = None
                hangs: TimeoutError | None = None
                for index, connection in enumerate(self.connections):
                    if connection is not None and connection.alive:
                        continue
                    try:
                        check_hang = HangCheck(folder / VITALS_FILE.format(index), about["stall_timeout_s"])
                        self.connections[index] = Connection(
                            folder / f"worker-{index}", self._transport, self._slot_bytes, check_hang, deadline
                        )
                        if connection is not None:
                            connection.close()
                    except WorkerDiedError as error:
                        refusal = error
                    except TimeoutError as error:
                        hangs = error
                living = [each for each in self.connections if each is not None and each.alive]
                if living:
                    self._single = living[0] if n_replicas == 1 else None
                    return living
                if hangs is not None:
                    raise hangs
                assert refusal is not None
                if not about["restart"]:
                    raise refusal
                limit = began + about["start_timeout_s"] if deadline is None else deadline
                if time.monotonic() >= limit:
                    raise TimeoutError("no replica was restarted in time") from refusal
                time.sleep(interval)
                interval = min(1.5 * interval, longest)  # many clients that look often would slow down its start

    def close(self) -> None:
        """Hangs up and drops what was asked; the next question connects anew."""
        with self._lock:
            self.pending.clear()
            self._single = None
            connections, self.connections = self.connections, []
        for connection in connections:
            if connection is not None:
                connection.close()

    def abandon(self) -> None:
        """Closes a forked child's copies of all connections."""
        for connection in self.connections:
            if connection is not None:
                connection.abandon()


def _flatten_call(args: tuple[Tree, ...], kwargs: dict[str, Tree]) -> tuple[Node, list[Tensor]]:
    """Returns the form of a call's `(args, kwargs)` and its tensors; an error names the argument."""
    nodes: list[Node] = []
    tensors: list[Tensor] = []
    for index, argument in enumerate(args):
        node, found = flatten(argument, f"argument {index}")
        nodes.append(node)
        tensors += found
    pairs: list[Node] = []
    for name, argument in kwargs.items():
        node, found = flatten(argument, name)
        pairs.append([name, node])
        tensors += found
    return ["u", ["u", *nodes], ["d", *pairs]], tensors
