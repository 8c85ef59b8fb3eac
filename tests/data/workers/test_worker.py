"""A worker's end of its connection."""

import socket
import threading

from ai.data.workers.channel import Channel
from ai.data.workers.worker import Link

MADE_IN: list[threading.Thread] = []


class Note:
    """Notes the thread in which it is made anew."""

    def __init__(self) -> None:
        MADE_IN.append(threading.current_thread())

    def __reduce__(self):
        return Note, ()


def test_a_message_is_made_by_the_thread_that_uses_it():
    """Two threads that import a package at once, one of them for a message, may find it half made."""
    ours, theirs = socket.socketpair()
    parent, link = Channel(ours, lambda: True), Link(Channel(theirs, lambda: True))
    parent.send(Note())
    MADE_IN.clear()
    link.inbox.get()
    assert MADE_IN == [threading.current_thread()]
    # the connection stays open: its end is the end of a worker's process
    MADE_IN.append(link)
