"""Several processes that answer HTTP in front of one set of workers."""

import argparse
import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from ai.infer.http.formats.messages import RefusedError
from ai.infer.http.front_end import DistantOwner
from ai.infer.http.front_ends import FrontEnds
from ai.infer.http.line import Line, LineClosedError
from ai.infer.http.metrics import Metrics
from ai.infer.http.models.repository import Repository, UnknownModelError
from ai.infer.http.serve import add_arguments, make_server
from tests.infer.waiting import wait_until

FACTORY = """
import os, time
from pathlib import Path
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.number = float(Path("number").read_text())

    def forward(self, x):
        while (x == 78).any() and os.path.exists("gate"):
            Path("begun").touch()
            time.sleep(0.01)
        return x + self.number

def make():
    return Net()
"""


def ask(address, method, path, body=b"", headers=None):
    connection = http.client.HTTPConnection(address, timeout=100)
    try:
        connection.request(method, path, body, {"content-type": "application/json", **(headers or {})})
        reply = connection.getresponse()
        return reply.status, reply.read()
    finally:
        connection.close()


def counted(address):
    families = text_string_to_metric_families(ask(address, "GET", "/metrics")[1].decode())
    samples = [sample for family in families for sample in family.samples]
    return sum(sample.value for sample in samples if sample.name == "ai_infer_requests_total")


def front_ends():
    """Returns the process ids of the front ends that this process has."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):  # it ends while it is looked at
            if any("ai.infer.http.front_end" in word for word in child.cmdline()):
                found.append(child.pid)
    return found


def serve(n, source, meanwhile=None):
    """Runs front ends from this process, as `ai-infer serve --workers` does; returns the exit code."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    arguments = parser.parse_args(["--workers", str(n), "--port", "0", source])
    repository = Repository(arguments.models, arguments.timeout, arguments.timeout)
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        address = "{}:{}".format(*listener.getsockname())
        scenes = []

        def listens():
            scenes.append(pool.submit(meanwhile, address))

        code = asyncio.run(FrontEnds(n, repository, listener, arguments, None).serve(listens))
        for scene in scenes:
            scene.result()
        return code


def test_front_ends_are_one_server(tmp_path, monkeypatch):
    """They count together, all hear what one was told, are started again, and answer what they have at the end."""
    (tmp_path / "shop.py").write_text(FACTORY)
    (tmp_path / "number").write_text("1")
    (tmp_path / "gate").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def scene(address):
        try:
            assert ask(address, "GET", "/v2/health/ready") == (200, b'{"ready":true}')
            assert [ask(address, "POST", "/models/m", b"[[1.0]]") for _ in range(8)] == [(200, b"[[2.0]]")] * 8
            assert counted(address) == 8
            (tmp_path / "number").write_text("5")
            assert ask(address, "POST", "/v2/repository/models/m/load") == (200, b"{}")
            assert [ask(address, "POST", "/models/m", b"[[1.0]]") for _ in range(8)] == [(200, b"[[6.0]]")] * 8
            assert ask(address, "POST", "/v2/repository/models/none/load")[0] == 404
            first = front_ends()
            os.kill(first[0], signal.SIGKILL)
            wait_until(lambda: not Path(f"/proc/{first[0]}").exists())
            assert [ask(address, "POST", "/models/m", b"[[1.0]]") for _ in range(4)] == [(200, b"[[6.0]]")] * 4
            assert counted(address) >= 4  # those that the dead one had told of are in it
            wait_until(lambda: len(set(front_ends()) - {first[0]}) == 2)
            with ThreadPoolExecutor(1) as pool:
                held = pool.submit(ask, address, "POST", "/models/m", b"[[78.0]]")
                wait_until((tmp_path / "begun").exists)
                os.kill(os.getpid(), signal.SIGTERM)
                (tmp_path / "gate").unlink()
                assert held.result() == (200, b"[[83.0]]")
        except BaseException:
            os.kill(os.getpid(), signal.SIGTERM)
            raise

    assert serve(2, "m=shop:make", scene) == 0
    assert front_ends() == []


def test_server_that_cannot_start_says_so_and_leaves_nobody(caplog):
    assert serve(1, "m=json:nothing", pytest.fail) == 1
    assert "the server could not start" in caplog.text
    assert front_ends() == []


