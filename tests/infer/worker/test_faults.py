"""Whatever a model or a client does, it is told, and nobody else is hit."""

import asyncio
import contextlib
import gc
import json
import logging
import multiprocessing
import os
import resource
import socket
import sys
import time
import weakref
from typing import ClassVar

import cloudpickle
import pytest
import torch
from torch import nn

from ai.infer import Inferencer, InferencerClient, InferError, RequestError, Stats, WorkerDiedError
from ai.infer.connection.hang_check import HangCheck
from ai.infer.transport.frames import FrameStream, Kind
from ai.infer.transport.socket_folder import ADDRESS_FILE
from ai.infer.transport.vitals import Vitals
from ai.infer.worker.faults import WorkerFaultError, answer_for
from ai.infer.worker.main import raise_descriptor_limit
from tests.infer.waiting import wait_until

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers know nothing of the tests

ONES = torch.ones(1, 4)


def patiently(ask):
    """What is answered in the end by a worker that the system may let stand still for longer than its limit."""
    while True:
        try:
            return ask()
        except TimeoutError:
            continue


class Locked(torch.Tensor):
    """A tensor that can be made and not be copied."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if "copy_" in function.__name__:
            raise TypeError("this output is not to be copied")
        return super().__torch_function__(function, types, args, kwargs)


class Doubled(torch.autograd.Function):
    """Of which the class knows how many results some graph still holds."""

    held: ClassVar = weakref.WeakSet()

    @staticmethod
    def forward(ctx, x):
        ctx.mark = Doubled()
        Doubled.held.add(ctx.mark)
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


class Troubled(nn.Module):
    def __init__(self):
        super().__init__()
        self.greeting = "hello"
        self.weight = nn.Parameter(torch.zeros(4))

    def get_extra_state(self):
        return {"greeting": self.greeting}

    def set_extra_state(self, state):
        self.greeting = state["greeting"]

    def forward(self, x, do="", path=""):
        if do == "exit":
            sys.exit("the model wants to leave")
        if do == "interrupt":
            raise KeyboardInterrupt
        if do == "recursion":
            return self.forward(x, do)
        if do == "memory":
            raise MemoryError("no room")
        if do == "generator":
            raise GeneratorExit
        if do == "lost":
            raise RuntimeError("CUDA error: device-side assert triggered")
        if do == "locked":
            return (x + 1).as_subclass(Locked)
        if do == "gradients":
            with torch.enable_grad():
                return Doubled.apply(x.requires_grad_())
        if do == "graphs":
            return len(Doubled.held)
        if do == "greet":
            return self.greeting
        if do == "wait":
            open(f"{path}.seen", "w").close()
            while os.path.exists(path):
                time.sleep(0.001)
        if do == "limit":
            import resource

            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (path or len(os.listdir("/proc/self/fd")) + 5, hard))
            return soft
        return x + self.weight


@pytest.fixture(scope="module")
def troubled():
    with Inferencer(Troubled(), timeout_s=100, restart=True) as inferencer:
        yield inferencer


@pytest.fixture(scope="module")
def watched():
    """An inferencer whose worker hangs after half a second, for tests that make it hang; it may do so by itself."""
    with Inferencer(Troubled(), timeout_s=100, stall_timeout_s=0.5, restart=True) as inferencer:
        with contextlib.suppress(TimeoutError):  # the first call of a process takes longer
            inferencer(ONES)
        yield inferencer


@pytest.mark.parametrize(
    ("do", "message"),
    [
        ("exit", r"(?s)SystemExit: the model wants to leave.*in forward"),
        ("interrupt", "KeyboardInterrupt"),
        ("recursion", "RecursionError"),
        ("memory", "MemoryError: no room"),
        ("generator", "GeneratorExit"),
    ],
)
def test_whatever_a_model_raises_is_its_requests_fault_alone(troubled, do, message):
    pids = troubled.pids
    ids = [troubled.infer_async(ONES, do) for _ in range(3)]
    good = [troubled.infer_async(ONES) for _ in range(3)]
    for request_id in ids:
        with pytest.raises(RequestError, match=message):
            troubled.wait_for_resp(request_id)
    assert all(torch.equal(troubled.wait_for_resp(each), ONES) for each in good)
    assert troubled.pids == pids


def test_an_output_that_cannot_be_copied_is_its_requests_fault_alone(troubled):
    """Also once requests of its form share calls."""
    pids = troubled.pids
    for _ in range(3):
        ids = [troubled.infer_async(ONES * i, "locked") for i in range(6)]
        good = troubled.infer_async(ONES)
        for request_id in ids:
            with pytest.raises(RequestError, match="this output is not to be copied"):
                troubled.wait_for_resp(request_id)
        assert torch.equal(troubled.wait_for_resp(good), ONES)
    assert troubled.pids == pids


@pytest.mark.parametrize("transport", ["shm", "socket"])
def test_an_output_with_gradients_arrives_and_its_graph_is_kept_by_nothing(troubled, transport):
    with troubled.create_client(transport=transport, timeout_s=100) as client:
        for i in range(5):
            y = client(ONES * i, "gradients")
            assert torch.equal(y, ONES * 2 * i)
            assert not y.requires_grad
        assert client(ONES, "graphs") <= 1


def test_a_lost_device_is_the_workers_fault(troubled, caplog):
    with pytest.raises(WorkerFaultError, match="the device failed: RuntimeError: CUDA error: device-side assert"):
        answer_for(RuntimeError("CUDA error: device-side assert triggered"))
    with caplog.at_level(logging.ERROR, "ai.infer"), troubled.create_client(timeout_s=100) as client:
        with pytest.raises(WorkerDiedError, match="the device failed: RuntimeError: CUDA error"):
            client(ONES, "lost")
        wait_until(lambda: caplog.records)
        text = caplog.records[-1].getMessage()
        assert "died, and it is started again: the worker failed: WorkerFaultError: the device failed" in text
        assert "Traceback" in text
        wait_until(lambda: troubled.ready)
        assert torch.equal(client(ONES), ONES)
    troubled.client.close()  # so that it learns of the death without a request


def _say(inferencer, *frames, once=False):
    """Sends frames of a stranger's making, and waits until the worker has hung up."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(100)
        connection.connect(f"{inferencer.create_client().address}/worker-0")
        for frame in frames:
            connection.sendall(frame)
        try:
            data = connection.recv(1 << 16)
            while data and not once:
                data = connection.recv(1 << 16)
        except ConnectionResetError:  # it hung up on what it had not read
            return b""
        return data


