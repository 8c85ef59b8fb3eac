"""A client's side of the socket to one worker: requests and replies in frames, beside the slots or instead of them."""

import select
from collections.abc import Sequence

import torch

from ai.infer.connection.pending_request import END, Parts, PendingRequest, copy_into, special_reply
from ai.infer.errors import RequestError
from ai.infer.transport.frames import Frame, FrameStream, Kind
from ai.infer.transport.slots import SLOTS_PER_CLIENT
from ai.infer.transport.trees import Tree
from ai.infer.transport.wire import Layout, parse


class ClientSocket:
    """What is on its way by socket. The connection's lock is held whenever it is called.

    Args:
        stream: to a worker that has greeted.
        poller: of whoever waits: for what comes, and for room while a frame is sent in part alone.
    """

    def __init__(self, stream: FrameStream, poller: "select.poll") -> None:
        self.stream = stream
        self._poller = poller
        self._polled = True
        poller.register(stream.fileno(), select.POLLIN)
        self.pending: dict[int, PendingRequest] = {}
        """By id, those whose replies come by socket, also where they went by slot."""
        self.answers: dict[int, bytes] = {}
        """To questions that are no requests."""
        self._n_whole = 0  # requests that went by socket, and whose replies come whole

    def has_room(self) -> bool:
        """Returns whether one more request may go: what is unsent stays bounded by one request."""
        return self._n_whole < SLOTS_PER_CLIENT and self.flush()

    def send_request(self, kind: Kind, request: PendingRequest, layout: Layout, tensors: Sequence[Parts]) -> None:
        """Sends what the socket takes of a request that has its id; see `send`."""
        body = torch.empty(layout.n_bytes, dtype=torch.uint8, device="cpu")
        for view, x in zip(layout.views(body), tensors, strict=True):
            copy_into(x, view)
        request.by_socket = True
        self.pending[request.id] = request
        self._n_whole += kind is Kind.REQUEST
        self.send(kind, request.id, layout.header, body.numpy().data)

    def send(
        self, kind: Kind, request_id: int, header: bytes = b"", body: memoryview | bytes = b"", version: int = 0
    ) -> None:
        """Sends what the socket takes of a frame now; whoever polls, thread or event loop, sends the rest.

        Nobody takes it back: half a frame would garble all that follow.
        """
        self.stream.send(kind, request_id, version=version, header=header, body=body)
        if self.stream.n_unsent:
            self._poll_for_what_is_unsent()

    def flush(self) -> bool:
        """Sends what the socket takes now; returns whether nothing is left."""
        done = self.stream.flush()
        self._poll_for_what_is_unsent()
        return done

    def _poll_for_what_is_unsent(self) -> None:
        if self._polled:
            events = select.POLLIN | select.POLLOUT if self.stream.n_unsent else select.POLLIN
            self._poller.modify(self.stream.fileno(), events)

    def end_polling(self) -> None:
        """Says that nothing more comes: its end of file would end every poll from now on."""
        if self._polled:
            self._polled = False
            self._poller.unregister(self.stream.fileno())

    def take(self, frame: Frame) -> PendingRequest | None:
        """Puts what a frame brings where it belongs; returns the request that got it, unless that was cancelled."""
        if frame.kind in (Kind.PING, Kind.STATS):
            self.answers[frame.id] = frame.header
            return None
        request = self.pending.get(frame.id)
        if request is None:
            return None
        if frame.kind is not Kind.PART:
            del self.pending[frame.id]
            self._n_whole -= request.by_socket and request.parts is None
        if request.cancelled:
            return None
        try:
            if frame.kind is Kind.PART and request.parts is not None:
                request.parts.append((frame.version, _read(request, frame)))
            elif frame.kind is Kind.END:
                request.outcome = (frame.version, END)
            elif frame.kind is Kind.REPLY:
                request.outcome = (frame.version, _read(request, frame))
            else:
                request.outcome = special_reply(frame.header)
        except Exception as error:
            request.outcome = RequestError(f"the reply could not be read: {error}")
        return request


def _read(request: PendingRequest, frame: Frame) -> Tree:
    """Returns the tree in a frame, its tensors as the request wants them."""
    layout = parse(frame.header)
    body = frame.body or bytearray(1)
    if request.raw:
        return request.build_raw(layout, memoryview(body))
    return request.build(layout, layout.views(torch.frombuffer(body, dtype=torch.uint8)), own=True)
