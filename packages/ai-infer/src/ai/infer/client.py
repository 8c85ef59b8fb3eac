"""`InferencerClient`: asks a worker that some `Inferencer` started, from any process of this machine."""

import asyncio
import json
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ai.infer.connection.connection import Connection
from ai.infer.connection.handshake import Transport
from ai.infer.connection.packed_inputs import Pack, are_alike
from ai.infer.connection.pending_request import Ticket
from ai.infer.connection.raw_request import RawCall
from ai.infer.errors import InferError, WorkerDiedError
from ai.infer.stats import Stats
from ai.infer.transport.frames import Kind
from ai.infer.transport.slots import MIN_SLOT_BYTES
from ai.infer.transport.wire import Layout, Node, RawTensor, Tree, flatten, layout_of, positional_layout, with_rows

ADDRESS_FILE = "inferencer.json"
_RECONNECT_INTERVALS_S = (0.02, 0.2)  # first and last, between two attempts to reach a worker that is restarted
_MAX_LAYOUTS = 1024

# A forked child inherits open lines; it closes its copies and dials anew when it first asks.
_clients: "weakref.WeakSet[InferencerClient]" = weakref.WeakSet()


def _forget_all_after_fork() -> None:
    for client in list(_clients):
        client._forget_after_fork()


os.register_at_fork(after_in_child=_forget_all_after_fork)


