"""A worker's end of its connection."""

import os
import queue
import socket
import threading

from ai.data.workers.channel import Channel
from ai.data.workers.engine import Processes
from ai.data.workers.pickle_by_value import ship
from ai.data.workers.worker import Link


class Refusal(BaseException):
    """None that a worker tells as an error of its source."""


def refuse(link):
    raise Refusal("no more of this")


def test_what_ends_a_worker_is_said_and_not_its_exit_code_alone():
    messages, ended = [], queue.SimpleQueue()
    Processes().start(ship(refuse), messages.append, ended.put)
    assert ended.get(timeout=100) == "raised Refusal: no more of this"
    assert messages == []


MADE_IN: list[threading.Thread] = []


class Note:
    """Notes the thread in which it is made anew."""

    def __init__(self) -> None:
        MADE_IN.append(threading.current_thread())

    def __reduce__(self):
        return Note, ()


def test_a_message_is_made_by_the_thread_that_uses_it(monkeypatch):
    """Two threads that import a package at once, one of them for a message, may find it half made."""
    left = threading.Event()

    def leave(code):
        left.set()
        threading.Event().wait()  # it never returns; the thread is a daemon

    monkeypatch.setattr(os, "_exit", leave)
    ours, theirs = socket.socketpair()
    parent, own = Channel(ours, lambda: True), Channel(theirs, lambda: True)
    link = Link(own)
    try:
        parent.send(Note())
        MADE_IN.clear()
        link.inbox.get()
        assert MADE_IN == [threading.current_thread()]
    finally:
        parent.close()
        ended = left.wait(100)
        own.close()
    assert ended  # the end of the connection is that of a worker's process
