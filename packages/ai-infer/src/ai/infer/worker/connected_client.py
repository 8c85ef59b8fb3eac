"""A client as its worker sees it, and one request of it."""

import json
import os
import socket
import struct
import time

import torch
from torch import Tensor

from ai.infer.errors import InferError
from ai.infer.transport.frames import FrameStream
from ai.infer.transport.shared_memory import anonymous_file
from ai.infer.transport.slots import MIN_SLOT_BYTES, SLOTS_PER_CLIENT, Area, Board, area_bytes
from ai.infer.transport.wire import Layout
from ai.infer.worker.rows.batch_axes import Form

MAX_UNSENT_BYTES = 1 << 26
"""A client that does not read its replies is not listened to beyond this."""
_MAX_CANCELLED = 4 * SLOTS_PER_CLIENT  # a client has no more requests on their way by socket than it has slots


class ConnectedClient:
    """One connected client.

    Args:
        connection: its socket.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.stream = FrameStream(connection)
        self.greeted = False
        self.area: Area | None = None
        self.index = -1  # of its slots on the board, in clients
        self.reply_event = -1
        self.last: list[Request | None] = []  # in each slot; most requests differ from it in their numbers alone
        self.cancelled: dict[int, None] = {}  # ids of requests by socket, the latest ones: some came too late
        self._process = _identify(connection)

    def open_area(self, index: int, slot_bytes: int, board: Board, board_file: int, worker_event: int) -> list[int]:
        """Makes the client's slots; returns the files to hand over, of which the last two are the caller's to close."""
        if not isinstance(slot_bytes, int) or not MIN_SLOT_BYTES <= slot_bytes <= 1 << 30 or slot_bytes % 4096:
            raise InferError(f"slot_bytes must be a multiple of 4096 from 4096 to 2**30, not {slot_bytes}")
        descriptor = anonymous_file(area_bytes(slot_bytes))
        try:
            self.reply_event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self.area = Area(descriptor, slot_bytes, board, index * SLOTS_PER_CLIENT)
        except BaseException:
            os.close(descriptor)
            raise
        self.last = [None] * SLOTS_PER_CLIENT
        self.index = index
        return [board_file, descriptor, worker_event, self.reply_event]

    def is_gone(self) -> bool:
        """Returns whether the client's process has ended, though a child of it may keep the socket open."""
        return self._process is not None and _started(self._process[0]) != self._process[1]

    def cancel(self, request_id: int) -> None:
        """Takes note that a request by socket is wanted no more; it may be answered already."""
        self.cancelled[request_id] = None
        if len(self.cancelled) > _MAX_CANCELLED:
            del self.cancelled[next(iter(self.cancelled))]

    def close(self) -> None:
        """Lets go of all that belonged to the client."""
        self.stream.close()
        if self.reply_event >= 0:
            os.close(self.reply_event)
            self.reply_event = -1
        self.area = None
        self.last.clear()  # each holds views of the area, and this client


class Request:
    """One request in the worker's queue; its tensors are views of the client's slot, or of a frame."""

    __slots__ = (
        "arrived",
        "client",
        "form",
        "group",
        "header_number",
        "id",
        "layout",
        "parts",
        "reply",
        "reply_bytes",
        "rows",
        "slot",
        "tensors",
    )

    def __init__(
        self,
        client: ConnectedClient,
        slot: int,
        request_id: int,
        layout: Layout,
        tensors: list[Tensor],
        header_number: int = -1,
    ) -> None:
        self.client = client
        self.slot = slot  # on the board; -1: it came by socket
        self.id = request_id
        self.layout = layout
        self.tensors = tensors
        self.form: Form | None = None
        self.group: str | None = None
        """Requests of equal groups can share a call of the model; None: it runs alone."""
        self.rows = layout.rows or 1
        self.parts: tuple[int, ...] = layout.parts or (self.rows,)
        """The rows of each request, if several travel together."""
        self.header_number = header_number  # of the header that its layout was read from
        self.reply: Layout | None = None  # that was last written to its slot, its tensors here
        self.reply_bytes: list[memoryview] = []
        self.arrived = time.monotonic()

    def take_form(self, form: Form | None) -> None:
        """Takes note of what is known of its rows."""
        self.form = form
        if form is not None:
            self.group = form.key
            self.rows = form.rows
            self.parts = self.layout.parts or (form.rows,)

    def cells(self) -> list[list[Tensor]]:
        """Returns the inputs of each request that travels here."""
        if not self.layout.parts:
            return [self.tensors]
        return [list(cell) for cell in zip(*(x.split_with_sizes(self.layout.parts) for x in self.tensors), strict=True)]


def request_from_frame(client: ConnectedClient, request_id: int, layout: Layout, body: bytearray) -> Request:
    """Returns the request that came in a frame."""
    if len(body) < layout.n_bytes:
        raise ValueError(f"a request's body must have {layout.n_bytes} bytes, not {len(body)}")
    data = torch.frombuffer(body or bytearray(1), dtype=torch.uint8)
    return Request(client, -1, request_id, layout, layout.views(data))


def error_header(text: str, max_bytes: int, *, in_parts: bool = False) -> bytes:
    """Returns the header of a reply that is an error, its text cut in the middle if it is too long."""
    limit = max_bytes // 6  # a character takes up to six bytes in JSON
    if len(text) > limit:
        text = f"{text[: limit // 2]}\n…\n{text[-limit // 2 :]}"
    return json.dumps({"error": text, "in_parts": 1} if in_parts else {"error": text}).encode()


def _identify(connection: socket.socket) -> tuple[int, str] | None:
    """Returns the client's process and when it began; None: the system, or another namespace, does not say."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    pid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    started = _started(pid)
    return None if started is None else (pid, started)


def _started(pid: int) -> str | None:
    """Returns when a process began, in the system's own unit; None: it is not there, or has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # in which the process's name may be any bytes
            state, *rest = file.read().rpartition(b")")[2].decode().split()
    except OSError:
        return None
    return None if state in "ZX" else rest[18]
