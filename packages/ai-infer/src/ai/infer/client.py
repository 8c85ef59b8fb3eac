"""`InferencerClient`: asks a worker that some `Inferencer` started, from any process of this machine."""

import json
import os
import re
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from ai.infer.arguments import check_seconds, whole
from ai.infer.connection.async_session import AsyncParts, AsyncSession
from ai.infer.connection.connection import Connection
from ai.infer.connection.handshake import Transport
from ai.infer.connection.packed_inputs import PackedInputs, pack
from ai.infer.connection.pending_request import END, PendingRequest
from ai.infer.connection.raw_request import RawRequest
from ai.infer.connection.session import Session
from ai.infer.errors import InferError
from ai.infer.stats import Stats
from ai.infer.transport.frames import Kind
from ai.infer.transport.slots import MIN_SLOT_BYTES
from ai.infer.transport.trees import RawInput, Tree

_SERVER = re.compile(r"\w+://|[\w.-]+:\d+/?$")  # a URL, or a host and its port

# A forked child inherits open connections; it closes its copies and connects anew when it first asks.
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
            answers, dies, or hangs by the `stall_timeout_s` of its `Inferencer`.
        transport: "auto" uses shared memory where the system has it, "shm" insists, "socket" declines.
        slot_bytes: room for one request and one reply in shared memory; larger ones go through the socket.

    Raises:
        TypeError: an option is of another kind.
        ValueError: an option is out of range, or the address is that of a server, which is asked over HTTP.

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
        if not isinstance(address, (str, os.PathLike)):
            raise TypeError(f"address must be the folder of an inferencer, not {address!r}")
        if _SERVER.match(os.fsdecode(address)) and not os.path.exists(address):
            raise ValueError(
                f"address must be the folder of an inferencer, not {address!r}: a server is asked over HTTP"
            )
        check_seconds(timeout_s=timeout_s)
        if whole(slot_bytes) is None:
            raise TypeError(f"slot_bytes must be a whole number, not {slot_bytes!r}")
        if transport not in ("auto", "shm", "socket"):
            raise ValueError(f"transport must be 'auto', 'shm' or 'socket', not {transport!r}")
        if not MIN_SLOT_BYTES <= slot_bytes <= 1 << 30 or slot_bytes % 4096:
            raise ValueError(f"slot_bytes must be a multiple of 4096 from 4096 to 2**30, not {slot_bytes}")
        self.address = os.fspath(address)
        self._transport: Transport = transport
        self._slot_bytes = int(slot_bytes)
        self._start(timeout_s)

    def _start(self, timeout_s: float | None) -> None:
        self._session = Session(self.address, self._transport, self._slot_bytes, timeout_s)
        self._async = AsyncSession(self._session)
        _clients.add(self)

    @property
    def timeout_s(self) -> float | None:
        """How long a call may take, in seconds; None: until the worker answers, dies or hangs."""
        return self._session.timeout_s

    @timeout_s.setter
    def timeout_s(self, seconds: float | None) -> None:
        check_seconds(timeout_s=seconds)
        self._session.timeout_s = seconds

    def __getstate__(self) -> dict[str, Any]:
        return {
            "address": self.address,
            "timeout_s": self.timeout_s,
            "_transport": self._transport,
            "_slot_bytes": self._slot_bytes,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        timeout_s = state.pop("timeout_s")
        self.__dict__.update(state)
        self._start(timeout_s)

    def _forget_after_fork(self) -> None:
        self._session.abandon()
        self._start(self.timeout_s)

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
            TimeoutError: the client's `timeout_s` passed, or the worker hangs; the request is cancelled.
        """
        session = self._session
        deadline = session.deadline()
        connection, request = session.submit(args, kwargs, deadline)
        try:
            version, output = connection.result(request, deadline)
        except (TimeoutError, KeyboardInterrupt):
            connection.cancel(request)
            raise
        session.saw(version)
        return output

    def infer_async(self, *args: Tree, **kwargs: Tree) -> int:
        """Sends a request and returns its id at once.

        Only while all of the client's slots are busy does it wait, or with a request that is larger than a slot,
        until the worker has taken it.

        Each id is to be given to `wait_for_resp` or `cancel` once; until then its reply takes memory.
        """
        return self._session.keep(self._session.submit(args, kwargs, self._session.deadline()))

    def wait_for_resp(self, request_id: int, timeout: float | None = None) -> Tree:
        """Waits for the reply to a request and returns it.

        Args:
            request_id: what `infer_async` returned.
            timeout: in seconds; None: the client's `timeout_s`.

        Raises:
            ValueError: no such request waits for its reply.
            TimeoutError: the time passed, or the worker hangs; the request is still on its way and can be waited for
                again.
            RequestError: the model failed on this request.
            WorkerDiedError: the worker stopped or died.
        """
        session = self._session
        connection, request = session.find(request_id)
        try:
            version, output = connection.result(request, session.deadline(timeout))
        except InferError:
            session.pending.pop(request_id, None)
            raise
        session.pending.pop(request_id, None)
        session.saw(version)
        return output

    def is_ready(self, request_id: int) -> bool:
        """Returns whether `wait_for_resp` would return, or raise, at once."""
        connection, request = self._session.find(request_id)
        return connection.ready(request)

    def cancel(self, request_id: int) -> None:
        """Drops a request: the worker skips it if it has not begun, and its reply is thrown away.

        Raises:
            ValueError: no such request waits for its reply.
        """
        connection, request = self._session.find(request_id)
        self._session.pending.pop(request_id, None)
        connection.cancel(request)

    def stream(self, *args: Tree, **kwargs: Tree) -> Iterator[Tree]:
        """Yields the reply of a model that yields it, part by part, while the worker makes the next ones.

        Between two parts the worker answers others. The request is sent when the first part is asked for, and ends
        when the iterator is closed or collected: the model's generator is closed, too. A worker is at most 64 parts,
        or 64 MiB and a part, ahead of who takes them. `timeout_s` is for each part. Weights that are pushed meanwhile
        hold from the next part on. A model that returns a reply is a stream of one part.

        Raises:
            RequestError: the model failed, after the parts that came before.
            WorkerDiedError: the worker stopped or died.
            TimeoutError: a part took longer than `timeout_s`; the request is cancelled.

        >>> import torch
        >>> from ai.infer import Inferencer
        >>> class Count(torch.nn.Module):
        ...     def forward(self, n):
        ...         yield from range(n)
        >>> with Inferencer(Count()) as inferencer:
        ...     list(inferencer.stream(3))
        [0, 1, 2]
        """
        session = self._session
        connection, request = session.stream(args, kwargs, session.deadline())
        try:
            while True:
                version, part = connection.result(request, session.deadline())
                session.saw(version)
                if part is END:
                    return
                yield part
                connection.took_part(request)
        finally:
            connection.drop(request)

    def multi_infer(self, inputs: Sequence[Tree]) -> list[Tree]:
        """Returns the model's output for each of several inputs; inputs of one shape travel together.

        Args:
            inputs: for each a tensor `(rows, …)`, or a tuple of the model's positional arguments.

        Returns:
            The outputs in the order of the inputs. If one fails, its error is raised.
        """
        if isinstance(inputs, (Tensor, str, bytes, Mapping)) or not isinstance(inputs, Iterable):
            raise TypeError(f"inputs must be a list of inputs, not {type(inputs).__name__}: call the model for one")
        inputs = list(inputs)
        session = self._session
        deadline = session.deadline()
        outputs: list[Tree] = [None] * len(inputs)
        sent: list[tuple[PackedInputs, Connection, PendingRequest]] = []
        try:
            for packed in pack(inputs, session.pick(deadline).batch_size, session.prepare):
                connection = session.pick(deadline)
                request = connection.submit(packed.layout, packed.parts, packed.device, deadline)
                sent.append((packed, connection, request))
            for packed, connection, request in sent:
                version, output = connection.result(request, deadline)
                session.saw(version)
                if len(packed.indices) == 1:
                    outputs[packed.indices[0]] = output
                    continue
                for index, piece in zip(packed.indices, packed.split(output), strict=True):
                    outputs[index] = piece
        except BaseException:
            for _, connection, request in sent:
                connection.cancel(request)
            raise
        return outputs

    # In an event loop -------------------------------------------------------------------------------------------

    async def ainfer(self, *args: Tree, **kwargs: Tree) -> Tree:
        """Like calling the client, without holding up the event loop; cancelling the task cancels the request."""
        return await self._async.infer(args, kwargs)

    async def astream(self, *args: Tree, **kwargs: Tree) -> AsyncIterator[Tree]:
        """Like `stream`, without holding up the event loop."""
        parts = await self._async.stream(args, kwargs)
        try:
            async for part in parts:
                yield part
        finally:
            parts.cancel()

    async def stream_raw(self, inputs: Sequence[RawInput], timeout_s: float | None = None) -> AsyncParts:
        """Like `astream` for tensors that are there as bytes; the request is on its way when it returns."""
        return await self._async.stream_raw(inputs, timeout_s)

    async def ainfer_raw(self, *inputs: RawInput) -> Tree:
        """Like `ainfer` for tensors that are there as bytes; those of the output are of `RawTensor` too."""
        return await self._async.infer_raw(inputs)

    def start_raw(
        self, inputs: Sequence[RawInput], done: Callable[[PendingRequest], object], timeout_s: float | None = None
    ) -> RawRequest | None:
        """Sends a request of raw tensors without a task or a future, as a server does thousands of times a second.

        Args:
            inputs: the positional arguments.
            done: called with the request in the running event loop, once `RawRequest.result` has something to tell.
            timeout_s: how long that may take; None: the client's `timeout_s`.

        Returns:
            The request; None: there is no room or no connection just now, which `ainfer_raw` would wait for.
        """
        return self._async.start_raw(inputs, done, timeout_s)

    async def await_resp(self, request_id: int, timeout: float | None = None) -> Tree:
        """Like `wait_for_resp`, without holding up the event loop.

        A wait that was given up, by its time or by `asyncio.wait_for`, can be taken up again.
        """
        return await self._async.wait(request_id, timeout)

    # About the worker -------------------------------------------------------------------------------------------

    @property
    def n_pending(self) -> int:
        """Requests of this client that are on their way."""
        return self._session.n_pending

    @property
    def version(self) -> int:
        """The newest version of the weights that any reply to this client was made with."""
        return self._session.version

    def ping(self, timeout: float | None = None) -> float:
        """Returns how long the worker takes to answer a question that needs no model, in seconds.

        A worker answers between batches. Raises like a call.
        """
        deadline = self._session.deadline(timeout)
        start = time.perf_counter()
        for connection in self._session.connect(deadline):
            connection.ask(Kind.PING, deadline)
        return time.perf_counter() - start

    def stats(self, timeout: float | None = None) -> Stats:
        """Returns the workers' counters, those of several replicas added up; `timeout` is as for `ping`."""
        deadline = self._session.deadline(timeout)
        answers = [connection.ask(Kind.STATS, deadline) for connection in self._session.connect(deadline)]
        return Stats.total([Stats(**json.loads(answer)) for answer in answers])

    def close(self) -> None:
        """Hangs up and drops what was asked; the worker goes on, and the next question connects anew."""
        self._session.close()

    def __enter__(self) -> "InferencerClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_session"):  # not if a bad option stopped __init__
            self.close()

    def __repr__(self) -> str:
        return f"InferencerClient({self.address!r})"
