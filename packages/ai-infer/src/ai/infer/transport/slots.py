"""Shared memory between one worker and its clients.

The *board* is one file for all clients of a worker: for every slot six numbers. A client writes its request into its
slot and then the request's id into `requested`; the worker answers and then writes the id into `answered`. A slot is
busy while the two differ. So one vectorised comparison finds all new requests of all clients. A message whose form
(structure, dtypes, shapes) equals that of the last one at its place leaves the header there as it is; the two numbers
of the form count the headers written, so that a reader knows without looking that its views still hold.

Waking a sleeping process is the dearest step of all, so each side says when it is about to sleep, looks once more, and
only then sleeps; the other side publishes, looks whether the first sleeps, and only then wakes it. Both orders need
what was written to be visible before what is read next: `fence`.

Each client owns `SLOTS_PER_CLIENT` slots of the board and an *area* of its own, where each slot has room for one
request and one reply. Room that is never touched takes no memory.
"""

import struct
import threading
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ai.infer.transport.errors import WireError
from ai.infer.transport.shared_memory import map_file, return_pages
from ai.infer.transport.trees import RawTensor
from ai.infer.transport.wire import MAX_HEADER_BYTES, Layout

SLOTS_PER_CLIENT = 64
MAX_CLIENTS = 1024
MIN_SLOT_BYTES = 4096
_N_SLOTS = SLOTS_PER_CLIENT * MAX_CLIENTS
BOARD_BYTES = 8 * (6 * _N_SLOTS + MAX_CLIENTS + 1)
WORKER = MAX_CLIENTS
_LENGTH = struct.Struct("<I")


_fence = threading.Lock()


def fence() -> None:
    """Orders what this thread wrote before what it reads next.

    Taking a lock is a locked instruction, which on x86, where alone slots are used, is a full barrier.
    """
    if _fence.acquire(blocking=False):
        _fence.release()


class Board:
    """The numbers of every slot, as int64 arrays `(slots,)` that the worker scans and memoryviews for single reads.

    Args:
        descriptor: the board's file; it may be closed after.
    """

    def __init__(self, descriptor: int) -> None:
        words = map_file(descriptor, BOARD_BYTES).numpy().view(np.int64)
        rows = words[: 6 * _N_SLOTS].reshape(6, _N_SLOTS)
        self.requested, self.answered, self.cancelled, self.version, self.asked_form, self.replied_form = rows
        views = (row.data for row in rows)
        self.requested_at, self.answered_at, self.cancelled_at, self.version_at, self.asked_form_at, _ = views
        self.asleep_at = words[6 * _N_SLOTS :].data
        """Whether each client sleeps until its event comes, and at `WORKER` whether the worker does."""

    def clear(self, client: int) -> None:
        """Forgets what a client that is gone asked and was answered."""
        slots = slice(client * SLOTS_PER_CLIENT, (client + 1) * SLOTS_PER_CLIENT)
        for words in (self.requested, self.answered, self.cancelled):
            words[slots] = 0
        self.asleep_at[client] = 0


class Area:
    """One client's room for requests and replies.

    Args:
        descriptor: the area's file; it may be closed after.
        slot_bytes: room for one request, and for one reply.
        board: which counts the headers.
        first_slot: the client's first on the board.
    """

    def __init__(self, descriptor: int, slot_bytes: int, board: Board, first_slot: int) -> None:
        self.slot_bytes = slot_bytes
        forms = (board.asked_form, board.replied_form)
        asked, replied = (form[first_slot : first_slot + SLOTS_PER_CLIENT].data for form in forms)
        self._forms = (asked, replied)
        self._data = map_file(descriptor, area_bytes(slot_bytes))
        self._bytes = self._data.numpy().data
        # The common client repeats itself: what was last written at a place, and the views made there, stay valid.
        self._written: list[Layout | None] = [None] * (2 * SLOTS_PER_CLIENT)
        self._views: list[tuple[Layout | None, list[Tensor]]] = [(None, [])] * (2 * SLOTS_PER_CLIENT)

    def fits(self, layout: Layout) -> bool:
        """Returns whether a message has room in a slot."""
        return layout.size <= self.slot_bytes

    def views(self, place: int, layout: Layout) -> list[Tensor]:
        """Returns a message's tensors as views, whose numbers are valid until the slot is used again.

        Args:
            place: 2 × slot for a request, 2 × slot + 1 for a reply.
            layout: of the message.

        Raises:
            WireError: the message is larger than a slot.
        """
        known, views = self._views[place]
        if known is not layout:
            if not self.fits(layout):
                raise WireError(f"a slot's message must fit in {self.slot_bytes} bytes, not {layout.size}")
            start = place * self.slot_bytes
            with torch.inference_mode(False):  # whoever comes by first, it is written into in every mode
                views = layout.views(self._data[start + layout.start : start + self.slot_bytes])
            self._views[place] = (layout, views)
        return views

    def return_pages(self, place: int, n_bytes: int) -> None:
        """Gives back the memory of a message that was this long, but that of its header: nobody may need the rest."""
        start = place * self.slot_bytes
        return_pages(self._data[start + _LENGTH.size + MAX_HEADER_BYTES : start + n_bytes])

    def data(self, place: int, layout: Layout) -> memoryview:
        """Returns the bytes that hold a message's tensors; for what and when see `views`."""
        if layout.size > self.slot_bytes:
            raise WireError(f"a slot's message must fit in {self.slot_bytes} bytes, not {layout.size}")
        start = place * self.slot_bytes + layout.start
        return self._bytes[start : start + layout.n_bytes]

    def write_raw(self, place: int, layout: Layout, tensors: Sequence[RawTensor]) -> None:
        """Writes a message's tensors, each of as many bytes as its layout says; for what and when see `views`."""
        if layout.size > self.slot_bytes:
            raise WireError(f"a slot's message must fit in {self.slot_bytes} bytes, not {layout.size}")
        start = place * self.slot_bytes + layout.start
        for offset, length, x in zip(layout.offsets, layout.lengths, tensors, strict=True):
            self._bytes[start + offset : start + offset + length] = x.data

    def write_form(self, place: int, layout: Layout) -> None:
        """Writes a message's header, unless it is the one that lies there."""
        if self._written[place] is not layout:
            self.write_header(place, layout.header)
            self._written[place] = layout

    def write_header(self, place: int, header: bytes) -> None:
        """Writes a header without tensors."""
        start = place * self.slot_bytes
        self._bytes[start : start + 4] = _LENGTH.pack(len(header))
        self._bytes[start + 4 : start + 4 + len(header)] = header
        self._written[place] = None
        self._forms[place % 2][place // 2] += 1

    def form(self, place: int) -> int:
        """Returns how many headers were written at a place: while it stays, so does the header."""
        return self._forms[place % 2][place // 2]

    def read_header(self, place: int) -> bytes:
        """Returns the header that lies at a place."""
        start = place * self.slot_bytes
        (length,) = _LENGTH.unpack_from(self._bytes, start)
        if length > min(MAX_HEADER_BYTES, self.slot_bytes - 4):
            raise WireError(f"a slot's header must be at most {MAX_HEADER_BYTES} bytes, not {length}")
        return bytes(self._bytes[start + 4 : start + 4 + length])


def area_bytes(slot_bytes: int) -> int:
    """Returns the size of an area's file."""
    return 2 * SLOTS_PER_CLIENT * slot_bytes
