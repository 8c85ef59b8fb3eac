"""A client as its worker sees it."""

import ctypes
import socket
import sys

import pytest

from ai.infer.worker.connected_client import ConnectedClient

PR_SET_NAME, PR_GET_NAME = 15, 16


@pytest.mark.skipif(sys.platform != "linux", reason="process names are Linux's")
def test_process_of_any_name_is_a_client():
    """The system cuts names at 15 bytes, in the middle of a character if need be."""
    libc = ctypes.CDLL(None)
    name = ctypes.create_string_buffer(16)
    libc.prctl(PR_GET_NAME, name, 0, 0, 0)
    ours, theirs = socket.socketpair()
    try:
        libc.prctl(PR_SET_NAME, "a)модельный".encode(), 0, 0, 0)
        client = ConnectedClient(ours)
        assert client._process is not None
        assert not client.is_gone()
    finally:
        libc.prctl(PR_SET_NAME, name, 0, 0, 0)
        ours.close()
        theirs.close()


def test_cancels_that_came_too_late_never_crowd_out_those_in_time():
    ours, theirs = socket.socketpair()
    client = ConnectedClient(ours)
    for request_id in range(1000):
        client.cancel(request_id)
        assert request_id in client.cancelled
    assert len(client.cancelled) == 256
    ours.close()
    theirs.close()
