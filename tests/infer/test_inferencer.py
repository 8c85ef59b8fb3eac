import copy
import os
import pickle
import select
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import cloudpickle
import pytest
import torch
from torch import nn

from ai.infer import Inferencer, InferencerClient, InferError, RequestError, WorkerDiedError
from ai.infer.node_inferencer import _Seat
from tests import warm_python
from tests.infer.infer_models import Versatile
from tests.infer.waiting import wait_until

ONES = torch.ones(1, 8)
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers know nothing of the tests


def test_document_snippet_in_an_unguarded_script(tmp_path):
    """The class lives in `__main__`, nothing is guarded, and nothing is left behind."""
    script = tmp_path / "script.py"
    script.write_text("""if True:
        import torch
        from torch import nn
        import ai.infer
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.fc = nn.Linear(8, 4)
            def forward(self, x):
                return self.fc(x)
        model = Net()
        inferencer = ai.infer.Inferencer(model, "cpu", 64)
        x = torch.randn(1, 8)
        assert (model(x) == inferencer(x)).all()
        with torch.no_grad():
            model.fc.weight.mul_(2)
        assert inferencer.update_params(model.state_dict()) == 1
        client = inferencer.create_client()
        assert (client(x) == model(x)).all()
        request_id = client.infer_async(x)
        y = client.wait_for_resp(request_id)
        assert (y == model(x)).all() and client.version == 1
        print(inferencer.pids[0], client.address)
        kept = inferencer.pids[0]
        del inferencer
        import os
        assert not os.path.exists(f"/proc/{kept}")
        last = ai.infer.Inferencer(model)  # left to the end of the script
        print(last.pids[0], last.create_client().address)
    """)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    for line in done.stdout.splitlines():
        pid, address = line.split()
        assert not Path("/proc", pid).exists()
        assert not Path(address).exists()


