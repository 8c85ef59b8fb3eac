import asyncio
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest
import torch

from ai.infer import InferencerClient, RequestCancelledError, RequestError
from ai.infer.http.formats.tensors import from_raw
from ai.infer.transport.trees import RawTensor
from tests import warm_python
from tests.devices import lies_on
from tests.infer.infer_models import Heads, Pair
from tests.infer.waiting import wait_until


@pytest.mark.parametrize("rows", [1, 2, 64])
def test_lone_request_equals_the_model_bit_for_bit(client, model, rows):
    x = torch.randn(rows, 8)
    assert torch.equal(client(x), model(x))


def test_request_larger_than_the_batch_size_is_run_in_pieces_where_rows_are_independent(inferencer, rowwise, model):
    x = torch.randn(150, 8)
    torch.testing.assert_close(rowwise(x), model(x))
    assert rowwise(x, do="rows").tolist() == [64] * 64 + [64] * 64 + [22] * 22
    assert inferencer(x, do="rows").tolist() == [150] * 150


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.bfloat16, torch.uint8, torch.int64, torch.bool, torch.complex64]
)
def test_any_dtype_travels(client, dtype):
    x = torch.randint(0, 2, (3, 8)).to(dtype)
    y = client(x, do="same")
    assert y.dtype is dtype
    assert torch.equal(y, x)


def test_two_positional_tensors(client):
    x, y = torch.randn(2, 8), torch.randn(2, 8)
    assert torch.equal(client(x, y, do="add"), x + y)
    assert torch.equal(client(x, y=y, do="add"), x + y)


def test_nested_output_keeps_its_form(client, model):
    x = torch.randn(2, 8)
    logits, total = client(x, do="tuple")
    assert torch.equal(logits, model.fc(x))
    assert torch.equal(total, x.sum(1))
    tree = client(x, do="dict")
    assert list(tree) == ["a", "b", "n", "k"]
    assert torch.equal(tree["b"][1]["c"], x > 0)
    assert tree["b"][0].dtype is torch.int64
    assert (tree["n"], tree["k"]) == (None, 3)
    heads = client(x, do="heads")
    assert type(heads) is Heads
    assert torch.equal(heads.value, x.mean(1))
    pair = client(x, do="pair")
    assert type(pair) is Pair
    assert torch.equal(pair.second, -x)
    assert client(x, do="nothing") == 7


def test_model_of_a_script_names_modules_that_have_classes_of_their_own(client):
    x = torch.randn(2, 8)
    assert torch.equal(client(x, do="flags"), x + 1)


def test_input_that_needs_gradients_and_is_not_contiguous(client, model):
    x = torch.randn(8, 5, requires_grad=True).T
    y = client(x)
    assert not y.requires_grad
    torch.testing.assert_close(y, model(x).detach(), rtol=0, atol=1e-6)
    assert torch.equal(client(x, do="same"), x)


def test_who_asked_first_in_inference_mode_asks_outside_of_it_too(client, model):
    x = torch.randn(2, 8)
    with torch.inference_mode():
        client(x)
        client.multi_infer([x, x])
    reply = client(x)
    assert torch.equal(reply, model(x))
    assert not reply.is_inference()
    assert [torch.equal(each, model(x)) for each in client.multi_infer([x, x])] == [True, True]


def test_the_callers_default_device_changes_nothing(client, model):
    x = torch.randn(2, 8)
    with torch.device("meta"):
        replies = [client(x), *client.multi_infer([x, x]), client(x, do="same", empty=b"")]
    assert all(torch.equal(each, model(x)) for each in replies[:3])
    assert torch.equal(replies[3], x)


