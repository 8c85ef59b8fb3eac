"""Large arrays of messages, in memory that both sides share."""

import os
import random
import socket

import numpy as np
import pytest
import torch

from ai.data.batch.collate import collate
from ai.data.workers import areas
from ai.data.workers.areas import LEAST, Areas, Parcel
from ai.data.workers.channel import Channel

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="this system shares no such memory")
N = 2 * LEAST


@pytest.fixture
def ends():
    ours, theirs = (Channel(end, lambda: True) for end in socket.socketpair())
    yield ours, theirs
    ours.close()
    theirs.close()


def passed(ends, message):
    """What arrives of a message."""
    sender, receiver = ends
    sender.send(message, parcel=sender.parcel())
    return receiver.receive()


def n_areas(ends):
    return len(ends[0]._areas._areas)


def test_nothing_is_overwritten_while_somebody_holds_any_part_of_it(ends):
    draw = random.Random(0)
    forms = {
        "array": lambda x: x,
        "view": lambda x: x[5:][::2],
        "bytes": memoryview,
        "tensor": torch.from_numpy,
        "part of a tensor": lambda x: torch.from_numpy(x).view(2, -1)[1],
        "other type": lambda x: torch.from_numpy(x).view(torch.int16),
        "storage": lambda x: torch.empty(0, dtype=torch.uint8).set_(torch.from_numpy(x).untyped_storage()),
    }
    held = []
    for number in range(200):
        x = np.full(N + 4 * draw.randrange(N // 4), number % 251, np.uint8)
        got = passed(ends, {"x": x})["x"]
        part = forms[draw.choice(list(forms))](got)
        held.append((part, np.asarray(part).tobytes()))
        del got, part
        while len(held) > draw.randrange(12):
            held.pop(draw.randrange(len(held)))
        for part, content in held:
            assert np.asarray(part).tobytes() == content
    assert n_areas(ends) == areas._MOST


def test_an_area_is_used_again_once_nobody_holds_it(ends):
    for number in range(20):
        got = passed(ends, [np.full(N, number), np.zeros(3)])
        assert got[0].tobytes() == np.full(N, number).tobytes()
    assert n_areas(ends) == 2  # while one is filled, the one before is held


def test_small_arrays_keep_no_area(ends):
    labels = [passed(ends, {"x": np.zeros(N), "y": np.full(10, number)})["y"] for number in range(20)]
    assert [y[0] for y in labels] == list(range(20))
    assert n_areas(ends) == 1


def test_more_than_there_are_areas_may_be_held(ends):
    held = [passed(ends, np.full(N, number)) for number in range(3 * areas._MOST)]
    assert [int(x[-1]) for x in held] == list(range(3 * areas._MOST))
    assert n_areas(ends) == areas._MOST
    held[0][:] = -1  # it is the receiver's own
    assert int(held[1][0]) == 1


def test_what_the_sender_keeps_in_an_area_is_not_overwritten_either(ends):
    sender, receiver = ends
    kept = []
    for number in range(4):
        parcel = sender.parcel()
        x = parcel.room(N)
        x[:] = number
        sender.send(x, parcel=parcel)
        assert receiver.receive()[0] == number
        kept.append(x)
    assert [x[0] for x in kept] == [0, 1, 2, 3]


def test_what_a_forked_process_may_read_is_left_to_it(ends):
    got = passed(ends, np.full(N, 1))
    in_the_child = ends[1]._received._memories[1][0]  # it has the same memory
    areas._count_fork()
    del got
    for number in range(2, 6):
        assert passed(ends, np.full(N, number))[0] == number
    assert np.frombuffer(in_the_child, np.int64, offset=64)[0] == 1
    assert n_areas(ends) == 1


def test_one_large_message_is_not_held_for_ever(ends):
    def shared_kb():
        with open("/proc/self/status") as lines:
            return next((int(line.split()[1]) for line in lines if line.startswith("RssShmem")), 0)

    before = shared_kb()
    large = 8 << 20
    assert all(len(passed(ends, np.zeros(large, np.uint8))) == large for _ in range(2))
    for _ in range(12):  # 36 messages
        held = [passed(ends, np.full(N, number)) for number in range(3)]
        assert [x[0] for x in held] == [0, 1, 2]
    assert sum(map(len, ends[0]._areas._areas)) < large / 4
    assert shared_kb() - before < large // 1024 // 4


def test_arrays_of_the_other_byte_order_are_made_native(ends):
    parcel = ends[0].parcel()
    batch = collate([np.arange(N, dtype=">f4")] * 2, room=parcel.room)
    assert parcel.area is not None
    assert batch.dtype.isnative
    assert batch[1, 300] == 300


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.complex64])
def test_a_batch_is_made_where_it_is_sent_from(ends, dtype):
    samples = [(torch.arange(N).to(dtype) + k, np.full((2, N), k), k) for k in range(3)]
    parcel = ends[0].parcel()
    parcel._areas.note(1 << 23)
    batch = collate(samples, room=parcel.room)
    inside = parcel._bytes.ctypes.data
    assert all(
        inside < address < inside + len(parcel._bytes) for address in (batch[0].data_ptr(), batch[1].ctypes.data)
    )
    for ours, theirs in zip(batch, collate(samples), strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(torch.as_tensor(ours), torch.as_tensor(theirs))
    ends[0].send(batch, parcel=parcel)
    assert parcel._n_used < parcel._n_wanted + 2 * 64 + 1  # nothing was put there a second time
    assert torch.equal(ends[1].receive()[0], batch[0])


@pytest.mark.parametrize("call", ["memfd_create", "posix_fallocate"])
def test_without_such_memory_all_goes_through_the_socket(ends, monkeypatch, call):
    def refuse(*args):
        raise OSError("there is none")

    n_files = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, call, refuse)
    assert passed(ends, np.full(N, 7))[-1] == 7
    assert n_areas(ends) == 0
    assert len(os.listdir("/proc/self/fd")) == n_files


