"""What clients of an inference worker live through: the worker killed again and again, weights pushed without end.

And what they cost when they do nothing.

Run: `python -m ai.examples.reproduce infer-kills [--kills 50 --clients 64]`, `… infer-storm` and
`… infer-idle [--clients 1000]`, on Linux.
"""

import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from ai.examples.infer_soak import network

if TYPE_CHECKING:
    from torch import nn

    from ai.infer import Inferencer, InferencerClient

_THREADS = 8  # of a client process, each with a client of its own
_IDLE_PROCESSES = 4  # of idle clients
_PATIENCE_S = 600.0  # also where other processes have the cores, and some hundred interpreters are to start
_LIFE_S = (1.1, 2.0)  # between a worker's return and its end; one that dies sooner is restarted with a delay


class Crowd:
    """Clients in processes of their own, that ask as fast as they can and say what happens to them.

    Args:
        inferencer: whom they ask.
        n_clients: how many there are.
        per_process: how many of them are in one process.
        idle: they ask once, when they are told to `go_on`, and stay.
    """

    def __init__(
        self, inferencer: "Inferencer", n_clients: int, *, per_process: int = _THREADS, idle: bool = False
    ) -> None:
        self.events: list[list[str]] = []
        """Lines of words that the clients wrote, in the order they came."""
        self._changed = threading.Condition()
        self._processes: list[subprocess.Popen[str]] = []
        self._readers: list[threading.Thread] = []
        for first in range(0, n_clients, per_process):
            task = (inferencer.create_client(), list(range(first, min(first + per_process, n_clients))), idle)
            process = subprocess.Popen(
                [sys.executable, "-m", "ai.examples.infer_faults", pickle.dumps(task).hex()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            self._processes.append(process)
            self._readers.append(threading.Thread(target=self._read, args=(process,), daemon=True))
            self._readers[-1].start()

    def _read(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            with self._changed:
                self.events.append(line.split())
                self._changed.notify_all()

    def go_on(self) -> None:
        """Lets idle clients ask."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()

    def wait(self, kind: str, n: int, since: int) -> list[list[str]]:
        """Returns the events of a kind from number `since` on, once there are `n` of them.

        Raises:
            RuntimeError: they did not come, or a client saw what must not be.
        """

        def found() -> list[list[str]]:
            return [event for event in self.events[since:] if event[0] in (kind, "wrong")]

        with self._changed:
            if not self._changed.wait_for(lambda: len(found()) >= n, _PATIENCE_S):
                raise RuntimeError(f"{len(found())} of {n} clients said {kind!r} within {_PATIENCE_S:.0f} s")
            events = found()
        if any(event[0] == "wrong" for event in events):
            raise RuntimeError(f"a client saw what must not be: {events}")
        return events

    def stop(self) -> list[list[str]]:
        """Ends the clients and returns what each says last."""
        since = len(self.events)
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        try:
            for process in self._processes:
                process.wait(_PATIENCE_S)
        finally:
            for process in self._processes:
                process.kill()
                process.wait()
            for reader in self._readers:
                reader.join()
            for process in self._processes:
                assert process.stdout is not None
                process.stdout.close()
        return self.events[since:]


def reproduce_kills(*, kills: int = 50, clients: int = 64, seed: int = 0) -> dict[str, float]:
    """Kills the worker `kills` times while `clients` clients ask; each must learn of it, and be served again.

    Raises:
        RuntimeError: a client was not told, was not served again, or got a wrong reply.
    """
    import numpy as np
    import torch

    from ai.infer import Inferencer

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    rng = random.Random(seed)
    told_ms: list[float] = []
    back_ms: list[float] = []
    with Inferencer(signed_network(), restart=True) as inferencer:
        crowd = Crowd(inferencer, clients)
        try:
            crowd.wait("back", clients, 0)
            for _ in range(kills):
                time.sleep(rng.uniform(*_LIFE_S))
                since = len(crowd.events)
                (pid,) = inferencer.pids
                killed_at = time.monotonic()
                os.kill(pid, signal.SIGKILL)
                back_ms += [1e3 * (float(event[2]) - killed_at) for event in crowd.wait("back", clients, since)]
                # Not every client lost a request: some had their reply before they saw the end.
                told_ms += [1e3 * (float(event[2]) - killed_at) for event in crowd.wait("died", 1, since)]
        finally:
            last = crowd.stop()
        address = inferencer.client.address
    if os.path.exists(address):
        raise RuntimeError(f"{address} was left behind")
    return {
        "kills": kills,
        "clients": clients,
        "replies": sum(int(event[2]) for event in last if event[0] == "replies"),
        "requests_lost": len(told_ms),
        "told_ms_median": float(np.median(told_ms)),
        "told_ms_max": float(np.max(told_ms)),
        "back_ms_median": float(np.median(back_ms)),
        "back_ms_max": float(np.max(back_ms)),
    }


def reproduce_storm(
    *, seconds: float = 30.0, pushes_per_s: float = 100.0, clients: int = 8, seed: int = 0
) -> dict[str, float]:
    """Pushes weights `pushes_per_s` times a second while clients ask; no client may see an older version again.

    Raises:
        RuntimeError: a client saw a version older than one before, or a reply mixed of two.
    """
    import torch

    from ai.infer import Inferencer

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = signed_network()
    states = [{name: torch.full_like(x, value) for name, x in model.state_dict().items()} for value in (0.5, 0.25)]
    with Inferencer(model) as inferencer:
        inferencer.update_params(states[0])
        crowd = Crowd(inferencer, clients)
        try:
            crowd.wait("back", clients, 0)
            begin = time.monotonic()
            n_pushes, slowest_s = 0, 0.0
            while (now := time.monotonic()) < begin + seconds:
                due = begin + n_pushes / pushes_per_s
                if now < due:
                    time.sleep(due - now)
                    continue
                inferencer.update_params(states[n_pushes % 2])
                slowest_s = max(slowest_s, time.monotonic() - now)
                n_pushes += 1
            elapsed = time.monotonic() - begin
        finally:
            last = crowd.stop()
    if any(event[0] == "wrong" for event in crowd.events):
        raise RuntimeError(f"a client saw what must not be: {last}")
    replies = [event for event in last if event[0] == "replies"]
    return {
        "pushes": n_pushes,
        "pushes_per_s": n_pushes / elapsed,
        "slowest_push_ms": 1e3 * slowest_s,
        "clients": len(replies),
        "replies": sum(int(event[2]) for event in replies),
        "fewest_versions_seen": min(int(event[3]) for event in replies),
    }


def reproduce_idle(*, clients: int = 1000, seed: int = 0) -> dict[str, float]:
    """Connects `clients` clients in four processes; each asks once and stays, then somebody else asks, then they again.

    What they take of the machine is by how much the proportional set size (PSS) of the worker and of the clients'
    processes grows: what several share counts once. It is measured from where each process has imported all and asked.

    Raises:
        RuntimeError: a client was not answered, or got a wrong reply, or the last one did.
    """
    import torch

    from ai.infer import Inferencer

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = signed_network()
    x = torch.ones(1, 784, device="cpu")
    with Inferencer(model) as inferencer:
        (worker,) = inferencer.pids
        y = inferencer(x)[0]
        per_process = -(-clients // _IDLE_PROCESSES)
        crowd = Crowd(inferencer, clients, per_process=per_process, idle=True)
        try:
            pids = [int(event[1]) for event in crowd.wait("ready", -(-clients // per_process), 0)]
            before, before_mb = _memory_mb(worker), sum(_memory_mb(pid)["pss"] for pid in pids)
            descriptors = len(os.listdir(f"/proc/{worker}/fd"))
            crowd.go_on()
            crowd.wait("back", clients, 0)
            after, after_mb = _memory_mb(worker), sum(_memory_mb(pid)["pss"] for pid in pids)
            descriptors_after = len(os.listdir(f"/proc/{worker}/fd"))
            asked_at = time.monotonic()
            with inferencer.create_client() as newcomer:
                if not torch.allclose(newcomer(x)[0], y, rtol=1e-4, atol=1e-5):
                    raise RuntimeError("the newcomer got a wrong reply")
            answered_ms = 1e3 * (time.monotonic() - asked_at)
        finally:
            last = crowd.stop()
    if (n_served := sum(event[0] == "served" for event in last)) != clients:
        raise RuntimeError(f"{n_served} of {clients} clients were served again at the end")
    worker_mb, clients_mb = after["pss"] - before["pss"], after_mb - before_mb
    return {
        "clients": clients,
        "processes": len(pids),
        "worker_descriptors_before": descriptors,
        "worker_descriptors": descriptors_after,
        "worker_rss_mb_before": before["rss"],
        "worker_rss_mb": after["rss"],
        "worker_pss_mb_more": worker_mb,
        "shared_areas_mb": after["shared"],
        "client_processes_pss_mb_more": clients_mb,
        "all_mb_more": worker_mb + clients_mb,
        "newcomer_answered_ms": answered_ms,
    }


def _memory_mb(pid: int) -> dict[str, float]:
    """Returns what a process holds: `rss`, `pss` (its part of what is shared), and `shared`, its areas with clients."""
    found = {"rss": 0, "pss": 0, "shared": 0}
    is_area = False
    with open(f"/proc/{pid}/smaps", encoding="utf-8") as file:
        for line in file:
            name, *words = line.split()
            if not name.endswith(":"):  # an address, with the file behind it
                is_area = "/memfd:ai-infer" in line
            elif name in ("Rss:", "Pss:"):
                found[name[:-1].lower()] += int(words[0])
                if is_area and name == "Rss:":
                    found["shared"] += int(words[0])
    return {name: kilobytes / 1024 for name, kilobytes in found.items()}


def main() -> None:
    """Runs some clients until stdin ends; each writes what happens to it: `died`, `back`, `wrong`, and `replies`."""
    client, names, idle = pickle.loads(bytes.fromhex(sys.argv[1]))
    if idle:
        _stay(client, names)
        return
    stopping = threading.Event()
    threads = [threading.Thread(target=_ask, args=(pickle.loads(pickle.dumps(client)), n, stopping)) for n in names]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    stopping.set()
    for thread in threads:
        thread.join()


def _ask(client: "InferencerClient", name: int, stopping: threading.Event) -> None:
    import torch

    from ai.infer import WorkerDiedError

    x = torch.ones(1, 784, device="cpu")
    first: Any = None
    worker, version, n, versions = -1, -1, 0, set()
    while not stopping.is_set():
        try:
            y, signature = client(x)
        except WorkerDiedError:
            _say("died", name, time.monotonic())
            continue
        if int(signature) != worker:
            worker, version = int(signature), -1
            _say("back", name, time.monotonic())
        n += 1
        first = y if first is None else first
        versions.add(client.version)
        # One version's weights are all equal, and so are the ten outputs; those of a mixture would not be.
        if client.version < version or (version > 0 and (y - y[0, 0]).abs().max() > 1e-3 * y.abs().max()):
            _say("wrong", name, f"version {client.version} after {version}: {y.tolist()}")
        if client.version == 0 and not torch.allclose(y, first, rtol=1e-4, atol=1e-5):
            _say("wrong", name, f"{y.tolist()} after {first.tolist()}")
        version = client.version
    _say("replies", name, n, len(versions))


def _stay(client: "InferencerClient", names: list[int]) -> None:
    """Has one client ask and leave, and when a line comes the others ask; once stdin ends they ask again."""
    import torch

    torch.set_num_threads(1)
    x = torch.ones(1, 784, device="cpu")
    with pickle.loads(pickle.dumps(client)) as first:
        y = first(x)[0]
    _say("ready", os.getpid())
    sys.stdin.readline()
    clients = [pickle.loads(pickle.dumps(client)) for _ in names]
    for name, each in zip(names, clients, strict=True):
        reply = each(x)[0]
        _say("back" if torch.allclose(reply, y, rtol=1e-4, atol=1e-5) else "wrong", name, time.monotonic())
    sys.stdin.read()
    for name, each in zip(names, clients, strict=True):
        each(x)
        _say("served", name)


def signed_network() -> "nn.Module":
    """Returns the soak's MLP, which here also says in which process it runs."""
    import torch
    from torch import Tensor, nn

    class Signed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.net(x), torch.full((len(x),), os.getpid(), device=x.device)

    return Signed()


def _say(*words: object) -> None:
    """Writes a line whole, whatever other threads write."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


if __name__ == "__main__":
    main()