@pytest.mark.parametrize("device", ["cuda"], indirect=True)
def test_what_lies_on_a_device_is_answered_there_and_weights_are_taken_from_there(inferencer, client, model, device):
    x = torch.randn(3, 8)
    there, wanted = x.to(device), model(x)
    inferencer.update_params({name: value.to(device) for name, value in model.state_dict().items()})
    replies = [client(there), client.wait_for_resp(client.infer_async(there)), *client.multi_infer([there, there])]
    assert lies_on(replies, device)
    assert all(torch.equal(each.cpu(), wanted) for each in replies)
    tree = client(there, do="dict")
    assert lies_on(tree, device)
    assert torch.equal(tree["b"][1]["c"].cpu(), x > 0)


def test_worker_runs_in_evaluation_mode_without_gradients(client):
    assert client(torch.zeros(2, 8), do="training").tolist() == [0, 0]


def test_reply_is_not_overwritten_by_the_next(client):
    x = torch.ones(1, 8)
    first = client(x, do="same")
    client(2 * x, do="same")
    assert torch.equal(first, x)


def test_output_without_rows_is_never_shared(client):
    xs = [torch.full((1, 8), float(i)) for i in range(4)]
    ids = [client.infer_async(x, do="mean") for x in xs]
    assert [client.wait_for_resp(i).item() for i in ids] == [0, 1, 2, 3]
    large = torch.randn(150, 8)
    assert torch.equal(client(large, do="mean"), large.mean())


def test_replies_come_in_any_order_of_waiting(client, model):
    xs = [torch.randn(1, 8) for _ in range(50)]
    ids = [client.infer_async(x) for x in xs]
    for i in reversed(range(50)):
        torch.testing.assert_close(client.wait_for_resp(ids[i]), model(xs[i]))


def test_requests_of_a_client_are_run_in_the_order_in_which_it_asked(client, gate):
    """Also where the slots that came free last, and are used first, are the last ones."""
    for request_id in [client.infer_async(torch.zeros(1, 8), do="same") for _ in range(30)]:
        client.wait_for_resp(request_id)
    busy = client.infer_async(torch.zeros(1, 8), do="wait", path=str(gate))
    ids = [client.infer_async(torch.zeros(1, 8 + i), do="count") for i in range(20)]
    gate.unlink()
    client.wait_for_resp(busy)
    calls = [client.wait_for_resp(request_id).item() for request_id in ids]
    assert calls == sorted(calls)


def test_more_requests_than_slots_do_not_lock_up(client):
    ids = [client.infer_async(torch.full((1, 8), float(i)), do="same") for i in range(500)]
    assert [client.wait_for_resp(i)[0, 0].item() for i in ids] == list(range(500))


@pytest.mark.parametrize("transport", ["shm", "socket"])
def test_requests_that_queue_while_the_worker_is_busy_share_a_batch(rowwise, transport, gate):
    client = rowwise.create_client(transport=transport, timeout_s=100)
    busy = client.infer_async(torch.zeros(1, 8), do="wait", path=str(gate))
    ids = [client.infer_async(torch.zeros(n, 8), do="rows") for n in (1, 2, 3)]
    other = client.infer_async(torch.zeros(2, 8), do="same")
    gate.unlink()
    client.wait_for_resp(busy)
    assert [client.wait_for_resp(i).tolist() for i in ids] == [[6], [6] * 2, [6] * 3]
    assert client.wait_for_resp(other).shape == (2, 8)
    client.close()


def test_ragged_shapes_are_grouped_by_shape(client):
    xs = [torch.randn(1 + i % 3, 2 + i % 5) for i in range(60)]
    ids = [client.infer_async(x, do="same") for x in xs]
    for x, i in zip(xs, ids, strict=True):
        assert torch.equal(client.wait_for_resp(i), x)


def test_reply_larger_than_its_slot(inferencer):
    with inferencer.create_client(slot_bytes=4096, transport="shm") as client:
        x = torch.randn(2, 8)
        small = client.infer_async(x, do="same")
        big = client.infer_async(x, do="grow")
        assert torch.equal(client.wait_for_resp(big), x.repeat(1, 40000))
        assert torch.equal(client.wait_for_resp(small), x)