def _start_and_wait(out):
    """In a fork: a starter that says what it has, and then waits for its end."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    seat = _Seat.taken(f"of one that is killed, {os.getpid()}")  # another run of these tests may be on this machine
    inferencer = Inferencer(nn.Linear(2, 2))
    os.write(out, f"{inferencer.pids[0]}\n{inferencer.client.address}\n{seat.path}".encode())
    while True:
        signal.pause()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.slow
def test_worker_folder_and_seat_end_with_their_starter(how):
    ours, theirs = os.pipe()
    starter = os.fork()
    if starter == 0:
        try:
            _start_and_wait(theirs)
        finally:
            os._exit(1)
    os.close(theirs)
    try:
        pid, address, seat = os.read(ours, 1 << 12).decode().split("\n")
        os.close(ours)
        assert os.path.exists(seat)
        watch = os.pidfd_open(int(pid))
    except BaseException:  # interrupted, say: nothing goes on waiting
        how = signal.SIGKILL
        raise
    finally:
        os.kill(starter, how)
        os.waitpid(starter, 0)
    assert select.select([watch], [], [], 100)[0], "the worker outlived its starter"
    os.close(watch)
    wait_until(lambda: not os.path.exists(address))
    wait_until(lambda: not os.path.exists(seat))  # the worker removes what its starter has left


@pytest.mark.slow
def test_worker_and_folder_end_with_a_program_that_is_interrupted():
    program = """if True:
        import torch, ai.infer
        inferencer = ai.infer.Inferencer(torch.nn.Linear(2, 2))
        print(inferencer.pids[0], inferencer.create_client().address, flush=True)
        import time
        time.sleep(100)
    """
    command = [sys.executable, "-c", program]
    process = warm_python.Process(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    pid, address = process.stdout.readline().split()
    watch = os.pidfd_open(int(pid))
    process.send_signal(signal.SIGINT)
    process.wait(100)
    process.stdout.close()
    assert select.select([watch], [], [], 100)[0], "the worker outlived its starter"
    os.close(watch)
    wait_until(lambda: not os.path.exists(address))


def test_options_are_checked():
    model = nn.Linear(2, 2)
    for arguments, error, message in [
        ((lambda x: x,), TypeError, r"model must be a torch.nn.Module, not function"),
        ((model, "tpu9"), ValueError, r"device must be one that torch knows, not 'tpu9'"),
        ((model, ["cpu", None]), ValueError, "device must be one that torch knows, not None"),
        ((model, "cuda:99"), ValueError, r"device \(cuda:99\) must be there, and this machine has \d+ of CUDA"),
        ((model, "meta"), ValueError, r"device must hold values, and 'meta' holds shapes alone"),
        ((model, ["cpu", torch.device("meta", 0)]), ValueError, r"device must hold values, and 'meta:0' holds shapes"),
        ((model, []), ValueError, r"device must name at least one device, not an empty list"),
        ((model, "cpu", 0), ValueError, r"batch_size must be a number of rows from 1, or 'auto', not 0"),
        ((model, "cpu", "big"), ValueError, r"batch_size must be a number of rows from 1, or 'auto', not 'big'"),
    ]:
        with pytest.raises(error, match=message):
            Inferencer(*arguments)
    for options, message in [
        ({"max_delay_s": -1}, r"max_delay_s must be 0 or more and finite, not -1"),
        ({"start_timeout_s": 0}, r"start_timeout_s must be positive and finite, not 0"),
        ({"precision": "int4"}, r"precision must be 'model', .* not 'int4'"),
        ({"graph_rows": [8]}, r"graph_rows \(\[8\]\) needs a CUDA device, not cpu"),
        ({"replicas": 0}, r"replicas must be 1 or more, and as many as the devices \(1\), not 0"),
        ({"transport": "pigeon"}, r"transport must be 'auto', 'shm' or 'socket', not 'pigeon'"),
    ]:
        with pytest.raises(ValueError, match=message):
            Inferencer(model, **options)


class Unloadable(nn.Module):
    def __setstate__(self, state):
        raise RuntimeError("this model cannot be rebuilt")


def test_model_that_the_worker_cannot_load_says_why(monkeypatch):
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # where no other inferencer has its own
        monkeypatch.setattr(tempfile, "tempdir", folder)
        with pytest.raises(InferError, match=r"(?s)a worker could not start: .*this model cannot be rebuilt"):
            Inferencer(Unloadable())
        assert not os.listdir(folder)


class Hanging(nn.Module):
    def __setstate__(self, state):
        threading.Event().wait()


def test_worker_that_hangs_while_it_starts_is_killed_and_named():
    with pytest.raises(InferError, match=r"a worker could not start: process \d+ was not ready after 0.2 s") as caught:
        Inferencer(Hanging(), start_timeout_s=0.2)
    pid = str(caught.value).split()[6]
    assert not os.path.exists(f"/proc/{pid}")


def test_inferencer_cannot_be_pickled(inferencer):
    with pytest.raises(TypeError, match=r"cannot be copied or pickled; send create_client\(\)"):
        pickle.dumps(inferencer)


def test_update_changes_every_later_reply(inferencer, model):
    other = copy.deepcopy(model)
    client = inferencer.create_client()
    first = inferencer.update_params(model.state_dict())
    for i in range(1, 30):
        with torch.no_grad():
            other.shift.fill_(i)
        version = inferencer.update_params(other.state_dict())
        assert version == first + i
        assert torch.equal(client(ONES), other(ONES))
        assert client.version == version
    inferencer.update_params(model.state_dict())
    assert torch.equal(client(ONES), model(ONES))


def test_update_that_does_not_fit_is_refused_by_name_and_changes_nothing(inferencer, model):
    state = model.state_dict()
    version = inferencer.update_params(state)
    for change, message in [
        (lambda s: s.pop("fc.bias"), r"state_dict must hold every entry of the model, and lacks 'fc.bias'"),
        (lambda s: s.update(extra=ONES), r"state_dict must hold entries of the model only, not 'extra'"),
        (lambda s: s.update({"fc.bias": ONES}), r"\['fc.bias'\] must have the model's shape \[4\], not \[1, 8\]"),
        (
            lambda s: s.update({"fc.bias": torch.zeros(4, dtype=torch.complex64)}),
            r"\['fc.bias'\] must have a dtype whose kind of number torch.float32 holds, not torch.complex64",
        ),
    ]:
        bad = {name: torch.zeros_like(x) for name, x in state.items()}
        change(bad)
        with pytest.raises(ValueError, match=message):
            inferencer.update_params(bad)
    assert torch.equal(inferencer(ONES), model(ONES))
    assert inferencer.version == version


def test_update_storm_keeps_versions_in_order_and_weights_whole(inferencer, model):
    """Each reply comes from one version: x @ W + b with all of W and b equal to v gives 9 v."""
    state = {name: x.clone() for name, x in model.state_dict().items()}
    stop, errors, seen = threading.Event(), [], []

    def ask():
        try:
            with inferencer.create_client() as client:
                last = -1
                while not stop.is_set():
                    y = client(ONES, do="fc")
                    values = {round(v, 3) for v in (y / 9).flatten().tolist()}
                    assert len(values) == 1, y
                    assert client.version >= last
                    last = client.version
                    seen.append(values.pop())
        except BaseException as error:
            errors.append(error)

    inferencer.update_params({name: torch.zeros_like(x) for name, x in state.items()})
    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for i in range(1, 101):
        new = {name: torch.full_like(x, 0.0 if name == "shift" else i) for name, x in state.items()}
        inferencer.update_params(new)
        if i % 50 == 0:  # however the system shares its cores out, some of them are seen
            wait_until(lambda: errors or (seen and seen[-1] == i))  # noqa: B023
    stop.set()
    for thread in threads:
        thread.join(100)
    inferencer.update_params(state)
    assert not errors
    assert {50, 100} <= set(seen)


def test_update_takes_a_compiled_models_state(inferencer, model):
    wrapped = {f"_orig_mod.{name}": x for name, x in model.state_dict().items()}
    inferencer.update_params(wrapped)
    assert torch.equal(inferencer(ONES), model(ONES))


def test_update_is_rounded_to_the_models_dtypes(inferencer, model):
    state = model.state_dict()
    wide = {name: x.double() + 2.0**-40 for name, x in state.items()}
    inferencer.update_params(wide)
    other = copy.deepcopy(model)
    other.load_state_dict({name: x.float() for name, x in wide.items()})
    assert torch.equal(inferencer(ONES), other(ONES))
    inferencer.update_params(state)


def test_update_in_a_forked_child_is_refused(inferencer, model):
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            inferencer.update_params(model.state_dict())
        except InferError as error:
            os.write(writer, str(error).encode())
        finally:
            inferencer.close()  # which must not stop the parent's worker
            os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reader, 1000).startswith(b"update_params must be called in the process that made")
    os.close(reader)
    os.close(writer)
    assert torch.equal(inferencer(ONES), model(ONES))


def test_client_of_a_stopped_inferencer_says_so():
    with pytest.raises(WorkerDiedError, match=r"no inferencer runs at /tmp/nowhere: it was stopped, or never started"):
        InferencerClient("/tmp/nowhere")(ONES)


@pytest.fixture(scope="module")
def mortal(model):
    """An inferencer of two replicas that are restarted when they die."""
    with Inferencer(model, replicas=2, restart=True, batch_size="auto", timeout_s=100) as each:
        yield each


def test_replicas_share_the_work_and_the_weights(mortal, model):
    client = mortal.create_client(timeout_s=100)
    ids = [client.infer_async(ONES, do="pid") for _ in range(64)]
    assert {int(client.wait_for_resp(i)) for i in ids} == set(mortal.pids)
    assert len(mortal.pids) == 2
    shifted = {**model.state_dict(), "shift": torch.tensor(5.0)}
    version = mortal.update_params(shifted)
    ids = [client.infer_async(ONES) for _ in range(64)]
    for i in ids:
        torch.testing.assert_close(client.wait_for_resp(i), model(ONES) + 5)
    assert client.version == version
    assert client.stats().version == version


def test_killed_replica_is_restarted_with_the_newest_weights(mortal, model):
    version = mortal.update_params({**model.state_dict(), "shift": torch.tensor(7.0)})
    client = mortal.create_client(timeout_s=100)
    client(ONES)
    killed = mortal.pids
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not set(mortal.pids) & set(killed))

    def ask():
        try:
            return client(ONES)
        except WorkerDiedError:
            return ask()

    torch.testing.assert_close(ask(), model(ONES) + 7)
    assert client.version == version
    assert mortal.update_params(model.state_dict()) == version + 1
    torch.testing.assert_close(ask(), model(ONES))


def test_dead_worker_fails_all_waiters(model, gate):
    """Waiting threads, an event loop's tasks, slots and sockets, and later callers: all learn of it."""
    import asyncio

    inferencer = Inferencer(model)
    errors = []
    clients = [inferencer.create_client(transport=t) for t in ("shm", "socket") * 4]
    for client in clients:
        client(ONES)
    ids = [[client.infer_async(ONES, do="wait", path=str(gate)) for _ in range(8)] for client in clients]

    def wait(client, request_ids):
        for request_id in request_ids:
            try:
                client.wait_for_resp(request_id)
            except WorkerDiedError as error:
                errors.append(error)

    async def await_all(client):
        tasks = [asyncio.create_task(client.ainfer(ONES, do="wait", path=str(gate))) for _ in range(8)]
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            errors.append(outcome)

    threads = [threading.Thread(target=wait, args=pair) for pair in zip(clients, ids, strict=True)]
    for thread in threads:
        thread.start()
    wait_until(lambda: all(client._session.ready().polling for client in clients))
    (pid,) = inferencer.pids
    assert not errors
    os.kill(pid, signal.SIGKILL)
    for thread in threads:
        thread.join(100)
    assert gate.exists()  # so that no worker can have answered
    assert not any(thread.is_alive() for thread in threads)
    assert len(errors) == 64
    assert all(isinstance(error, WorkerDiedError) for error in errors)
    with pytest.raises(WorkerDiedError, match=r"no worker answers at|the worker died"):
        clients[0](ONES)
    wait_until(lambda: not inferencer.pids)
    with pytest.raises(WorkerDiedError, match=r"the worker is dead: it ended with exit code -9"):
        inferencer.update_params(model.state_dict())
    inferencer.close()
    assert not inferencer.ready
    assert not os.path.exists(clients[0].address)
    asyncio.run(await_all(clients[0]))
    assert all(isinstance(error, WorkerDiedError) for error in errors)