def _frame(kind, header=b"", body=b"", n_body=None):
    prefix = kind.to_bytes(1, "little") + bytes(3) + len(header).to_bytes(4, "little") + (1).to_bytes(8, "little")
    return prefix + bytes(8) + (len(body) if n_body is None else n_body).to_bytes(8, "little") + header + body


def test_a_clients_words_end_its_own_connection_at_most(troubled, tmp_path):
    pids = troubled.pids
    (tmp_path / "evil_on_import.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    deep = b"[" * 100_000
    for words in [
        _frame(1, deep),  # a greeting that is too deep for a parser
        _frame(1, b"[]"),
        _frame(1, b'{"protocol": 2, "slot_bytes": []}') * 2,
        _frame(1, b'{"protocol": 2, "transport": {}}') + _frame(1, b"{}"),
        _frame(2, n_body=1 << 32),
        _frame(2, n_body=(1 << 64) - 1),
        _frame(9),
        _frame(10, b"{}"),
        b"\xff" * 64,
    ]:
        assert _say(troubled, words) == b""
        assert torch.equal(troubled(ONES), ONES)
    # Refused as requests, so that the connection stays.
    for header in [deep, b"[]", b'[["u",["u",["o","evil_on_import:X"]],["d"]]]', b'[["u",["u",["n","this:s"]],["d"]]]']:
        assert b'"error"' in _say(troubled, _frame(2, header), once=True)
    assert not (tmp_path / "ran").exists()
    assert troubled.pids == pids


def test_announced_bytes_take_no_memory_before_they_come(troubled):
    def resident():
        with open(f"/proc/{troubled.pids[0]}/statm") as file:
            return int(file.read().split()[1]) * 4096

    before = resident()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(f"{troubled.create_client().address}/worker-0")
        connection.sendall(_frame(2, b"[]", n_body=(1 << 32) - 1) + bytes(100))
        assert torch.equal(troubled(ONES), ONES)
        assert resident() - before < 1 << 26


def test_large_frames_arrive_whole():
    ours, theirs = (FrameStream(each) for each in socket.socketpair())
    body = os.urandom(5_000_000)
    ours.send(Kind.REPLY, 3, header=b"h", body=body)
    frames = []
    while not frames:
        ours.flush()
        frames = theirs.receive()
    assert (frames[0].header, bytes(frames[0].body)) == (b"h", body)
    ours.close()
    theirs.close()


def test_limit_of_descriptors_is_raised_to_what_the_system_allows():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1 << 16 if hard == resource.RLIM_INFINITY else hard - 1, hard))
        raise_descriptor_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_end_of_descriptors_is_said_to_the_newcomer_alone(troubled):
    assert torch.equal(troubled(ONES), ONES)
    limit = troubled(ONES, "limit")
    assert limit == resource.getrlimit(resource.RLIMIT_NOFILE)[1]  # raised at the worker's start
    n_clients = troubled.stats().clients
    clients = [troubled.create_client(timeout_s=100) for _ in range(8)]
    refusals = []
    for client in clients:
        try:
            client(ONES)
        except InferError as error:
            refusals.append(str(error))
    assert 4 <= len(refusals) <= 6
    assert all("the worker has no descriptor left for a client beside the " in each for each in refusals)
    assert torch.equal(troubled(ONES), ONES)
    for client in clients:
        client.close()
    wait_until(lambda: troubled.stats().clients == n_clients)
    assert torch.equal(clients[-1](ONES), ONES)
    clients[-1].close()
    troubled(ONES, "limit", limit)