@pytest.mark.parametrize("transport", ["shm", "socket"])
def test_client_that_does_not_fetch_its_replies_holds_up_nobody(inferencer, transport):
    """Its 64 replies of 1.3 MB are more than the worker keeps unsent for one client."""
    with inferencer.create_client(transport=transport, slot_bytes=4096) as slow, inferencer.create_client() as other:
        x = torch.ones(1, 8)
        ids = [slow.infer_async(x + i, do="grow") for i in range(64)]
        for _ in range(20):
            assert torch.equal(other(x, do="same"), x)
        for i, request_id in enumerate(ids):
            assert torch.equal(slow.wait_for_resp(request_id), (x + i).repeat(1, 40000))


def test_request_larger_than_its_slot(inferencer):
    with inferencer.create_client(slot_bytes=4096, transport="shm") as client:
        x = torch.randn(3, 500_000)
        ids = [client.infer_async(x + i, do="same") for i in range(3)]
        for i, each in enumerate(ids):
            assert torch.equal(client.wait_for_resp(each), x + i)


@contextmanager
def _standing_at(inferencer, gate):
    """Has the worker stand at a gate, where it answers nobody and reads no socket."""
    with inferencer.create_client() as patient:
        request_id = patient.infer_async(torch.ones(1, 8), do="wait", path=str(gate))
        wait_until(gate.with_suffix(".begun").exists)
        opener = threading.Timer(90, gate.unlink, [True])  # so that a test which would wait for ever fails
        opener.start()
        try:
            yield
        finally:
            opener.cancel()
            gate.unlink(missing_ok=True)
            patient.wait_for_resp(request_id)


LARGE = torch.arange(1_000_000, dtype=torch.float32).view(1, -1)
"""More than a slot and the buffers of a socket take."""


@pytest.mark.parametrize("transport", ["shm", "socket"])
def test_timeout_is_kept_by_a_request_that_the_socket_takes_only_a_part_of(inferencer, gate, transport):
    with inferencer.create_client(timeout_s=100, transport=transport) as client:
        client.ping()
        with _standing_at(inferencer, gate):
            client.timeout_s = 0.02
            with pytest.raises(TimeoutError, match="the worker did not take the request in time"):
                client(LARGE, do="same")
            with pytest.raises(TimeoutError, match="the worker did not take this client's earlier requests in time"):
                client(LARGE, do="same")
            with pytest.raises(TimeoutError, match="did not answer in time"):
                client.ping(timeout=0.02)
            assert gate.exists()
        client.timeout_s = 100
        assert torch.equal(client(LARGE, do="same"), LARGE)  # after the rest of the first, which is skipped


@pytest.mark.parametrize("transport", ["shm", "socket"])
def test_event_loop_goes_on_while_the_socket_takes_large_requests(inferencer, gate, transport):
    async def main(client):
        with _standing_at(inferencer, gate):
            asked = [asyncio.create_task(client.ainfer(LARGE + i, do="same")) for i in range(3)]
            for _ in range(20):
                await asyncio.sleep(0)
            assert gate.exists()
            client.timeout_s = 0.02
            with pytest.raises(TimeoutError):
                await client.ainfer(LARGE)
            client.timeout_s = 100
            dropped = asyncio.create_task(client.ainfer(torch.ones(1, 8), do="same"))
            await asyncio.sleep(0)
            dropped.cancel()
            assert gate.exists()
        for i, y in enumerate(await asyncio.gather(*asked)):
            assert torch.equal(y, LARGE + i)

    with inferencer.create_client(timeout_s=100, transport=transport) as client:
        client.ping()
        asyncio.run(main(client))
        assert torch.equal(client(LARGE, do="same"), LARGE)


