"""Shared memory between one worker and its clients.

The *board* is one file for all clients of a worker: for every slot four numbers. A client writes its request into its
slot and then the request's id into `requested`; the worker answers and then writes the id into `answered`. A slot is
busy while the two differ. So one vectorised comparison finds all new requests of all clients.

Each client owns `SLOTS_PER_CLIENT` slots of the board and an *area* of its own, where each slot has room for one
request and one reply. Room that is never touched takes no memory.
"""

import struct

import numpy as np
from torch import Tensor

from ai.infer.memory import map_file
from ai.infer.wire import MAX_HEADER_BYTES, Layout, WireError

SLOTS_PER_CLIENT = 64
MAX_CLIENTS = 1024
MIN_SLOT_BYTES = 4096
_N_SLOTS = SLOTS_PER_CLIENT * MAX_CLIENTS
BOARD_BYTES = 4 * 8 * _N_SLOTS
_LENGTH = struct.Struct("<I")


class Board:
    """The numbers of every slot, as int64 arrays `(slots,)` that the worker scans and memoryviews for single reads.

    Args:
        descriptor: the board's file; it may be closed after.
    """

    def __init__(self, descriptor: int) -> None:
        words = map_file(descriptor, BOARD_BYTES).numpy().view(np.int64).reshape(4, _N_SLOTS)
        self.requested, self.answered, self.cancelled, self.version = words
        self.requested_at, self.answered_at, self.cancelled_at, self.version_at = (row.data for row in words)


class Area:
    """One client's room for requests and replies.

    Args:
        descriptor: the area's file; it may be closed after.
        slot_bytes: room for one request, and for one reply.
    """

    def __init__(self, descriptor: int, slot_bytes: int) -> None:
        self.slot_bytes = slot_bytes
        self._data = map_file(descriptor, area_bytes(slot_bytes))
        self._bytes = self._data.numpy().data
        # What was last written or read at each place: the common client repeats itself, and its views stay valid.
        self._written: list[tuple[Layout | None, list[Tensor]]] = [(None, [])] * (2 * SLOTS_PER_CLIENT)
        self._read: list[dict[bytes, tuple[Layout, list[Tensor]]]] = [{} for _ in range(2 * SLOTS_PER_CLIENT)]

    def fits(self, layout: Layout) -> bool:
        """Returns whether a message has room in a slot."""
        return layout.start + layout.n_bytes <= self.slot_bytes

    def write(self, place: int, layout: Layout) -> list[Tensor]:
        """Writes a message's header, and returns views to copy its tensors into; the message must fit.

        Args:
            place: 2 × slot for a request, 2 × slot + 1 for a reply.
            layout: of the message.
        """
        known, views = self._written[place]
        if known is not layout:
            start = place * self.slot_bytes
            self.write_header(place, layout.header)
            views = layout.views(self._data[start + layout.start : start + self.slot_bytes])
            self._written[place] = (layout, views)
        return views

    def write_header(self, place: int, header: bytes) -> None:
        """Writes a header without tensors."""
        start = place * self.slot_bytes
        self._bytes[start : start + 4] = _LENGTH.pack(len(header))
        self._bytes[start + 4 : start + 4 + len(header)] = header
        self._written[place] = (None, [])

    def read_header(self, place: int) -> bytes:
        """Returns the header that lies at a place."""
        start = place * self.slot_bytes
        (length,) = _LENGTH.unpack_from(self._bytes, start)
        if length > min(MAX_HEADER_BYTES, self.slot_bytes - 4):
            raise WireError(f"a slot's header must be at most {MAX_HEADER_BYTES} bytes, not {length}")
        return bytes(self._bytes[start + 4 : start + 4 + length])

    def known(self, place: int, header: bytes) -> tuple[Layout, list[Tensor]] | None:
        """Returns the layout and views of a header that was read at this place before."""
        return self._read[place].get(header)

    def read(self, place: int, layout: Layout) -> tuple[Layout, list[Tensor]]:
        """Returns a message's layout and its tensors, as views that are valid until the slot is used again."""
        if not self.fits(layout):
            raise WireError(f"a slot's message must fit in {self.slot_bytes} bytes, not {layout.n_bytes}")
        start = place * self.slot_bytes
        entry = (layout, layout.views(self._data[start + layout.start : start + self.slot_bytes]))
        known = self._read[place]
        if len(known) >= 16:
            known.clear()
        known[layout.header] = entry
        return entry


def area_bytes(slot_bytes: int) -> int:
    """Returns the size of an area's file."""
    return 2 * SLOTS_PER_CLIENT * slot_bytes
