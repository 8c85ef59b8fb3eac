"""A client's end of its slots in shared memory: requests in, replies out, and when to wake the worker."""

import os
from collections.abc import Sequence

from ai.infer.connection.pending_request import Parts, PendingRequest, copy_into, special_reply
from ai.infer.errors import RequestError
from ai.infer.transport.slots import SLOTS_PER_CLIENT, WORKER, Area, Board, fence
from ai.infer.transport.wire import Layout, parse

_LARGE_BYTES = 1 << 18  # of a message, from which on it is worth a call of the system to give its memory back
_MAX_IDLE_BYTES = 1 << 23  # of large messages that a client without a request on its way keeps in memory


class ClientSlots:
    """The slots of one connection, whose lock guards all that is done here.

    Args:
        descriptors: of board, area, the worker's event and the client's; the first two may be closed after.
        first_slot: of the client's slots on the board.
        slot_bytes: room for one request, and for one reply.
    """

    def __init__(self, descriptors: Sequence[int], first_slot: int, slot_bytes: int) -> None:
        board_file, area_file, self.worker_event, self.reply_event = descriptors
        board = Board(board_file)
        self._slot_bytes = slot_bytes
        self._area = Area(area_file, slot_bytes, board, first_slot)
        own = slice(first_slot, first_slot + SLOTS_PER_CLIENT)
        self._requested, self.answered = board.requested_at[own], board.answered_at[own]
        self._cancelled, self._versions = board.cancelled_at[own], board.version_at[own]
        self._asleep = board.asleep_at[first_slot // SLOTS_PER_CLIENT :][:1]
        self._worker_asleep = board.asleep_at[WORKER:]
        self._layouts: list[tuple[int, Layout] | None] = [None] * SLOTS_PER_CLIENT  # of the replies, by form
        self.free = list(range(SLOTS_PER_CLIENT - 1, -1, -1))
        self.busy: dict[int, PendingRequest] = {}
        self._large: dict[int, int] = {}  # places that have held a large message, and how many bytes of them
        self._n_large_bytes = 0

    def fits(self, layout: Layout) -> bool:
        """Returns whether a request has room in a slot."""
        return layout.size <= self._slot_bytes

    def put(self, request: PendingRequest, layout: Layout, tensors: Sequence[Parts]) -> None:
        """Writes a request into a free slot, of which there must be one; the worker is not woken yet."""
        slot = self.free[-1]
        place = 2 * slot
        if layout.size > _LARGE_BYTES:
            self._touches(place, layout.size)
        if request.raw:
            self._area.write_raw(place, layout, tensors)  # type: ignore[arg-type]  # as the request says
        else:
            for view, x in zip(self._area.views(place, layout), tensors, strict=True):
                copy_into(x, view)
        self._area.write_form(place, layout)
        self.free.pop()
        request.slot = slot
        self.busy[slot] = request
        self._requested[slot] = request.id

    def wake_worker(self) -> None:
        """Wakes the worker if it sleeps, so that it sees what was put."""
        fence()
        if self._worker_asleep[0]:
            os.eventfd_write(self.worker_event, 1)

    def will_sleep(self) -> None:
        """Says that the client may sleep from now on; what was answered before must be looked for after."""
        self._asleep[0] = 1
        fence()

    def is_awake(self) -> None:
        """Says that the client looks by itself."""
        self._asleep[0] = 0

    def has_answered(self, request: PendingRequest) -> bool:
        """Returns whether the reply to a request lies in its slot."""
        return request.slot is not None and self.answered[request.slot] == request.id

    def take(self, request: PendingRequest) -> None:
        """Takes a reply out of its slot, which is free thereafter; without an outcome the reply follows by socket."""
        slot = request.slot
        assert slot is not None
        place = 2 * slot + 1
        try:
            if not request.cancelled:
                form, known = self._area.form(place), self._layouts[slot]
                if known is None or known[0] != form:
                    header = self._area.read_header(place)
                    if header.startswith(b"{"):
                        request.outcome = special_reply(header)
                        return
                    known = self._layouts[slot] = (form, parse(header))
                layout = known[1]
                if layout.size > _LARGE_BYTES:
                    self._touches(place, layout.size)
                if request.raw:
                    tree = request.build_raw(layout, self._area.data(place, layout))
                else:
                    tree = request.build(layout, self._area.views(place, layout), own=False)
                request.outcome = (self._versions[slot], tree)
        except Exception as error:  # the reply names a class that is not here, or its device is full
            request.outcome = RequestError(f"the reply could not be read: {error}")
        finally:
            self._free(request)
            if self._n_large_bytes > _MAX_IDLE_BYTES:
                for other in [each for each in self.all_answered() if each.cancelled]:  # which nobody takes
                    self._free(other)
                if not self.busy:
                    self._return_pages()

    def _free(self, request: PendingRequest) -> None:
        slot = request.slot
        assert slot is not None
        if request.cancelled:
            self._touches(2 * slot + 1, self._area.slot_bytes)  # by a reply of any size, at which nobody looked
        request.slot = None
        del self.busy[slot]
        self.free.append(slot)

    def _touches(self, place: int, n_bytes: int) -> None:
        more = n_bytes - self._large.get(place, 0)
        if more > 0:
            self._large[place] = n_bytes
            self._n_large_bytes += more

    def _return_pages(self) -> None:
        """Gives back what large messages have touched, now that neither side reads or writes in any slot."""
        for place, n_bytes in self._large.items():
            self._area.return_pages(place, n_bytes)
        self._large.clear()
        self._n_large_bytes = 0

    def all_answered(self) -> list[PendingRequest]:
        """Returns the requests whose replies lie in their slots."""
        answered = self.answered
        return [request for slot, request in self.busy.items() if answered[slot] == request.id]

    def cancel(self, request: PendingRequest) -> None:
        """Asks the worker to skip a request; its slot comes back when the worker answers."""
        assert request.slot is not None
        self._cancelled[request.slot] = request.id

    def close(self) -> None:
        """Closes the events."""
        os.close(self.worker_event)
        os.close(self.reply_event)