def _meet_the_end_of_descriptors(address, pipe):
    """In a child, where nothing else opens or closes any: tells what was said, and how many were left over."""

    def n_descriptors():
        return len(os.listdir("/proc/self/fd"))

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    told, left = [], []
    with InferencerClient(address, timeout_s=100) as client:  # whatever is opened at a first request, and stays, is
        client(ONES)
    before = n_descriptors()
    for room in range(3, 7):  # the socket, the worker's process, and then fewer than the four that come with the slots
        with InferencerClient(address, timeout_s=100) as client:
            spare = os.open(os.devnull, os.O_RDONLY)
            os.close(spare)
            resource.setrlimit(resource.RLIMIT_NOFILE, (spare + room, hard))
            try:
                client(ONES)
            except (InferError, OSError) as error:
                told.append(str(error))
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            left.append(n_descriptors() - before)
            assert torch.equal(client(ONES), ONES)
        left.append(n_descriptors() - before)
    pipe.send((told, left))
    pipe.close()
    os._exit(0)


def test_end_of_the_clients_own_descriptors_is_said_and_leaks_none(troubled):
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(False)
    child = context.Process(target=_meet_the_end_of_descriptors, args=(troubled.client.address, theirs))
    child.start()
    theirs.close()
    told, left = ours.recv()
    child.join(100)
    assert len(told) == 4
    assert all("no descriptor left for a client" in each or "Too many open files" in each for each in told)
    assert any("raise its limit (ulimit -n)" in each for each in told)
    assert left == [0] * 8


def test_a_client_takes_two_descriptors_of_the_worker(troubled):
    def n_descriptors():
        return len(os.listdir(f"/proc/{troubled.pids[0]}/fd"))

    gc.collect()  # clients of tests before, whose end the worker may yet have to see
    before, n_clients = n_descriptors(), troubled.stats().clients
    clients = [troubled.create_client() for _ in range(5)]
    for client in clients:
        client(ONES)
    wait_until(lambda: n_descriptors() - before == 2 * (troubled.stats().clients - n_clients) > 0)
    for client in clients:
        client.close()


