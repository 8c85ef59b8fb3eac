"""Inference: ours beside its peers, on one machine, in one run.

    python benchmarks/infer.py all      the next three in one run
    python benchmarks/infer.py ipc      requests per second between processes, by clients × outstanding
    python benchmarks/infer.py http     requests per second over HTTP, by connections
    python benchmarks/infer.py scaling  the same by front ends and replicas, of models that take 0, 2 and 10 ms a call
    python benchmarks/infer.py update   milliseconds to hand over 10 M parameters
    python benchmarks/infer.py soak --requests 20000000     memory and descriptors over many requests

The model is an MLP 784-128-10, a request one row of 3,136 bytes. Each number is the median of `--repeats` rounds in
which all contestants take turns; over HTTP of five times as many, each a fifth as long, and what is said beside a peer
is the median of the rounds' own ratios, since a machine's speed changes within seconds. A peer that is not installed is
skipped with a line. Peers run in one process with the model, as their own examples do; ours always has its worker.
"""

import argparse
import base64
import contextlib
import glob
import json
import math
import mmap
import os
import pickle
import queue
import select
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections import deque
from importlib.util import find_spec
from multiprocessing import get_context

import numpy as np
import torch
from torch import nn

ROW = (1, 28, 28)
FORK = get_context("fork")


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10)).eval().requires_grad_(False)


class Waiting(nn.Module):
    """A model on whose call a process waits without using its core, as for an accelerator."""

    def __init__(self, ms):
        super().__init__()
        self.net, self.ms = mlp(), ms

    def forward(self, x):
        """Returns what the small network returns, later."""
        time.sleep(self.ms / 1e3)
        return self.net(x)


def waiting(ms):
    return Waiting(ms)


# Between processes ------------------------------------------------------------------------------------------------


def ours(n_clients, outstanding, seconds, *, transport="auto", together=0):
    from ai.infer import Inferencer

    def work(client, ready, start, out):
        torch.set_num_threads(1)
        x = torch.randn(1, *ROW)
        xs = [torch.randn(1, *ROW) for _ in range(together)]
        for _ in range(20):
            client(x)
        ready.release()
        start.wait()
        clock, latencies, pending = time.perf_counter, [], deque()
        end = clock() + seconds
        while (now := clock()) < end:
            if together:
                client.multi_infer(xs)
                latencies.append(clock() - now)
                continue
            while len(pending) < outstanding:
                pending.append((client.infer_async(x), clock()))
            request_id, sent = pending.popleft()
            client.wait_for_resp(request_id)
            latencies.append(clock() - sent)
        for request_id, _ in pending:
            client.wait_for_resp(request_id)
        out.put(np.array(latencies))
        out.close()
        out.join_thread()
        os._exit(0)

    with Inferencer(mlp(), "cpu", 64) as inferencer:
        client = inferencer.create_client(transport=transport)
        latencies = _run_clients(n_clients, lambda *about: work(client, *about), lambda: None, seconds)
    return len(latencies) * max(together, 1) / seconds, float(np.median(latencies)) * 1e6


def pipes(n_clients, outstanding, seconds, *, kind):
    """A worker in this process that batches over one `multiprocessing` queue, or over Unix sockets."""
    model = mlp()
    row_bytes = int(np.prod(ROW)) * 4
    obs = np.random.default_rng(0).random(784, dtype=np.float32)
    if kind == "queue":
        requests, replies = FORK.Queue(), [FORK.Queue() for _ in range(n_clients)]
    else:
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(n_clients)]

    def work(ready, start, out, index):
        ready.release()
        start.wait()
        clock, latencies, sent = time.perf_counter, [], deque()
        end = clock() + seconds
        while clock() < end or sent:
            while len(sent) < outstanding and clock() < end:
                sent.append(clock())
                if kind == "queue":
                    requests.put((index, obs))
                else:
                    pairs[index][0].send(obs)
            if sent:
                if kind == "queue":
                    replies[index].get()
                else:
                    pairs[index][0].recv(64)
                latencies.append(clock() - sent.popleft())
        out.put(np.array(latencies))
        out.close()
        out.join_thread()
        os._exit(0)

    poller = select.epoll()
    if kind == "socket":
        by_descriptor = {pair[1].fileno(): pair[1] for pair in pairs}
        for pair in pairs:
            pair[1].setblocking(False)
            poller.register(pair[1].fileno(), select.EPOLLIN)

    def serve_once():
        rows, senders = [], []
        if kind == "queue":
            try:
                block = True
                while len(rows) < 64:
                    sender, row = requests.get(block, 0.05 if block else None)
                    block = False
                    rows.append(row)
                    senders.append(sender)
            except queue.Empty:
                pass
        else:
            for descriptor, _ in poller.poll(0.05):
                sender = by_descriptor[descriptor]
                try:
                    while len(rows) < 64:
                        data = sender.recv(row_bytes)
                        if not data:
                            poller.unregister(descriptor)
                            break
                        rows.append(np.frombuffer(data, np.float32))
                        senders.append(sender)
                except BlockingIOError:
                    pass
        if not rows:
            return
        with torch.inference_mode():
            y = model(torch.from_numpy(np.stack(rows)).view(-1, *ROW)).numpy()
        for sender, row in zip(senders, y, strict=True):
            if kind == "queue":
                replies[sender].put(row)
            else:
                sender.send(row)

    latencies = _run_clients(n_clients, work, serve_once, seconds, indexed=True)
    return len(latencies) / seconds, float(np.median(latencies)) * 1e6