def test_line_carries_answers_and_refusals_both_ways():
    async def scene():
        async def double(what, about):
            if what == "unknown":
                raise UnknownModelError("there is no model 'x'")
            if what == "never":
                await asyncio.sleep(1000)
            if what == "back":
                return await right.ask("double", 100, x=about["x"] + 1)
            return 2 * about["x"]

        a, b = socket.socketpair()
        left, right = Line(a, double), Line(b, double)
        serving = [asyncio.create_task(line.serve()) for line in (left, right)]
        assert await asyncio.gather(*(left.ask("double", 100, x=i) for i in range(5))) == [0, 2, 4, 6, 8]
        assert await left.ask("back", 100, x=3) == 8
        with pytest.raises(RefusedError, match="there is no model 'x'") as refused:
            await left.ask("unknown", 100)
        assert refused.value.status == 404
        with pytest.raises(RefusedError, match="KeyError: 'x'"):
            await left.ask("double", 100)
        with pytest.raises(TimeoutError):
            await left.ask("never", 0.01)
        waiting = asyncio.create_task(left.ask("never", 100))
        await asyncio.sleep(0)
        serving[1].cancel()
        with pytest.raises(LineClosedError, match="the other process is gone"):
            await waiting
        with pytest.raises(LineClosedError, match="the other process is gone"):
            await left.ask("double", 100, x=1)
        await asyncio.gather(*serving, return_exceptions=True)

    asyncio.run(scene())


def test_counts_of_several_processes_are_summed():
    repository = Repository(["m=nowhere:factory"], 1.0, 1.0)
    one, two, total = Metrics(repository), Metrics(repository), Metrics(repository)
    one.count("m", "1", 200, 0.003)
    one.count("m", "1", 503, 0.2)
    two.count("m", "1", 200, 0.003)
    for each in (one, two):
        total.add(json.loads(json.dumps(each.counts())))
    lines = total.write().decode().splitlines()
    assert 'ai_infer_requests_total{code="200",model="m",version="1"} 2.0' in lines
    assert 'ai_infer_requests_total{code="503",model="m",version="1"} 1.0' in lines
    assert 'ai_infer_request_duration_seconds_bucket{le="0.005",model="m",version="1"} 2.0' in lines
    assert 'ai_infer_request_duration_seconds_count{model="m",version="1"} 3.0' in lines


def test_front_end_adopts_what_the_owner_says(inferencer):
    owner = Repository({"m": inferencer}, 10.0, 10.0)
    ours = Repository(["m=nowhere:factory"], 10.0, 10.0)
    states = json.loads(json.dumps([model.state() for model in owner.all()]))
    assert ours.adopt(states) == []
    model = ours.find("m")
    assert model.ready
    assert model.client().address == inferencer.client.address
    client = model.client()
    assert ours.adopt([{**states[0], "ready": False}]) == []
    assert not ours.ready
    assert ours.adopt([{**states[0], "address": None, "ready": False, "reason": "unloaded"}]) == [client]
    assert ours.ready  # since somebody wanted it unloaded
    client.close()


def test_every_message_that_takes_workers_away_waits_for_those_who_ask_them(inferencer, gate):
    """The owner hears of a change from two sides, and stops the workers when one of its messages is answered."""
    states = [model.state() for model in Repository({"m": inferencer}, 10.0, 10.0).all()]
    without = [{**states[0], "address": None, "ready": False, "reason": "unloaded"}]

    async def scene():
        left, right = socket.socketpair()
        front_end = DistantOwner(left)
        front_end.repository = Repository(["m=nowhere:factory"], 10.0, 10.0)
        front_end._timeout_s = 100.0
        await front_end._answer("models", {"models": states})
        client = front_end.repository.find("m").client()
        asked = asyncio.create_task(client.ainfer(torch.ones(1, 8), do="wait", path=str(gate)))
        while not client.n_pending:
            await asyncio.sleep(0)
        told = [asyncio.create_task(front_end._answer("models", {"models": without})) for _ in range(2)]
        await asyncio.wait(told, timeout=0.1, return_when=asyncio.FIRST_COMPLETED)
        assert not any(task.done() for task in told)
        gate.unlink()
        assert torch.equal(await asked, torch.ones(1, 8))
        await asyncio.gather(*told)
        left.close()
        right.close()

    asyncio.run(scene())


def test_one_process_that_is_told_to_end_while_a_factory_runs_ends():
    begun, ended = asyncio.Event(), []

    async def app(scope, receive, send):
        begun.set()
        try:
            await asyncio.Event().wait()  # as long as a factory likes
        finally:
            ended.append(scope["type"])

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    server = make_server(app, parser.parse_args(["m=nowhere:factory", "--port", "0"]), pytest.fail)

    async def run():
        server.config.load()
        server.lifespan = server.config.lifespan_class(server.config)
        starting = asyncio.create_task(server.startup())
        await begun.wait()
        server.should_exit = True  # what uvicorn does at SIGTERM
        await asyncio.wait_for(starting, 100)

    asyncio.run(run())
    assert not server.started
    assert ended == ["lifespan"]