def test_readiness_falls_when_the_model_hangs_and_comes_back(watched, gate, caplog):
    assert torch.equal(patiently(lambda: watched(ONES)), ONES)
    wait_until(lambda: watched.ready)
    with caplog.at_level(logging.INFO, "ai.infer"):
        request_id = watched.infer_async(ONES, "wait", str(gate))
        wait_until(lambda: not watched.ready)
        vitals = watched.vitals  # asks nobody: the worker would not answer before the gate is gone
        assert gate.exists()
        assert vitals.uptime_s > 0
        wait_until(lambda: any("has not moved for over 0.5 s" in each.getMessage() for each in caplog.records))
        gate.unlink()
        wait_until(lambda: watched.ready)
        patiently(lambda: watched.wait_for_resp(request_id))
        wait_until(lambda: any("moves again" in each.getMessage() for each in caplog.records))


def test_no_wait_without_a_time_limit_outlasts_a_worker_that_hangs(watched, gate):
    hangs = pytest.raises(TimeoutError, match=r"in one call of the model for over 0\.5 s \(stall_timeout_s\)")
    by_slot, by_socket = watched.create_client(), watched.create_client(transport="socket")
    weights = Troubled().state_dict()
    patiently(lambda: watched.update_params(weights))
    assert patiently(by_slot.ping) + patiently(by_socket.ping) > 0  # connected
    request_ids = [by_slot.infer_async(ONES, "wait", str(gate))]
    wait_until(gate.with_suffix(".seen").exists)  # what comes now is behind it
    request_ids.append(by_socket.infer_async(ONES))

    async def ask():
        with hangs:
            await by_slot.ainfer(ONES)
        with hangs:
            await by_slot.await_resp(request_ids[0])
        kept = [asyncio.ensure_future(by_slot.ainfer(ONES)) for _ in range(70)]  # more than there are slots
        for each in asyncio.as_completed(kept):
            with hangs:
                await each

    for client, request_id in zip((by_slot, by_socket), request_ids, strict=True):
        with hangs:
            client.wait_for_resp(request_id)
        with hangs:
            client(ONES)
        with hangs:
            client.ping()
    asyncio.run(ask())
    with hangs:
        watched.create_client()(ONES)  # one that has yet to be greeted
    with pytest.raises(TimeoutError, match="worker 0 hangs and has yet to try the extra state"):
        watched.update_params({**weights, "_extra_state": {"greeting": "another"}})
    for _ in range(2):  # the worker's newest is one back, then two
        watched.update_params(weights)
    with pytest.raises(TimeoutError, match="worker 0 hangs and has yet to take earlier weights"):
        watched.update_params(weights)
    gate.unlink()
    wait_until(lambda: watched.ready)
    for client, request_id in zip((by_slot, by_socket), request_ids, strict=True):
        assert torch.equal(patiently(lambda: client.wait_for_resp(request_id)), ONES)  # noqa: B023


def test_a_worker_that_was_stopped_counts_as_hanging(tmp_path, monkeypatch):
    vitals = Vitals(tmp_path / "vitals", new=True)
    check = HangCheck(tmp_path / "vitals", 3.0)
    check()  # it has not begun
    shown = Stats(1, 1, 1, 0, 0, 0, 1, 0, 0.0, 1.0)
    vitals.write(shown)
    check()
    now = time.monotonic()
    vitals.begin_call()
    monkeypatch.setattr(time, "monotonic", lambda: now + 3.5)
    with pytest.raises(TimeoutError, match=r"in one call of the model for over 3 s"):
        check()
    vitals.begin_call()  # the next one of the batch
    check()
    vitals.end_call()
    check()
    monkeypatch.setattr(time, "monotonic", lambda: now + 14)
    with pytest.raises(TimeoutError, match=r"has not run for over 3 s"):
        check()
    HangCheck(tmp_path / "vitals", None)()
    with pytest.raises(WorkerDiedError, match="no inferencer runs at"):
        HangCheck(tmp_path / "none", 3.0)


def test_vitals_agree_with_stats(troubled):
    troubled(ONES)
    stats = troubled.stats()
    wait_until(lambda: troubled.vitals.requests >= stats.requests)
    vitals = troubled.vitals
    assert (vitals.errors, vitals.version) == (stats.errors, stats.version)
    assert 0 < vitals.busy_s <= vitals.uptime_s