def test_room_goes_to_those_who_still_wait_for_it(inferencer):
    """Those who gave up stand before them in the queue, as after an overload."""

    async def main(client):
        await client.ainfer(torch.ones(1, 8), do="same")  # from now on the loop watches
        connection, loop = client._session.ready(), asyncio.get_running_loop()
        watcher = connection.watcher
        gave_up, waiting = ([loop.create_future() for _ in range(n)] for n in (100, 20))
        for future in gave_up:
            future.cancel()
        with connection.lock:
            watcher._room_waiters.extend(gave_up + waiting)
            watcher.has_room()
        async with asyncio.timeout(100):
            await asyncio.gather(*waiting)

    with inferencer.create_client(timeout_s=100) as client:
        asyncio.run(main(client))


def test_multi_infer_returns_each_inputs_own_rows(client, model):
    xs = [torch.randn(1 + i % 3, 8) for i in range(100)]
    for x, y in zip(xs, client.multi_infer(xs), strict=True):
        torch.testing.assert_close(y, model(x))
    same = [torch.randn(2, 8) for _ in range(70)]
    for x, y in zip(same, client.multi_infer(same), strict=True):
        torch.testing.assert_close(y, model(x))
    mixed = [torch.randn(1, 8), (torch.randn(2, 8), None), torch.randn(1, 8).double().float()]
    for x, y in zip(mixed, client.multi_infer(mixed), strict=True):
        torch.testing.assert_close(y, model(x[0] if isinstance(x, tuple) else x))
    assert client.multi_infer([]) == []


def test_poisoned_request_fails_alone(client):
    xs = [torch.full((1, 8), 13.0 if i % 10 == 3 else float(i % 10)) for i in range(60)]
    ids = [client.infer_async(x, do="poison") for x in xs]
    for i, each in enumerate(ids):
        if i % 10 == 3:
            with pytest.raises(RequestError, match=r"(?s)RuntimeError: a 13 was in the batch.*in forward"):
                client.wait_for_resp(each)
        else:
            assert torch.equal(client.wait_for_resp(each), xs[i] + 1)


def test_output_that_cannot_travel_is_named(client):
    with pytest.raises(RequestError, match=r"the model's output must be a tensor, .* not object"):
        client(torch.zeros(1, 8), do="object")


def test_output_too_large_for_a_message_fails_its_requests_alone(client, inferencer):
    pids = inferencer.pids
    ids = [client.infer_async(torch.zeros(n, 8), do="many") for n in (1, 2)]
    for request_id in ids:
        with pytest.raises(RequestError, match=r"a message's structure must take at most 65536 bytes, not \d+"):
            client.wait_for_resp(request_id)
    assert torch.equal(client(torch.ones(1, 8), do="same"), torch.ones(1, 8))
    assert inferencer.pids == pids


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda c: c(object()), r"argument 0 must be a tensor, .* not object"),
        (lambda c: c(torch.zeros(1), y={"a": [object()]}), r"y\['a'\]\[0\] must be a tensor"),
        (lambda c: c(torch.zeros(2, 2).to_sparse()), r"argument 0 must be a dense tensor, not one of layout"),
        (lambda c: c({1.5: torch.zeros(1)}), r"argument 0 must have str or int keys, not 1.5"),
    ],
)
def test_argument_that_cannot_travel_is_named(inferencer, bad, message):
    with pytest.raises(TypeError, match=message):
        bad(inferencer)


@pytest.mark.parametrize("address", ["localhost:8000", "http://10.0.0.1:8000/v2", "localhost:8000/"])
def test_the_address_of_a_server_is_named_as_such(address):
    with pytest.raises(
        ValueError,
        match=f"^address must be the folder of an inferencer, not '{address}': a server is asked over HTTP$",
    ):
        InferencerClient(address)


def test_a_folder_that_looks_like_a_server_is_a_folder(tmp_path, monkeypatch):
    (tmp_path / "localhost:8000").mkdir()
    monkeypatch.chdir(tmp_path)
    assert InferencerClient("localhost:8000").address == "localhost:8000"