def test_a_receiver_that_may_open_no_more_files_says_so(ends, monkeypatch):
    send = ends[0]._send_parts
    monkeypatch.setattr(ends[0], "_send_parts", lambda parts, timeout_s, file: send(parts, timeout_s, None))
    with pytest.raises(
        OSError, match=r"could not be opened here: too many open files, of which this process may have \d+; raise"
    ):
        passed(ends, np.zeros(N))


def test_a_receiver_without_room_says_so(ends, monkeypatch):
    def full(file, n_bytes):
        raise OSError(12, "Cannot allocate memory")

    ends[0].send(np.zeros(1 << 20), parcel=ends[0].parcel())
    monkeypatch.setattr(areas, "_mapped", full)
    with pytest.raises(OSError, match=r"8 MB that a worker shares found no room in this process \(.*allocate memory"):
        ends[1].receive()


def test_a_message_that_stops_half_way_ends_the_connection(ends, monkeypatch):
    def stop(_event):
        raise KeyboardInterrupt

    monkeypatch.setattr(ends[0], "_wait", stop)
    with pytest.raises(KeyboardInterrupt):
        ends[0].send(np.zeros(1 << 21))  # more than the socket takes at once
    with pytest.raises(EOFError):  # and not whatever comes next
        ends[1].receive()
    with pytest.raises(OSError, match="descriptor"):
        ends[0].send("next")


def test_files_are_open_for_the_areas_alone_and_closed_with_them():
    n_files = len(os.listdir("/proc/self/fd"))
    ends = [Channel(end, lambda: True) for end in socket.socketpair()]
    for number in range(20):
        passed(ends, np.full(N, number))
    assert len(os.listdir("/proc/self/fd")) <= n_files + 2 + 2 * n_areas(ends)
    got = passed(ends, np.full(N, 20))
    for end in ends:
        end.close()
    del ends, end
    assert got[-1] == 20  # it outlives the connection
    del got
    assert len(os.listdir("/proc/self/fd")) == n_files


def test_an_area_grows_with_what_is_sent(ends):
    for n in (N, 3 * N, 2 * N, 5 * N):
        assert len(passed(ends, [np.zeros(n), np.ones(n)])[1]) == n
    assert n_areas(ends) == 1
    assert Parcel(Areas()).room(LEAST - 1) is None