def test_slots_of_a_dead_client_come_back(inferencer, gate):
    """More clients than the board has room for at once, each killed in the middle of its requests."""
    clients = inferencer.stats().clients
    for _ in range(3):
        pids = []
        for _ in range(4):
            reader, writer = os.pipe()
            pid = os.fork()
            if pid == 0:
                try:
                    client = inferencer.create_client(transport="shm")
                    client(ONES)
                    for _ in range(30):
                        client.infer_async(ONES, do="same")
                    os.write(writer, b"x")
                    signal.pause()
                finally:
                    os._exit(0)
            os.close(writer)
            assert os.read(reader, 1) == b"x"
            os.close(reader)
            pids.append(pid)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    wait_until(lambda: inferencer.stats().clients <= clients)
    assert torch.equal(inferencer(ONES, do="same"), ONES)


def test_client_connections_leak_no_descriptors(inferencer):
    def worker_descriptors():
        return len(os.listdir(f"/proc/{inferencer.pids[0]}/fd"))

    def cycle():
        for transport in ("shm", "socket"):
            with inferencer.create_client(transport=transport) as client:
                client(ONES, do="same")

    cycle()
    clients = inferencer.stats().clients
    wait_until(lambda: inferencer.stats().clients <= clients)
    ours, theirs = len(os.listdir("/proc/self/fd")), worker_descriptors()
    for _ in range(20):
        cycle()
    # One a cycle would be twenty; a few may be of what else runs in these processes.
    wait_until(lambda: worker_descriptors() < theirs + 20)
    wait_until(lambda: len(os.listdir("/proc/self/fd")) < ours + 20)