def test_extra_state_travels_with_the_weights_and_outlives_the_worker_whose_life_is_logged(troubled, caplog):
    other = Troubled()
    other.greeting = "good evening"
    troubled.update_params(other.state_dict())
    assert troubled(ONES, "greet") == "good evening"
    (pid,) = troubled.pids
    with caplog.at_level(logging.INFO, "ai.infer"):
        os.kill(pid, 9)
        wait_until(lambda: any(" is ready as " in record.getMessage() for record in caplog.records))
    troubled.client.close()
    assert troubled(ONES, "greet") == "good evening"
    messages = [record.getMessage() for record in caplog.records]
    died, starts, ready = (text for text in messages if "has not moved" not in text and "moves again" not in text)
    assert died == f"worker 0 (process {pid}) died, and it is started again: it ended with exit code -9"
    assert starts == f"worker 0 starts as process {troubled.pids[0]}"
    assert ready.startswith(f"worker 0 is ready as process {troubled.pids[0]} after ")


def test_extra_state_that_the_model_does_not_take_is_refused_and_the_old_one_serves(troubled):
    """It ended each worker, for good: what was started again met it as well."""
    other = Troubled()
    other.greeting = "good morning"
    troubled.update_params(other.state_dict())
    pids, version, files = troubled.pids, troubled.version, set(os.listdir(troubled.client.address))
    for wrong in ({}, None, {"greeting": Leaver()}):
        with pytest.raises(ValueError, match="state_dict must hold an extra state that the model takes: ") as caught:
            troubled.update_params({"weight": torch.full((4,), 7.0), "_extra_state": wrong})
        assert "In the worker:" in str(caught.value)
        assert troubled(ONES, "greet") == "good morning"
        assert torch.equal(troubled(ONES), ONES)
    assert (troubled.pids, set(os.listdir(troubled.client.address))) == (pids, files)
    other.greeting = "hi" * (1 << 20)  # more than a socket takes at once: it never came whole, nor did the weights
    other.weight.data += 1
    assert troubled.update_params(other.state_dict()) == version + 2
    assert troubled(ONES, "greet") == other.greeting
    assert torch.equal(troubled(ONES), ONES + 1)
    troubled.update_params(Troubled().state_dict())


class Leaver:
    """Ends whoever loads it."""

    def __reduce__(self):
        return _leave, ("no extra state",)


def _leave(why):  # not sys.exit itself: a trial that was made in this process has put its own there
    raise SystemExit(why)


def test_full_queue_of_new_clients_ends_the_wait(troubled, monkeypatch):
    import ai.infer.connection.handshake as handshake

    monkeypatch.setattr(handshake, "_CONNECT_S", 0.05)
    path = f"{troubled.create_client().address}/full"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        waiting = [handshake._connect(path, None)]  # all that may wait
        with pytest.raises(TimeoutError, match="the worker took on no new client in time: too many wait already"):
            handshake._connect(path, None)
        waiting[0].close()
    os.unlink(path)


def test_reply_given_up_by_wait_for_is_not_lost(troubled, gate):
    async def main():
        with troubled.create_client(timeout_s=100) as client:
            request_id = client.infer_async(ONES, "wait", str(gate))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.await_resp(request_id), 0.01)
            with pytest.raises(TimeoutError, match="did not answer in time"):
                await client.await_resp(request_id, timeout=0.01)
            client.timeout_s = 0.01
            with pytest.raises(TimeoutError, match="did not answer in time"):
                await client.await_resp(request_id)
            gate.unlink()
            client.timeout_s = 100
            assert torch.equal(await client.await_resp(request_id), ONES)

    asyncio.run(main())


def test_wait_for_a_worker_that_never_comes_back_ends_without_a_deadline(tmp_path):
    about = {"replicas": 1, "restart": True, "start_timeout_s": 0.05, "stall_timeout_s": 600.0}
    (tmp_path / ADDRESS_FILE).write_text(json.dumps(about))
    with pytest.raises(TimeoutError, match="no replica was restarted in time"):
        InferencerClient(tmp_path)(ONES)