def test_options_are_checked():
    with pytest.raises(ValueError, match=r"timeout_s must be positive or None, not 0"):
        InferencerClient("x", timeout_s=0)
    with pytest.raises(ValueError, match=r"transport must be 'auto', 'shm' or 'socket', not 'pipe'"):
        InferencerClient("x", transport="pipe")
    with pytest.raises(ValueError, match=r"slot_bytes must be a multiple of 4096 from 4096 to 2\*\*30, not 5000"):
        InferencerClient("x", slot_bytes=5000)


def test_timeout_leaves_the_request_to_be_waited_for_again(client, gate):
    request_id = client.infer_async(torch.ones(1, 8), do="wait", path=str(gate))
    with pytest.raises(TimeoutError, match="did not answer in time"):
        client.wait_for_resp(request_id, timeout=0.01)
    gate.unlink()
    assert torch.equal(client.wait_for_resp(request_id), torch.ones(1, 8))
    with pytest.raises(ValueError, match=rf"request_id \({request_id}\) must be that of a request whose reply is due"):
        client.wait_for_resp(request_id)


def test_call_gives_up_at_its_deadline(inferencer, gate):
    with inferencer.create_client(timeout_s=0.02) as hasty, inferencer.create_client(timeout_s=100) as patient:
        busy = patient.infer_async(torch.ones(1, 8), do="wait", path=str(gate))
        with pytest.raises(TimeoutError, match="did not answer in time"):
            hasty(torch.ones(1, 8))
        gate.unlink()
        patient.wait_for_resp(busy)


def test_cancelled_request_is_skipped_and_wedges_nothing(client, inferencer, gate):
    before = inferencer.stats().cancelled
    busy = client.infer_async(torch.ones(1, 8), do="wait", path=str(gate))
    waiting = [client.infer_async(torch.ones(1, 8), do="same") for _ in range(40)]
    for request_id in waiting[::2]:
        client.cancel(request_id)
    with pytest.raises(ValueError, match="must be that of a request whose reply is due"):
        client.wait_for_resp(waiting[0])
    gate.unlink()
    client.wait_for_resp(busy)
    for request_id in waiting[1::2]:
        assert torch.equal(client.wait_for_resp(request_id), torch.ones(1, 8))
    for _ in range(3):  # all slots are usable again
        ids = [client.infer_async(torch.ones(1, 8), do="same") for _ in range(64)]
        assert all(client.wait_for_resp(i).shape == (1, 8) for i in ids)
    assert inferencer.stats().cancelled - before == 20


def test_waiting_thread_learns_of_a_cancel(client, gate):
    request_id = client.infer_async(torch.ones(1, 8), do="wait", path=str(gate))
    seen = []

    def wait():
        try:
            client.wait_for_resp(request_id)
        except RequestCancelledError as error:
            seen.append(error)

    connection, _ = client._session.find(request_id)
    thread = threading.Thread(target=wait)
    thread.start()
    wait_until(lambda: connection.polling or not thread.is_alive())
    client.cancel(request_id)
    gate.unlink()
    thread.join(100)
    assert len(seen) == 1


def test_is_ready(client, gate):
    request_id = client.infer_async(torch.ones(1, 8), do="wait", path=str(gate))
    assert not client.is_ready(request_id)
    gate.unlink()
    wait_until(lambda: client.is_ready(request_id))
    client.wait_for_resp(request_id)


def test_client_pickles_as_its_address(client, model):
    copy = pickle.loads(pickle.dumps(client))
    x = torch.randn(1, 8)
    assert torch.equal(copy(x), model(x))
    assert copy.timeout_s == client.timeout_s
    copy.close()
    assert torch.equal(copy(x), model(x))  # it connects anew
    copy.close()


def test_threads_share_a_client(client):
    errors = []

    def work(seed):
        try:
            for i in range(100):
                x = torch.full((1, 8), float(1000 * seed + i))
                assert torch.equal(client(x, do="same"), x)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert not errors
    assert not any(thread.is_alive() for thread in threads)


