"""The real server as a process, asked by a real client."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
import torch
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from tests import warm_python
from tests.infer.waiting import wait_until

FACTORY = """
import os, time
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(5)
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        if (x == 99).any():
            os._exit(1)
        if (x == 77).any():
            time.sleep(1.0)
        while (x == 78).any() and os.path.exists("gate"):
            time.sleep(0.01)
        return {"logits": self.fc(x.flatten(1)), "sum": x.flatten(1).sum(1)}

class Line(nn.Module):
    def forward(self, x):
        return x @ torch.arange(18.0).view(6, 3)
"""


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    (folder / "shop.py").write_text(FACTORY)
    scope = {}
    exec(FACTORY, scope)
    return folder, scope["Net"]().eval(), scope["Line"]()


@pytest.fixture(scope="module")
def server(net):
    folder, _, _ = net
    models = ["net=shop:Net?input=x:FP32:-1,2,3", "linear@4=shop:Line?input=x:FP32:-1,6"]
    process = warm_python.Process(  # in tests/infer/http/test_nginx.py one serves from fresh interpreters
        [
            sys.executable,
            "-m",
            "ai.infer.cli",
            "serve",
            "--port",
            "0",
            "--max-pending",
            "50",
            "--timeout",
            "120",
            *models,
        ],
        cwd=folder,
        env={**os.environ, "WARM_PYTHON_NESTED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        line = process.stdout.readline()
        address = re.fullmatch(r"serving at http://(\S+)\n", line).group(1)
        yield address
        end(process, address)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def end(process, address):
    """Ends the server by SIGTERM, amid a request: that is answered, and no worker is left."""
    workers = psutil.Process(process.pid).children()
    assert len(workers) == 2
    host, port = address.split(":")
    # "Expect: 100-continue" makes the server say when it has begun with the request.
    with socket.create_connection((host, int(port)), timeout=100) as connection:
        body = b"[[[1,2,3],[4,5,6]]]"
        head = f"POST /models/net HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: {len(body)}\r\n"
        connection.sendall(head.encode() + b"content-type: application/json\r\n\r\n")
        assert connection.recv(1000).startswith(b"HTTP/1.1 100 ")
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: not is_listening(host, int(port)))  # so that it has begun to end
        connection.sendall(body)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")
    assert process.wait(100) in (0, -signal.SIGTERM)
    assert not any(worker.is_running() for worker in workers)


def is_listening(host, port):
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


def as_input(x, binary=True, name="x"):
    tensor = triton.InferInput(name, list(x.shape), "FP32")
    tensor.set_data_from_numpy(x, binary_data=binary)
    return tensor


def post(address, body, path="/models/net", headers=None, timeout_s=100):
    connection = http.client.HTTPConnection(address, timeout=timeout_s)
    try:
        connection.request("POST", path, body, {"accept": "application/json", **(headers or {})})
        reply = connection.getresponse()
        return reply.status, dict(reply.getheaders()), reply.read()
    finally:
        connection.close()


def test_tritonclient_talks_to_the_server(server, net):
    _, model, linear = net
    x = np.random.default_rng(0).normal(size=(4, 2, 3)).astype(np.float32)
    with torch.no_grad():
        expected = {name: y.numpy() for name, y in model(torch.from_numpy(x)).items()}
    client = triton.InferenceServerClient(server)
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("net")
    assert client.is_model_ready("linear", "4")
    assert not client.is_model_ready("other")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    metadata = client.get_model_metadata("net")
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 2, 3]}]
    assert metadata["outputs"] == [
        {"name": "logits", "datatype": "FP32", "shape": [-1, 3]},
        {"name": "sum", "datatype": "FP32", "shape": [-1]},
    ]
    for binary in (True, False):
        outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in expected]
        for wanted in (None, outputs):
            result = client.infer("net", [as_input(x, binary)], outputs=wanted, request_id="7")
            assert result.get_response()["id"] == "7"
            for name, y in expected.items():
                np.testing.assert_allclose(result.as_numpy(name), y, rtol=1e-6)
    handles = [client.async_infer("net", [as_input(x + i)]) for i in range(5)]
    for i, handle in enumerate(handles):
        y = model(torch.from_numpy(x + i))["logits"].detach().numpy()
        np.testing.assert_allclose(handle.get_result().as_numpy("logits"), y, rtol=1e-5, atol=1e-6)
    for packed in ("gzip", "deflate"):
        result = client.infer("net", [as_input(x)], request_compression_algorithm=packed)
        np.testing.assert_allclose(result.as_numpy("sum"), expected["sum"], rtol=1e-6)
    best = client.infer("net", [as_input(x)], outputs=[triton.InferRequestedOutput("logits", class_count=1)])
    classes = [int(text.split(b":")[1]) for text in best.as_numpy("logits").flatten()]
    assert classes == expected["logits"].argmax(1).tolist()
    flat = np.ones((2, 6), np.float32)
    y = client.infer("linear", [as_input(flat)], model_version="4").as_numpy("y")
    np.testing.assert_allclose(y, linear(torch.from_numpy(flat)).numpy(), rtol=1e-6)
    with pytest.raises(InferenceServerException, match=r"the model has no input 'z'"):
        client.infer("net", [as_input(x, name="z")])
    with pytest.raises(InferenceServerException, match=r"parameter 'sequence_end' is not supported"):
        client.infer("net", [as_input(x)], sequence_id=5)
    with pytest.raises(InferenceServerException, match=r"\[404\] there is nothing at '/v2/systemsharedmemory"):
        client.register_system_shared_memory("region", "/region", 48)
    with pytest.raises(InferenceServerException, match=r"there is no model 'other'"):
        client.infer("other", [as_input(x)])
    assert {entry["name"]: entry["state"] for entry in client.get_model_repository_index()} == {
        "net": "READY",
        "linear": "READY",
    }
    client.unload_model("linear")
    assert not client.is_model_ready("linear")
    assert client.is_server_ready()  # the other model is there
    with pytest.raises(InferenceServerException, match=r"model 'linear' is unloaded"):
        client.infer("linear", [as_input(flat)])
    client.load_model("linear")
    np.testing.assert_allclose(client.infer("linear", [as_input(flat)]).as_numpy("y"), y)
    client.close()


def test_killed_worker_answers_503_at_once_and_comes_back(server):
    headers = {"content-type": "application/json"}
    with ThreadPoolExecutor(8) as pool:
        slow = [pool.submit(post, server, b"[[[77,0,0],[0,0,0]]]", headers=headers) for _ in range(3)]
        deadly = pool.submit(post, server, b"[[[99,0,0],[0,0,0]]]", headers=headers)
        statuses = {future.result()[0] for future in [*slow, deadly]}
    assert 503 in statuses
    assert statuses <= {200, 503}
    answers = []

    def comes_back():
        answers.append(post(server, b"[[[1,0,0],[0,0,0]]]", headers=headers))
        assert answers[-1][0] in (200, 503)
        return answers[-1][0] == 200

    wait_until(comes_back)
    assert "logits" in answers[-1][2].decode()


@pytest.mark.slow
def test_request_on_its_way_survives_a_load(server, net):
    """The old worker holds it until after the new one serves."""
    folder, _, _ = net
    gate = folder / "gate"
    gate.touch()
    headers = {"content-type": "application/json"}
    client = triton.InferenceServerClient(server, network_timeout=100.0)
    try:
        with ThreadPoolExecutor(2) as pool:
            held = pool.submit(post, server, b"[[[78,0,0],[0,0,0]]]", headers=headers, timeout_s=120)
            load = pool.submit(client.load_model, "net")
            deadline = time.monotonic() + 100
            while True:  # the old worker is busy; an answer comes from the new one
                assert time.monotonic() < deadline
                try:
                    if post(server, b"[[[1,0,0],[0,0,0]]]", headers=headers, timeout_s=0.5)[0] == 200 and gate.exists():
                        break
                except TimeoutError:
                    continue
            assert not held.done()
            gate.unlink()
            assert held.result()[0] == 200
            load.result()
    finally:
        gate.unlink(missing_ok=True)
        client.close()


def test_rubbish_instead_of_http_harms_nobody(server):
    host, port = server.split(":")
    for rubbish in [b"\0" * 100, b"GET / HTTP/9\r\n\r\n", b"POST /models/net HTTP/1.1\r\ncontent-length: -5\r\n\r\n"]:
        with socket.create_connection((host, int(port)), timeout=100) as connection:
            connection.sendall(rubbish)
            reply = connection.recv(1000)
            assert b" 5" not in reply.split(b"\r\n")[0]
    with socket.create_connection((host, int(port)), timeout=100) as connection:  # hangs up halfway
        connection.sendall(b"POST /models/net HTTP/1.1\r\ncontent-length: 1000\r\n\r\nabc")
    headers = {"content-type": "application/json"}
    assert post(server, b"[[[1,2,3],[4,5,6]]]", headers=headers)[0] == 200


def test_http_is_spoken_as_by_the_server_that_others_keep(server):
    """HTTP/1.0, HEAD, trailers and two requests at once; an offer of h2c, which is passed over."""
    host, port = server.split(":")
    body, fields = b"[[[1,2,3],[4,5,6]]]", b"host: x\r\ncontent-type: application/json\r\n"
    head = fields + b"content-length: %d\r\n" % len(body)
    chunks = b"POST /models/net HTTP/1.1\r\n" + fields + b"transfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n"
    chunks += b"%x\r\n%s\r\n0\r\nx-sum: 1\r\n\r\n" % (len(body), body)
    end = head + b"connection: close\r\n\r\n" + body
    expected = json.loads(post(server, body, headers={"content-type": "application/json"})[2])

    def replies(data):
        with socket.create_connection((host, int(port)), timeout=100) as connection:
            connection.sendall(data)
            got = b"".join(iter(lambda: connection.recv(65536), b""))
        return [part.split(b"\r\n\r\n", 1) for part in got.split(b"HTTP/1.1 ")[1:]]

    for data in [
        b"POST /models/net HTTP/1.0\r\n" + head + b"\r\n" + body,
        chunks + b"POST /models/net HTTP/1.1\r\n" + end,
        b"POST /models/net HTTP/1.1\r\nupgrade: h2c\r\n" + end.replace(b": close", b": close, upgrade"),
    ]:
        for about, reply in replies(data):
            assert about.startswith(b"200 ")
            assert json.loads(reply) == expected
    ((about, reply),) = replies(b"HEAD /v2/health/live HTTP/1.0\r\n\r\n")
    assert (about[:3], b"content-length: 13" in about, reply) == (b"200", True, b"")