class InferencerClient:
    """Asks the model of an `Inferencer`, as if it were the model; made by `Inferencer.create_client`.

    It holds an address and no worker: it can be pickled, sent to other processes, forked, and used from several
    threads. It connects when it first asks. Tensors of any number of rows travel as one request.

    Args:
        address: the inferencer's folder.
        timeout_s: how long a call may take, in seconds, before it raises `TimeoutError`; None: until the worker
            answers or dies.
        transport: "auto" uses shared memory where the system has it, "shm" insists, "socket" declines.
        slot_bytes: room for one request and one reply in shared memory; larger ones go through the socket.

    Raises:
        ValueError: an option is out of range.

    >>> import torch
    >>> from ai.infer import Inferencer
    >>> with Inferencer(torch.nn.Linear(3, 2)) as inferencer:
    ...     client = inferencer.create_client()
    ...     request_id = client.infer_async(torch.zeros(5, 3))
    ...     client.wait_for_resp(request_id).shape
    torch.Size([5, 2])
    """

    def __init__(
        self,
        address: str | os.PathLike[str],
        *,
        timeout_s: float | None = None,
        transport: Transport = "auto",
        slot_bytes: int = 1 << 20,
    ) -> None:
        if timeout_s is not None and not timeout_s > 0:
            raise ValueError(f"timeout_s must be positive or None, not {timeout_s}")
        if transport not in ("auto", "shm", "socket"):
            raise ValueError(f"transport must be 'auto', 'shm' or 'socket', not {transport!r}")
        if not MIN_SLOT_BYTES <= slot_bytes <= 1 << 30 or slot_bytes % 4096:
            raise ValueError(f"slot_bytes must be a multiple of 4096 from 4096 to 2**30, not {slot_bytes}")
        self.address = os.fspath(address)
        self.timeout_s = timeout_s
        self._transport: Transport = transport
        self._slot_bytes = slot_bytes
        self._start()

    def _start(self) -> None:
        self._lock = threading.RLock()
        self._ids = count(1)
        self._pending: dict[int, tuple[Connection, Ticket]] = {}
        self._connections: list[Connection | None] = []
        self._layouts: dict[tuple[torch.dtype, torch.Size], Layout] = {}
        self._single: Connection | None = None  # the only replica's line, while it is up
        self._version = 0
        _clients.add(self)

    def __getstate__(self) -> dict[str, Any]:
        return {
            "address": self.address,
            "timeout_s": self.timeout_s,
            "_transport": self._transport,
            "_slot_bytes": self._slot_bytes,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def _forget_after_fork(self) -> None:
        for connection in self._connections:
            if connection is not None:
                connection.abandon()
        self._start()

    # Asking -----------------------------------------------------------------------------------------------------

    def __call__(self, *args: Tree, **kwargs: Tree) -> Tree:
        """Returns what the model returns for these arguments.

        Args:
            *args: tensors `(rows, …)` on any device, or trees of tensors and constants.
            **kwargs: likewise.

        Returns:
            The model's output, on the first input tensor's device.

        Raises:
            RequestError: the model failed on this request; the message carries the worker's traceback.
            WorkerDiedError: the worker stopped or died.
            TimeoutError: the client's `timeout_s` passed; the request is cancelled.
        """
        deadline = self._deadline(self.timeout_s)
        connection, ticket = self._submit(args, kwargs, deadline)
        try:
            version, output = connection.result(ticket, deadline)
        except (TimeoutError, KeyboardInterrupt):
            connection.cancel(ticket)
            raise
        self._saw(version)
        return output

    def infer_async(self, *args: Tree, **kwargs: Tree) -> int:
        """Sends a request and returns its id at once.

        Only while all of the client's slots are busy does it wait, or with a request that is larger than a slot,
        until the worker has taken it.

        Each id is to be given to `wait_for_resp` or `cancel` once; until then its reply takes memory.
        """
        connection, ticket = self._submit(args, kwargs, self._deadline(self.timeout_s))
        request_id = next(self._ids)
        self._pending[request_id] = (connection, ticket)
        return request_id

    def wait_for_resp(self, request_id: int, timeout: float | None = None) -> Tree:
        """Waits for the reply to a request and returns it.

        Args:
            request_id: what `infer_async` returned.
            timeout: in seconds; None: the client's `timeout_s`.

        Raises:
            ValueError: no such request waits for its reply.
            TimeoutError: the time passed; the request is still on its way and can be waited for again.
            RequestError: the model failed on this request.
            WorkerDiedError: the worker stopped or died.
        """
        connection, ticket = self._find(request_id)
        deadline = self._deadline(self.timeout_s if timeout is None else timeout)
        try:
            version, output = connection.result(ticket, deadline)
        except InferError:
            self._pending.pop(request_id, None)
            raise
        self._pending.pop(request_id, None)
        self._saw(version)
        return output

    def is_ready(self, request_id: int) -> bool:
        """Returns whether `wait_for_resp` would return, or raise, at once."""
        connection, ticket = self._find(request_id)
        return connection.ready(ticket)

    def cancel(self, request_id: int) -> None:
        """Drops a request: the worker skips it if it has not begun, and its reply is thrown away.

        Raises:
            ValueError: no such request waits for its reply.
        """
        connection, ticket = self._find(request_id)
        self._pending.pop(request_id, None)
        connection.cancel(ticket)

    def multi_infer(self, inputs: Sequence[Tree]) -> list[Tree]:
        """Returns the model's output for each of several inputs; inputs of one shape travel together.

        Args:
            inputs: for each a tensor `(rows, …)`, or a tuple of the model's positional arguments.

        Returns:
            The outputs in the order of the inputs. If one fails, its error is raised.
        """
        deadline = self._deadline(self.timeout_s)
        outputs: list[Tree] = [None] * len(inputs)
        sent: list[tuple[Pack, Connection, Ticket]] = []
        try:
            for pack in self._pack(inputs, self._pick(deadline).batch_size):
                connection = self._pick(deadline)
                sent.append((pack, connection, connection.submit(pack.layout, pack.parts, pack.device, deadline)))
            for pack, connection, ticket in sent:
                version, output = connection.result(ticket, deadline)
                self._saw(version)
                if len(pack.indices) == 1:
                    outputs[pack.indices[0]] = output
                    continue
                pieces = pack.split(output)
                if pieces is None:  # the model's output has no rows to share out: ask one by one
                    pieces = [self._ask_alone(inputs[index], deadline) for index in pack.indices]
                for index, piece in zip(pack.indices, pieces, strict=True):
                    outputs[index] = piece
        except BaseException:
            for _, connection, ticket in sent:
                connection.cancel(ticket)
            raise
        return outputs

    def _pack(self, inputs: Sequence[Tree], max_rows: int) -> Iterator[Pack]:
        """Yields the inputs in packs of one shape and at most `max_rows` rows."""
        if are_alike(inputs):
            layout, _, device = self._prepare((inputs[0],), {})
            n_together = max(1, max_rows // (layout.rows or max_rows))
            for start in range(0, len(inputs), n_together):
                pieces = [x.detach() if x.requires_grad else x for x in inputs[start : start + n_together]]
                rows = [layout.rows or 0] * len(pieces)
                whole = layout if len(pieces) == 1 else with_rows(layout, sum(rows))
                yield Pack(list(range(start, start + len(pieces))), whole, [pieces], rows, device)
            return
        open_packs: dict[str, Pack] = {}
        for index, request in enumerate(inputs):
            layout, tensors, device = self._prepare(request if isinstance(request, tuple) else (request,), {})
            if layout.group is None:
                yield Pack([index], layout, [[x] for x in tensors], [0], device)
                continue
            pack = open_packs.get(layout.group)
            if pack is not None and pack.takes(layout, device, max_rows):
                pack.add(index, layout, tensors)
                continue
            if pack is not None:
                yield pack.finish()
            open_packs[layout.group] = Pack([index], layout, [[x] for x in tensors], [layout.rows or 0], device)
        for pack in open_packs.values():
            yield pack.finish()

    async def ainfer(self, *args: Tree, **kwargs: Tree) -> Tree:
        """Like calling the client, without holding up the event loop; cancelling the task cancels the request."""
        deadline = self._deadline(self.timeout_s)
        connection = self._single
        if connection is None or not connection.alive:
            connection = await asyncio.to_thread(self._pick, deadline)
        layout, tensors, device = self._prepare(args, kwargs)
        ticket = await connection.loop_side.submit(layout, tensors, device, deadline)
        return await self._await(connection, ticket, deadline)

    async def ainfer_raw(self, *tensors: RawTensor) -> Tree:
        """Like `ainfer` for tensors that are there as bytes; those of the output are of `RawTensor` too."""
        deadline = self._deadline(self.timeout_s)
        connection = self._single
        if connection is None or not connection.alive:
            connection = await asyncio.to_thread(self._pick, deadline)
        layout = positional_layout(tuple([x.dtype for x in tensors]), tuple([x.shape for x in tensors]))
        ticket = await connection.loop_side.submit(layout, tensors, None, deadline, raw=True)
        return await self._await(connection, ticket, deadline)

    def start_raw(self, tensors: Sequence[RawTensor], done: Callable[[RawCall], object]) -> RawCall | None:
        """Sends a request of raw tensors without a task or a future, as a server does thousands of times a second.

        Args:
            tensors: the positional arguments.
            done: called in the running event loop once `RawCall.result` has something to tell.

        Returns:
            The request; None: there is no room or no connection just now, which `ainfer_raw` would wait for.
        """
        connection = self._single
        if connection is None or not connection.alive:
            living = [line for line in self._connections if line is not None and line.alive]
            if not living or len(living) < len(self._connections):
                return None
            connection = min(living, key=lambda line: line.n_pending)
        layout = positional_layout(tuple([x.dtype for x in tensors]), tuple([x.shape for x in tensors]))
        call = RawCall(connection, done, self._saw)
        call.ticket = connection.loop_side.start(layout, tensors, call.finish, self._deadline(self.timeout_s))
        return None if call.ticket is None else call

    async def _await(self, connection: Connection, ticket: Ticket, deadline: float | None) -> Tree:
        try:
            version, output = await connection.loop_side.result(ticket, deadline)
        except BaseException:
            connection.cancel(ticket)
            raise
        self._saw(version)
        return output

    async def await_resp(self, request_id: int) -> Tree:
        """Like `wait_for_resp`, without holding up the event loop."""
        connection, ticket = self._find(request_id)
        try:
            version, output = await connection.loop_side.result(ticket)
        finally:
            self._pending.pop(request_id, None)
        self._saw(version)
        return output

    @property
    def n_pending(self) -> int:
        """Requests of this client that are on their way."""
        return sum(line.n_pending for line in self._connections if line is not None and line.alive)

    # About the worker -------------------------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """The newest version of the weights that any reply to this client was made with."""
        return self._version

    def _saw(self, version: int) -> None:
        if version > self._version:
            self._version = version

    def ping(self, timeout: float | None = None) -> float:
        """Returns how long the worker takes to answer a question that needs no model, in seconds.

        A worker answers between batches. Raises like a call.
        """
        deadline = self._deadline(self.timeout_s if timeout is None else timeout)
        start = time.perf_counter()
        for connection in self._connect(deadline):
            connection.ask(Kind.PING, deadline)
        return time.perf_counter() - start

    def stats(self) -> Stats:
        """Returns the workers' counters, those of several replicas added up."""
        deadline = self._deadline(self.timeout_s)
        answers = [connection.ask(Kind.STATS, deadline) for connection in self._connect(deadline)]
        return Stats.total([Stats(**json.loads(answer)) for answer in answers])

    def close(self) -> None:
        """Hangs up and drops what was asked; the worker goes on, and the next question connects anew."""
        with self._lock:
            self._pending.clear()
            self._single = None
            connections, self._connections = self._connections, []
        for connection in connections:
            if connection is not None:
                connection.close()

    def __enter__(self) -> "InferencerClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_connections"):  # not if a bad option stopped __init__
            self.close()

    def __repr__(self) -> str:
        return f"InferencerClient({self.address!r})"

    # Sending ----------------------------------------------------------------------------------------------------

    @staticmethod
    def _deadline(timeout: float | None) -> float | None:
        return None if timeout is None else time.monotonic() + timeout

    def _find(self, request_id: int) -> tuple[Connection, Ticket]:
        try:
            return self._pending[request_id]
        except KeyError:
            raise ValueError(f"request_id ({request_id}) must be that of a request whose reply is due") from None

    def _prepare(
        self, args: tuple[Tree, ...], kwargs: dict[str, Tree]
    ) -> tuple[Layout, Sequence[Tensor], torch.device | None]:
        """Returns a request's layout, its tensors, and the device that its reply is to lie on (None: the CPU)."""
        if len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
            x = args[0]
            key = (x.dtype, x.shape)
            layout = self._layouts.get(key)
            if layout is None or x.layout is not torch.strided:
                if len(self._layouts) >= _MAX_LAYOUTS:
                    self._layouts.clear()
                self._layouts[key] = layout = layout_of(*_flatten_call(args, kwargs))
            return layout, (x.detach(),) if x.requires_grad else args, None if x.is_cpu else x.device
        node, tensors = _flatten_call(args, kwargs)
        devices = [x.device for x in tensors[:1] if not x.is_cpu]
        return layout_of(node, tensors), tensors, devices[0] if devices else None

    def _submit(
        self, args: tuple[Tree, ...], kwargs: dict[str, Tree], deadline: float | None
    ) -> tuple[Connection, Ticket]:
        layout, tensors, device = self._prepare(args, kwargs)
        connection = self._single
        if connection is None or not connection.alive:
            connection = self._pick(deadline)
        return connection, connection.submit(layout, tensors, device, deadline)

    def _ask_alone(self, request: Tree, deadline: float | None) -> Tree:
        connection, ticket = self._submit(request if isinstance(request, tuple) else (request,), {}, deadline)
        return connection.result(ticket, deadline)[1]

    # Connecting -------------------------------------------------------------------------------------------------

    def _pick(self, deadline: float | None) -> Connection:
        """Returns the line to the replica with the fewest requests on their way."""
        if self._single is not None and self._single.alive:
            return self._single
        living = [connection for connection in self._connections if connection is not None and connection.alive]
        if not living or len(living) < len(self._connections):
            living = self._connect(deadline)
        return living[0] if len(living) == 1 else min(living, key=lambda connection: connection.n_pending)

    def _connect(self, deadline: float | None) -> list[Connection]:
        """Connects to every replica that answers and returns their lines; waits for one that is being restarted."""
        folder = Path(self.address)
        interval, longest = _RECONNECT_INTERVALS_S
        with self._lock:
            while True:
                try:
                    about = json.loads((folder / ADDRESS_FILE).read_text())
                except (OSError, ValueError):
                    raise WorkerDiedError(f"no inferencer runs at {folder}: it was stopped, or never started") from None
                n_replicas: int = about["replicas"]
                self._connections += [None] * (n_replicas - len(self._connections))
                refusal: WorkerDiedError | None = None
                for index, connection in enumerate(self._connections):
                    if connection is not None and connection.alive:
                        continue
                    try:
                        self._connections[index] = Connection(
                            folder / f"worker-{index}", self._transport, self._slot_bytes, deadline
                        )
                        if connection is not None:
                            connection.close()
                    except WorkerDiedError as error:
                        refusal = error
                living = [line for line in self._connections if line is not None and line.alive]
                if living:
                    self._single = living[0] if n_replicas == 1 else None
                    return living
                assert refusal is not None
                if not about["restart"]:
                    raise refusal
                if deadline is not None and time.monotonic() >= deadline:
                    raise TimeoutError("no replica was restarted in time") from refusal
                time.sleep(interval)
                interval = min(1.5 * interval, longest)  # many clients that look often would slow down its start


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