def _ask_in_child(client, seed, pipe):
    x = torch.full((2, 8), float(seed))
    pipe.send(all(torch.equal(client(x, do="same"), x) for _ in range(50)))
    pipe.close()
    os._exit(0)


def test_forked_children_of_a_connected_client_ask_on_their_own(client):
    client(torch.zeros(1, 8))
    context = multiprocessing.get_context("fork")
    pending = client.infer_async(torch.ones(1, 8), do="same")
    children = []
    for seed in range(3):
        ours, theirs = context.Pipe(False)
        child = context.Process(target=_ask_in_child, args=(client, seed, theirs))
        child.start()
        theirs.close()
        children.append((child, ours))
    for child, pipe in children:
        assert pipe.recv()
        child.join(100)
    assert torch.equal(client.wait_for_resp(pending), torch.ones(1, 8))


@pytest.mark.slow
def test_client_reaches_another_program_by_pickle(inferencer, tmp_path):
    (tmp_path / "client.pkl").write_bytes(pickle.dumps(inferencer.create_client()))
    program = """if True:
        import pickle, sys, torch
        with open(sys.argv[1], "rb") as file:
            client = pickle.load(file)
        print(client(torch.ones(1, 8), do="same").sum().item())
    """
    command = [warm_python.executable(), "-c", program, str(tmp_path / "client.pkl")]
    assert subprocess.run(command, capture_output=True, check=True, timeout=300).stdout == b"8.0\n"


def test_asyncio_gather(client, model):
    async def main():
        xs = [torch.randn(1, 8) for _ in range(200)]
        ys = await asyncio.gather(*(client.ainfer(x) for x in xs))
        for x, y in zip(xs, ys, strict=True):
            torch.testing.assert_close(y, model(x))
        request_id = client.infer_async(xs[0])
        torch.testing.assert_close(await client.await_resp(request_id), model(xs[0]))
        with pytest.raises(RequestError, match="asked to fail"):
            await client.ainfer(xs[0], do="raise")

    asyncio.run(main())
    asyncio.run(main())  # another loop, later, is fine
    x = torch.randn(1, 8)
    assert torch.equal(client(x), model(x))


def test_asyncio_timeout_and_cancel(inferencer, gate):
    async def main(hasty, patient):
        busy = asyncio.create_task(patient.ainfer(torch.ones(1, 8), do="wait", path=str(gate)))
        await asyncio.sleep(0)
        with pytest.raises(TimeoutError):
            await hasty.ainfer(torch.ones(1, 8))
        dropped = asyncio.create_task(patient.ainfer(torch.ones(1, 8)))
        await asyncio.sleep(0)
        dropped.cancel()
        gate.unlink()
        assert torch.equal(await busy, torch.ones(1, 8))
        assert (await patient.ainfer(torch.ones(1, 8))).shape == (1, 4)

    with inferencer.create_client(timeout_s=0.02) as hasty, inferencer.create_client() as patient:
        patient.ping()  # has the first slots now: what it asks is run before what the other asks at the same time
        hasty.ping(timeout=100)
        asyncio.run(main(hasty, patient))


def test_ping_and_stats_count(client, inferencer):
    before = client.stats()
    client(torch.zeros(3, 8))
    after = client.stats()
    assert (after.requests - before.requests, after.rows - before.rows, after.batches - before.batches) == (1, 3, 1)
    assert after.clients >= 1
    assert client.ping() > 0
    assert after.rows_per_batch > 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at the memory that Linux shows of a process")
def test_memory_that_large_messages_have_touched_goes_back_once_none_is_on_its_way(rowwise):
    with rowwise.create_client(timeout_s=100) as client:
        x = torch.arange(1 << 17, dtype=torch.float32).view(2, -1)  # half a megabyte
        for turn in range(2):  # with pages that are there and with pages that are not
            ids = [client.infer_async(x + i + turn, do="same") for i in range(40)]
            touched = _resident_bytes(client)
            replies = [client.wait_for_resp(request_id) for request_id in ids]
            assert touched > 40 * x.nbytes
            assert _resident_bytes(client) < 8 << 20
            for i, y in enumerate(replies):
                assert torch.equal(y, x + i + turn)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at the memory that Linux shows of a process")