def bare_shared_memory(n_clients, outstanding, seconds):
    """Rows in one anonymous map, a counter a slot, an eventfd a process: what fits one shape and no fault."""
    model, n_slots = mlp(), n_clients * outstanding
    x = np.frombuffer(mmap.mmap(-1, n_slots * 3136), np.float32).reshape(n_slots, 784)
    y = np.frombuffer(mmap.mmap(-1, n_slots * 40), np.float32).reshape(n_slots, 10)
    asked = np.frombuffer(mmap.mmap(-1, n_slots * 8), np.int64)
    answered = np.frombuffer(mmap.mmap(-1, n_slots * 8), np.int64)
    worker_event, client_events = os.eventfd(0), [os.eventfd(0) for _ in range(n_clients)]
    obs = np.random.default_rng(0).random(784, dtype=np.float32)

    def work(ready, start, out, index):
        ready.release()
        start.wait()
        clock, latencies, sent = time.perf_counter, [], {}
        free = list(range(index * outstanding, (index + 1) * outstanding))
        end = clock() + seconds
        while clock() < end or sent:
            while free and clock() < end:
                slot = free.pop()
                x[slot] = obs
                sent[slot] = clock()
                asked[slot] += 1
                os.eventfd_write(worker_event, 1)
            done = [slot for slot in sent if answered[slot] == asked[slot]]
            if not done and sent:
                os.eventfd_read(client_events[index])
            for slot in done:
                y[slot].copy()
                latencies.append(clock() - sent.pop(slot))
                free.append(slot)
        out.put(np.array(latencies))
        out.close()
        out.join_thread()
        os._exit(0)

    poller = select.poll()
    poller.register(worker_event, select.POLLIN)

    def serve_once():
        seen = asked.copy()
        slots = np.flatnonzero(seen != answered)[:64]
        if not len(slots):
            if poller.poll(50):
                os.eventfd_read(worker_event)
            return
        with torch.inference_mode():
            y[slots] = model(torch.from_numpy(x[slots]).view(-1, *ROW)).numpy()
        answered[slots] = seen[slots]
        for index in np.unique(slots // outstanding):
            os.eventfd_write(client_events[index], 1)

    try:
        latencies = _run_clients(n_clients, work, serve_once, seconds, indexed=True)
    finally:
        for descriptor in (worker_event, *client_events):
            os.close(descriptor)
    return len(latencies) / seconds, float(np.median(latencies)) * 1e6


def _run_clients(n_clients, work, serve_once, seconds, *, indexed=False):
    ready, start, out = FORK.Semaphore(0), FORK.Event(), FORK.Queue()
    about = (ready, start, out)
    processes = [FORK.Process(target=work, args=(*about, i) if indexed else about) for i in range(n_clients)]
    for process in processes:
        process.start()
    for _ in processes:
        ready.acquire()
    start.set()
    end = time.perf_counter() + seconds
    collected = []
    n_turns = 0
    while len(collected) < n_clients:
        serve_once()
        n_turns += 1
        # A look at the queue costs more than a small batch: where this process serves, it looks now and then.
        if indexed and n_turns % 256 and time.perf_counter() < end:
            continue
        try:
            collected.append(out.get(timeout=0.0005 if indexed else 60))
        except queue.Empty:
            continue
    for process in processes:
        process.join()
    return np.concatenate(collected)


def bench_ipc(arguments):
    cases = [(1, 1), (8, 1), (64, 1), (8, 8)]
    contestants = {
        "ours, shared memory": lambda n, w: ours(n, w, arguments.seconds),
        "ours, forced socket": lambda n, w: ours(n, w, arguments.seconds, transport="socket"),
        "bare shared memory, one shape": lambda n, w: bare_shared_memory(n, w, arguments.seconds),
        "bare Unix socket, one shape": lambda n, w: pipes(n, w, arguments.seconds, kind="socket"),
        "multiprocessing.Queue": lambda n, w: pipes(n, w, arguments.seconds, kind="queue"),
    }
    print(f"{'requests/s (p50 µs)':<30}" + "".join(f"{f'{n} × {w}':>20}" for n, w in cases))
    results = {}
    for _ in range(arguments.repeats):
        for name, run in contestants.items():
            for case in cases:
                results.setdefault((name, case), []).append(run(*case))
    for name in contestants:
        line = f"{name:<30}"
        for case in cases:
            rate = statistics.median(r for r, _ in results[name, case])
            p50 = statistics.median(p for _, p in results[name, case])
            line += f"{f'{rate:,.0f} ({p50:,.0f})':>20}"
        print(line)
    rows = statistics.median(ours(8, 1, arguments.seconds, together=8)[0] for _ in range(arguments.repeats))
    print(f"ours, multi_infer of 8 from 8 processes: {rows:,.0f} rows/s")


def bench_update(arguments):
    from ai.infer import Inferencer

    model = nn.Sequential(*(nn.Linear(1000, 1000) for _ in range(10)))
    state = model.state_dict()
    with Inferencer(model) as inferencer:
        for _ in range(4):  # touches both buffers
            inferencer.update_params(state)
            inferencer(torch.zeros(1, 1000))
        push, pickled = [], []
        for _ in range(10 * arguments.repeats):
            start = time.perf_counter()
            inferencer.update_params(state)
            push.append(time.perf_counter() - start)
            inferencer(torch.zeros(1, 1000))
            start = time.perf_counter()
            pickle.loads(pickle.dumps(state))
            pickled.append(time.perf_counter() - start)
    print(f"10 M parameters: ours {statistics.median(push) * 1e3:.1f} ms, ", end="")
    print(f"pickled {statistics.median(pickled) * 1e3:.1f} ms")


# Over HTTP ----------------------------------------------------------------------------------------------------------

FASTAPI = """
import numpy as np, torch, uvicorn
from fastapi import FastAPI, Request, Response
from torch import nn
torch.set_num_threads(1)
model = nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10)).eval()
app = FastAPI()

@app.post("/predict")
async def predict(request: Request):
    x = torch.from_numpy(np.frombuffer(await request.body(), np.float32).copy()).view(-1, 1, 28, 28)
    with torch.inference_mode():
        return Response(model(x).numpy().tobytes(), media_type="application/octet-stream")

uvicorn.run(app, port=PORT, access_log=False, log_level="warning", loop="uvloop", http="httptools",
            server_header=False, date_header=False)
"""
LITSERVE = """
import base64
import numpy as np, torch, litserve
from torch import nn

class Api(litserve.LitAPI):
    def setup(self, device):
        torch.set_num_threads(1)
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10)).eval()
    def decode_request(self, request):
        return torch.from_numpy(np.frombuffer(base64.b64decode(request["x"]), np.float32).copy()).view(1, 28, 28)
    def batch(self, xs):
        return torch.stack(xs)
    def predict(self, x):
        with torch.inference_mode():
            return self.model(x)
    def unbatch(self, y):
        return list(y)
    def encode_response(self, y):
        return {"y": base64.b64encode(y.numpy().tobytes()).decode()}

if __name__ == "__main__":
    api = Api(max_batch_size=64, batch_timeout=0.001)
    litserve.LitServer(api, accelerator="cpu").run(port=PORT, log_level="error", generate_client_file=False)
"""
RAY = """
import numpy as np, torch, time
from ray import serve
from starlette.requests import Request
from starlette.responses import Response
from torch import nn

@serve.deployment(max_ongoing_requests=256)
class Api:
    def __init__(self):
        torch.set_num_threads(1)
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10)).eval()
    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.001)
    async def infer(self, xs):
        with torch.inference_mode():
            return list(self.model(torch.stack(xs)))
    async def __call__(self, request: Request):
        x = torch.from_numpy(np.frombuffer(await request.body(), np.float32).copy()).view(1, 28, 28)
        return Response((await self.infer(x)).numpy().tobytes(), media_type="application/octet-stream")

serve.start(http_options={"port": PORT})
serve.run(Api.bind(), route_prefix="/predict")
time.sleep(1000)
"""


CONSTANT = """
import uvicorn

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    more = True
    while more:
        more = (await receive()).get("more_body", False)
    headers = [(b"content-type", b"application/octet-stream"), (b"content-length", b"40")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": bytes(40)})

uvicorn.run(app, port=PORT, access_log=False, log_level="warning", loop="uvloop", http="httptools",
            server_header=False, date_header=False)
"""

GRANIAN = """
from granian import Granian

from ai.infer.http import app as make_app


def app():
    return make_app(["m=SOURCE"], stall_timeout_s=3600)


if __name__ == "__main__":
    Granian(f"{__file__}:app", interface="asgi", factory=True, port=PORT, log_enabled=False).serve()
"""


_HTTP_PARTS = 5  # turns that each of `--repeats` is cut into


def cpu_s(group):
    """Returns the CPU time that the processes of a group have used."""
    total = 0
    for stat in glob.glob("/proc/[0-9]*/stat"):
        with contextlib.suppress(OSError), open(stat) as file:
            fields = file.read().rpartition(")")[2].split()
            if int(fields[2]) == group:
                total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def load(port, path, headers, body, connections, seconds):
    """Returns requests per second and the 99th percentile in ms, from one process of non-blocking sockets.

    It shares the cores with the server, so it reads a head only where it differs from the last one.
    """
    request = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n{headers}\r\n".encode() + body
    poller, sockets, sent, latencies = select.epoll(), {}, {}, []
    for _ in range(connections):
        connection = socket.create_connection(("127.0.0.1", port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        poller.register(connection.fileno(), select.EPOLLIN)
        sockets[connection.fileno()] = connection
        connection.sendall(request)
        sent[connection.fileno()] = time.perf_counter()
    clock = time.perf_counter
    end = clock() + seconds
    buffers = dict.fromkeys(sockets, b"")
    known, size = b"\0", 0  # head of the last reply, and all its bytes
    while (now := clock()) < end:
        for descriptor, _ in poller.poll(0.1):
            connection = sockets[descriptor]
            data = buffers[descriptor] + connection.recv(65536)
            if len(data) != size or not data.startswith(known):
                head = data.find(b"\r\n\r\n")
                lower = data[:head].lower()
                length = int(lower.split(b"content-length:")[1].split(b"\r\n")[0]) if head >= 0 else 0
                if head < 0 or len(data) < head + 4 + length:
                    buffers[descriptor] = data
                    continue
                if not data.startswith(b"HTTP/1.1 200"):
                    raise RuntimeError(data[:500])
                known, size = data[: head + 4], head + 4 + length
            buffers[descriptor] = b""
            now = clock()
            latencies.append(now - sent[descriptor])
            sent[descriptor] = now
            connection.sendall(request)
    for connection in sockets.values():
        connection.close()
    return len(latencies) / seconds, float(np.percentile(latencies, 99)) * 1e3 if latencies else float("nan")


def bench_http(arguments):
    x = np.random.default_rng(0).random((1, *ROW), dtype=np.float32).tobytes()
    about = {"name": "x", "datatype": "FP32", "shape": [1, *ROW], "parameters": {"binary_data_size": len(x)}}
    head = json.dumps({"inputs": [about], "parameters": {"binary_data_output": True}}).encode()
    v2 = f"inference-header-content-length: {len(head)}\r\n"
    encoded = json.dumps({"x": base64.b64encode(x).decode()}).encode()
    source = "benchmarks.infer:mlp?input=x:FP32:-1,1,28,28"
    servers = {  # name → (module it needs, program, or our options)
        "ours": ("uvicorn", [f"m={source}"]),
        "ours, two front ends": ("uvicorn", [f"m={source}", "--workers", "2"]),
        "ours, under granian": ("granian", GRANIAN.replace("SOURCE", source)),
        "ASGI app that answers a constant": ("uvicorn", CONSTANT),
        "FastAPI raw, model in process": ("fastapi", FASTAPI),
        "LitServe": ("litserve", LITSERVE),
        "Ray Serve": ("ray", RAY),
    }
    contestants = {  # line of the table → (server, path, headers, body)
        "ours, plain binary": ("ours", "/models/m", "", x),
        "ours, Open Inference binary": ("ours", "/v2/models/m/infer", v2, head + x),
        "ours, two front ends": ("ours, two front ends", "/models/m", "", x),
        "ours, under granian": ("ours, under granian", "/models/m", "", x),
        **{name: (name, "/predict", "", x) for name in list(servers)[3:]},
        # LitServe hands its users JSON or forms, not a body
        "LitServe": ("LitServe", "/predict", "content-type: application/json\r\n", encoded),
    }
    with _serving(servers) as (ports, groups):
        results = {}
        print(f"{'requests/s (p99 ms; CPU µs)':<32}" + "".join(f"{f'{n} connections':>26}" for n in (1, 8, 64)))
        present = [name for name, about in contestants.items() if about[0] in ports]
        seconds = arguments.seconds / _HTTP_PARTS
        for turn in range(arguments.repeats * _HTTP_PARTS):
            for name in present[turn % len(present) :] + present[: turn % len(present)]:
                server, path, headers, body = contestants[name]
                os.killpg(groups[server], signal.SIGCONT)
                for n in (1, 8, 64):
                    load(ports[server], path, headers, body, n, min(0.1, seconds))
                    used = cpu_s(groups[server])
                    rate, p99 = load(ports[server], path, headers, body, n, seconds)
                    used = cpu_s(groups[server]) - used
                    results.setdefault((name, n), []).append((rate, p99, used / max(rate * seconds, 1) * 1e6))
                os.killpg(groups[server], signal.SIGSTOP)
        for name in present:
            line = f"{name:<32}"
            for n in (1, 8, 64):
                rate, p99, used = (statistics.median(v) for v in zip(*results[name, n], strict=True))
                line += f"{f'{rate:,.0f} ({p99:.1f}; {used:.0f})':>26}"
            print(line)
        print("\nmedian ratio of a round (its quartiles)")
        own = [name for name in present if name.startswith("ours")]
        pairs = [(name, peer) for name in own for peer in present if peer not in own]
        for name, peer in [*pairs, *((name, own[0]) for name in own[1:])]:
            line = f"{name} / {peer}"
            for n in (1, 8, 64):
                rounds = zip(results[name, n], results[peer, n], strict=True)
                ratios = [a[0] / b[0] if b[0] else math.inf for a, b in rounds]
                low, middle, high = np.percentile(ratios, [25, 50, 75], method="nearest")
                line = f"{line:<{60 if n == 1 else 0}}{f'{middle:.2f} ({low:.2f} to {high:.2f})':>24}"
            print(line)


def bench_scaling(arguments):
    """Front ends and replicas before models that take some time a call without a core: rows that wait share a call."""
    kinds = {f"{f} front end{'s' * (f > 1)}, {r} replica{'s' * (r > 1)}": (f, r) for f in (1, 2) for r in (1, 2)}
    x = np.random.default_rng(0).random((1, *ROW), dtype=np.float32).tobytes()
    models = {ms: f'm=benchmarks.infer:waiting?args={{"ms":{ms}}}&input=x:FP32:-1,1,28,28' for ms in (0, 2, 10)}
    for ms, source in models.items():
        servers = {name: ("uvicorn", [f"{source}&replicas={r}", "--workers", str(f)]) for name, (f, r) in kinds.items()}
        print(
            f"\n{f'{ms} ms a call: requests/s (p99 ms; CPU µs)':<46}"
            + "".join(f"{f'{n} connections':>24}" for n in (8, 64))
        )
        with _serving(servers) as (ports, groups):
            results = {}
            for turn in range(arguments.repeats * _HTTP_PARTS):
                for name in [*ports][turn % len(ports) :] + [*ports][: turn % len(ports)]:
                    os.killpg(groups[name], signal.SIGCONT)
                    for n in (8, 64):
                        seconds = arguments.seconds / _HTTP_PARTS
                        load(ports[name], "/models/m", "", x, n, 0.5)  # rows are found to be independent first
                        used = cpu_s(groups[name])
                        rate, p99 = load(ports[name], "/models/m", "", x, n, seconds)
                        used = cpu_s(groups[name]) - used
                        results.setdefault((name, n), []).append((rate, p99, used / max(rate * seconds, 1) * 1e6))
                    os.killpg(groups[name], signal.SIGSTOP)
            for name in ports:
                line = f"{name:<46}"
                for n in (8, 64):
                    rate, p99, used = (statistics.median(v) for v in zip(*results[name, n], strict=True))
                    line += f"{f'{rate:,.0f} ({p99:.1f}; {used:.0f})':>24}"
                print(line, flush=True)


@contextlib.contextmanager
def _serving(servers):
    """Starts servers, name → (module it needs, program, or our options), and stops each; gives ports and groups."""
    ports, groups, processes = {}, {}, []
    try:
        for name, (module, program) in servers.items():
            if find_spec(module) is None:
                print(f"{name}: skipped, since {module} is not installed")
                continue
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            if isinstance(program, list):
                command = [sys.executable, "-m", "ai.infer.cli", "serve", *program, "--port", str(port)]
                command += ["--stall-timeout", "3600"]  # it is stopped while others have their turn
            else:
                script = f"/tmp/bench_infer_{os.getpid()}_{len(processes)}.py"
                with open(script, "w") as file:
                    file.write(program.replace("PORT", str(port)))
                command = [sys.executable, script]
            processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True))
            if _wait_for(port, processes[-1]):
                ports[name] = port
                groups[name] = processes[-1].pid
                os.killpg(processes[-1].pid, signal.SIGSTOP)  # some take a core even while nobody asks
            else:
                print(f"{name}: skipped, since it did not start")
        yield ports, groups
    finally:
        for process in processes:
            try:
                os.killpg(process.pid, signal.SIGCONT)
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(20)
            except (subprocess.TimeoutExpired, ProcessLookupError):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _wait_for(port, process, timeout_s=120):
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            time.sleep(1)
            return True
        except OSError:
            time.sleep(0.2)
    return False


# Many requests ------------------------------------------------------------------------------------------------------


def bench_soak(arguments):
    """Asks until so many requests are answered, clients coming and going; memory and descriptors must stay flat."""
    from ai.infer import Inferencer

    def observe(pid):
        with open(f"/proc/{pid}/status") as file:
            kilobytes = next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))
        return kilobytes / 1024, len(os.listdir(f"/proc/{pid}/fd"))

    model = mlp()
    x, done, start = torch.randn(1, *ROW), 0, time.monotonic()
    with Inferencer(model, "cpu", 64) as inferencer:
        (pid,) = inferencer.pids
        warm = None
        while done < arguments.requests:
            with inferencer.create_client() as client:
                for _ in range(500):
                    ids = [client.infer_async(x) for _ in range(60)]
                    for request_id in ids:
                        client.wait_for_resp(request_id)
                done += 30_000
            inferencer.update_params(model.state_dict())
            if done % 300_000 == 0:
                worker, own = observe(pid), observe(os.getpid())
                warm = warm or (worker, own)
                rate = done / (time.monotonic() - start)
                print(
                    f"{done:>12,} requests, {rate:,.0f}/s, worker {worker[0]:.0f} MB {worker[1]} descriptors, "
                    f"own {own[0]:.0f} MB {own[1]} descriptors",
                    flush=True,
                )
                assert worker[0] < warm[0][0] + 50, "the worker's memory grows"
                assert own[0] < warm[1][0] + 50, "the client's memory grows"
                assert worker[1] <= warm[0][1] + 4, "the worker's descriptors grow"
                assert own[1] <= warm[1][1] + 4, "the client's descriptors grow"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["all", "ipc", "http", "scaling", "update", "soak"])
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--requests", type=int, default=1_000_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that a run that is cut short ends its servers, too
    parts = {"ipc": bench_ipc, "update": bench_update, "http": bench_http, "scaling": bench_scaling, "soak": bench_soak}
    for part in ("ipc", "update", "http") if arguments.part == "all" else (arguments.part,):
        parts[part](arguments)


if __name__ == "__main__":
    main()
