"""Where a worker's clients come and go: greeting them, reading what they send by socket, letting go of the dead."""

import heapq
import json
import logging
import os
import selectors
import socket
import time
from collections.abc import Callable
from typing import Any

from ai.infer.errors import InferError
from ai.infer.transport.frames import PROTOCOL, Frame, FrameStream, Kind
from ai.infer.transport.slots import MAX_CLIENTS, SLOTS_PER_CLIENT, Board
from ai.infer.worker.connected_client import MAX_UNSENT_BYTES, ConnectedClient
from ai.infer.worker.faults import WorkerFaultError, is_out_of_descriptors

_log = logging.getLogger("ai.infer")
_PAUSE_S = 0.001


class Listener:
    """The clients of one worker.

    Args:
        listener: a listening Unix socket.
        selector: of the worker's loop, which calls what is registered with an event.
        board: of the worker; None where there is no shared memory.
        board_file: its descriptor, of which each client gets one.
        worker_event: with which clients wake the worker; they get one as well.
        batch_size: how many rows a client may send as one message; asked at each greeting.
        take: called with each frame that is no greeting; what it raises ends the client's connection.
        dropped: called with each client that is gone, before its slots can be another's.
    """

    def __init__(
        self,
        listener: socket.socket,
        selector: selectors.BaseSelector,
        board: Board | None,
        board_file: int,
        worker_event: int,
        *,
        batch_size: Callable[[], int],
        take: Callable[[ConnectedClient, Frame], None],
        dropped: Callable[[ConnectedClient], None],
    ) -> None:
        self._listener = listener
        self._selector = selector
        self._board = board
        self._board_file = board_file
        self._worker_event = worker_event
        self._batch_size = batch_size
        self._take = take
        self._dropped = dropped
        self.by_place: dict[int, ConnectedClient] = {}
        """Clients with slots, by their place on the board."""
        self.n_places = 0
        """Places beyond this have never been used."""
        self._streams: dict[int, ConnectedClient] = {}  # by descriptor
        self._free_places = list(range(MAX_CLIENTS))
        self._reserve = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)  # with which a newcomer can be refused
        selector.register(listener.fileno(), selectors.EVENT_READ, self._accept)

    def __len__(self) -> int:
        return len(self._streams)

    def tell_all(self, reason: str) -> None:
        """Tells every client that no more replies come, and why."""
        for client in list(self._streams.values()):
            client.stream.send(Kind.BYE, header=reason.encode())

    # Coming -----------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError as error:  # the client was faster gone than accepted, or no descriptor is left
            if is_out_of_descriptors(error):
                self._turn_away()
            return
        client = ConnectedClient(connection)
        self._streams[client.stream.fileno()] = client
        self._selector.register(client.stream.fileno(), selectors.EVENT_READ, lambda: self._serve_socket(client))

    def _greet(self, client: ConnectedClient, frame: Frame) -> None:
        """Answers a client's first message, with shared memory where both sides can use it."""
        client.greeted = True
        hello = json.loads(frame.header)
        transport = hello.get("transport")
        descriptors: list[int] = []
        reply: dict[str, Any] = {"batch_size": self._batch_size()}
        try:
            if hello.get("protocol") != PROTOCOL:
                raise InferError(f"the client must speak protocol {PROTOCOL}, not {hello.get('protocol')!r:.40}")
            if transport != "socket" and self._board is not None and self._free_places:
                place = self._free_places[0]
                descriptors = client.open_area(
                    place, hello["slot_bytes"], self._board, self._board_file, self._worker_event
                )
                heapq.heappop(self._free_places)
                self.by_place[place] = client
                self.n_places = max(self.n_places, place + 1)
                slot_bytes = client.area.slot_bytes if client.area else 0
                reply |= {"first_slot": place * SLOTS_PER_CLIENT, "slot_bytes": slot_bytes}
            elif transport == "shm":
                raise InferError(
                    "transport 'shm' needs shared memory, which this system or this worker has no room for"
                )
        except InferError as error:
            reply = {"error": str(error)}
        except OSError as error:
            if not is_out_of_descriptors(error):
                raise
            reply = _no_room(len(self) - 1)
        client.stream.send_with_descriptors(Kind.HELLO, json.dumps(reply).encode(), descriptors)
        if descriptors:
            os.close(descriptors[1])

    def _turn_away(self) -> None:
        """Tells a newcomer that there is no room, with the one descriptor kept for that."""
        if self._reserve < 0 and not self._reopen_reserve():
            time.sleep(_PAUSE_S)  # somebody else took it; the newcomer waits in the system's queue
            return
        os.close(self._reserve)
        try:
            connection, _ = self._listener.accept()
            FrameStream(connection).send(Kind.HELLO, header=json.dumps(_no_room(len(self))).encode())
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

    # By socket --------------------------------------------------------------------------------------------------

    def _serve_socket(self, client: ConnectedClient) -> None:
        client.stream.flush()
        # One that does not read its replies is not read from, so that what is unsent stays bounded.
        if client.stream.n_unsent < MAX_UNSENT_BYTES:
            self._read(client)
        if client.stream.closed:
            self._drop(client)
        else:
            self.update_interest(client)

    def _read(self, client: ConnectedClient) -> None:
        """Takes in what a client sent; hangs up on one that sends what is no frame."""
        try:
            for frame in client.stream.receive():
                if frame.kind is Kind.HELLO and not client.greeted:
                    self._greet(client, frame)
                else:
                    self._take(client, frame)
        except WorkerFaultError:
            raise
        except Exception as error:  # whatever it is, the client's own words led to it
            _log.info("a client's connection was closed: %s", f"{type(error).__name__}: {error}"[:200])
            client.stream.closed = True

    def update_interest(self, client: ConnectedClient) -> None:
        """Polls a client's socket for room while something is unsent, and for frames unless that is too much."""
        if client.stream.fileno() not in self._streams:
            return
        unsent = client.stream.n_unsent
        events = selectors.EVENT_READ if unsent < MAX_UNSENT_BYTES else 0
        if unsent:
            events |= selectors.EVENT_WRITE
        key = self._selector.get_key(client.stream.fileno())
        if key.events != events:
            self._selector.modify(client.stream.fileno(), events, key.data)

    # Going ------------------------------------------------------------------------------------------------------

    def drop_the_dead(self) -> None:
        """Forgets clients whose process has ended while a child of it keeps their socket open."""
        for client in [client for client in self._streams.values() if client.is_gone()]:
            self._drop(client)

    def _drop(self, client: ConnectedClient) -> None:
        """Forgets a client that is gone: its requests, its slots, its descriptors."""
        if self._streams.pop(client.stream.fileno(), None) is None:
            return
        self._selector.unregister(client.stream.fileno())
        self._dropped(client)
        if client.index >= 0:
            assert self._board is not None
            del self.by_place[client.index]
            self._board.clear(client.index)
            heapq.heappush(self._free_places, client.index)
        client.close()


def _no_room(n_clients: int) -> dict[str, Any]:
    reason = f"the worker has no descriptor left for a client beside the {n_clients} it has"
    _log.error("a client was turned away: %s", reason)
    return {"error": reason}