def test_memory_of_replies_that_were_cancelled_while_they_were_made_goes_back_too(rowwise, gate):
    with rowwise.create_client(timeout_s=100) as client:
        first = client.infer_async(torch.zeros(1, 8), do="wait", path=str(gate))
        wait_until(gate.with_suffix(".begun").exists)
        gate.with_suffix(".begun").unlink()
        ids = [client.infer_async(torch.ones(1, 1 << 17), do="wait", path=f"{gate}2") for _ in range(30)]
        gate.with_name(f"{gate.name}2").touch()
        gate.unlink()  # the next call is for all thirty
        client.wait_for_resp(first)
        wait_until(gate.with_name(f"{gate.name}2").with_suffix(".begun").exists)
        for request_id in ids:
            client.cancel(request_id)
        gate.with_name(f"{gate.name}2").unlink()
        assert torch.equal(client(torch.ones(1, 8), do="same"), torch.ones(1, 8))
        assert _resident_bytes(client) < 9 << 20


def test_output_that_is_a_view_of_the_input_and_too_large_for_a_slot_is_the_models_own(inferencer):
    with inferencer.create_client(slot_bytes=1 << 24, timeout_s=100) as client:
        for i in range(1, 4):
            x = torch.full((1, 3_000_000), float(i))  # whose memory goes back at once
            y, minus = client(x, do="pair")
            assert torch.equal(y, x)
            assert torch.equal(minus, -x)


def _resident_bytes(client):
    """Returns how much of a client's area this process has mapped and in memory."""
    (connection,) = client._session.connections
    begin = connection.slots._area._data.data_ptr()
    with open("/proc/self/smaps") as file:
        lines = iter(file)
        for line in lines:
            if line.startswith(f"{begin:x}-"):
                return int(next(each for each in lines if each.startswith("Rss:")).split()[1]) << 10
    raise AssertionError("the area is not mapped")


@pytest.mark.parametrize("order", [[100, 0.02, 50], [0.02, 100, 50], [100, 50, 0.02]])
def test_whoever_waits_shortest_is_told_whatever_the_others_asked_for_before(client, gate, order):
    """One timer sees to all waits of a client: it is set anew where somebody comes who is due sooner."""
    x = torch.randn(2, 8)
    bare = RawTensor(torch.float32, (2, 8), x.numpy().tobytes())

    async def scene():
        busy = client.infer_async(torch.zeros(1, 8), do="wait", path=str(gate))
        await asyncio.to_thread(wait_until, gate.with_suffix(".begun").exists)
        told = {seconds: asyncio.Event() for seconds in order}
        calls = {s: client.start_raw([bare], lambda _, s=s: told[s].set(), s) for s in order}
        await asyncio.wait_for(told[0.02].wait(), 40)
        with pytest.raises(TimeoutError):
            calls[0.02].result()
        assert not told[50].is_set()
        assert not told[100].is_set()
        gate.unlink()
        for seconds in (50, 100):
            await told[seconds].wait()
            assert torch.equal(from_raw(calls[seconds].result()), expected)
        await client.await_resp(busy)

    expected = client(x)
    asyncio.run(scene())


def test_who_drops_a_request_is_not_called_even_where_its_reply_is_there_already(client):
    bare = RawTensor(torch.float32, (2, 8), torch.zeros(2, 8).numpy().tobytes())
    client(torch.zeros(2, 8))
    (connection,) = client._session.connections
    called = []

    async def scene():
        dropped, kept = (client.start_raw([bare], called.append) for _ in range(2))
        with connection.lock:
            connection.watcher.finished(dropped)
            connection.watcher.finished(kept)
        dropped.cancel()
        while not called:
            await asyncio.sleep(0)
        assert called == [kept]

    asyncio.run(scene())