def test_garbage_from_a_client_harms_nobody_else(inferencer):
    import socket

    rubbish = [
        b"\xff" * 64,
        b"GET / HTTP/1.1\r\n\r\n" * 4,
        b"",
        bytes([1, 0, 0, 0, 2, 0, 0, 0]) + bytes(24) + b"[]",
        bytes([2, 0, 0, 0, 2, 0, 0, 0]) + bytes(24) + b"{}",
        bytes([6, 0, 0, 0]) + bytes(28),
    ]
    for data in rubbish:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(f"{inferencer.create_client().address}/worker-0")
            connection.sendall(data)
        assert torch.equal(inferencer(ONES, do="same"), ONES)


def test_model_that_ends_the_process_fails_its_request_only(mortal):
    client = mortal.create_client(timeout_s=100)
    client(ONES)
    pids = mortal.pids
    with pytest.raises(WorkerDiedError, match="the worker died"):
        client(ONES, do="die")
    wait_until(lambda: len(mortal.pids) == 2 and set(mortal.pids) != set(pids))
    with pytest.raises(RequestError, match="asked to fail"):
        client(ONES, do="raise")


@pytest.fixture(scope="module")
def tuned(model):
    """One worker with the options that need one of their own."""
    pad = _pad_to_eight
    with Inferencer(model, precision="bf16", pad=pad, max_delay_s=0.005, compile="eager", share=True) as each:
        yield each


def _pad_to_eight(x):
    return nn.functional.pad(x, (0, -x.shape[-1] % 8))


def test_padding_precision_and_compiling(tuned, model):
    y = tuned(torch.ones(2, 5))
    assert y.dtype is torch.bfloat16
    reference = model(torch.tensor([[1.0] * 5 + [0.0] * 3] * 2))
    torch.testing.assert_close(y.float(), reference, atol=0.05, rtol=0.05)
    client = tuned.create_client()
    ids = [client.infer_async(torch.ones(1, n), do="rows") for n in (3, 4, 5)]
    assert {client.wait_for_resp(i).item() for i in ids} == {3}
    with pytest.raises(RequestError, match=r"pad failed on this request"):
        tuned(torch.tensor(1.0))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_worker_and_graphs():
    model = Versatile().eval()
    with Inferencer(model, "cuda", graph_rows=[1, 8]) as inferencer:
        x = torch.randn(5, 8)
        torch.testing.assert_close(inferencer(x), model(x))
        assert inferencer(x.cuda()).device.type == "cuda"
