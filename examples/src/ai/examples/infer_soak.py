"""Whether a worker answers many millions of requests in flat memory, while clients are killed and weights change.

Run: `python -m ai.examples.reproduce infer-soak [--requests 20000000]`, on Linux.
"""

import os
import pickle
import random
import selectors
import subprocess
import sys
import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from ai.infer import Inferencer

_OUTSTANDING = 60  # requests that each client keeps on their way
_REPORT = 10_000  # requests between two lines of a client
_CHECKED = 64  # every so many replies one is compared with the first
_MAX_GROWTH_MB = 40.0


def reproduce(
    *, requests: int = 20_000_000, n_clients: int = 4, kill_every_s: float = 60.0, seed: int = 0
) -> dict[str, float]:
    """Has client processes ask until so many requests are answered; pushes weights each second, kills clients.

    Raises:
        RuntimeError: a client saw a wrong reply or an older version, or the worker's memory or descriptors grew.
    """
    import torch

    from ai.infer import Inferencer

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    rng = random.Random(seed)
    model = network()
    done, n_kills, next_line = 0, 0, 0
    seen: list[tuple[float, int, float, int]] = []  # the worker's MB and descriptors, and our own
    clients: dict[subprocess.Popen[bytes], int] = {}  # with the lines that each has written
    with Inferencer(model) as inferencer, selectors.DefaultSelector() as selector:
        (worker,) = inferencer.pids
        inferencer.ping()  # connects, which takes descriptors
        try:
            for _ in range(n_clients):
                _start(inferencer, selector, clients)
            begin = time.monotonic()
            next_push, next_kill = begin, begin + rng.uniform(0.5, 1.5) * kill_every_s
            while done < requests:
                for key, _ in selector.select(1.0):
                    client = key.data
                    line = client.stdout.readline()
                    if line:
                        done += _REPORT
                        clients[client] += 1
                        continue
                    raise RuntimeError(f"a client ended with exit code {client.wait()}; its message is above")
                now = time.monotonic()
                if now >= next_push:
                    inferencer.update_params(model.state_dict())
                    next_push = now + 1.0
                busy = [client for client, lines in clients.items() if lines]
                if now >= next_kill and busy:
                    victim = rng.choice(busy)
                    _stop(victim, selector, clients)
                    _start(inferencer, selector, clients)
                    n_kills += 1
                    next_kill = time.monotonic() + rng.uniform(0.5, 1.5) * kill_every_s
                if done >= next_line:
                    seen.append((*usage(worker), *usage(os.getpid())))
                    print(
                        f"{now - begin:6.0f} s  {done:12,} requests  {n_kills:4} kills  "
                        f"worker {seen[-1][0]:.1f} MB {seen[-1][1]} descriptors  "
                        f"starter {seen[-1][2]:.1f} MB {seen[-1][3]} descriptors",
                        flush=True,
                    )
                    next_line = done + max(requests // 40, _REPORT)
            seconds = time.monotonic() - begin
            for client in list(clients):
                _stop(client, selector, clients)
            stats = inferencer.stats()
            seen.append((*usage(worker), *usage(os.getpid())))
        finally:
            for client in list(clients):
                _stop(client, selector, clients)
    warm = seen[min(2, len(seen) - 1)]
    growth_mb = max(each[0] for each in seen[2:] or seen) - warm[0]
    descriptors = max(each[1] for each in seen[2:] or seen) - warm[1]
    if growth_mb > _MAX_GROWTH_MB or seen[-1][2] - warm[2] > _MAX_GROWTH_MB:
        raise RuntimeError(f"the worker's memory grew by {growth_mb:.1f} MB, from {warm[0]:.1f} MB")
    if descriptors > 8 or seen[-1][3] > warm[3]:  # a client that was just killed may still be on its way out
        grown = f"from {warm[1]} by {descriptors} in the worker, from {warm[3]} to {seen[-1][3]} in its starter"
        raise RuntimeError(f"the open descriptors grew {grown}")
    return {
        "requests": done,
        "requests_per_s": done / seconds,
        "rows_per_batch": stats.rows_per_batch,
        "errors": stats.errors,
        "kills": n_kills,
        "worker_mb_warm": warm[0],
        "worker_mb_end": seen[-1][0],
        "worker_mb_growth": growth_mb,
        "worker_descriptors_warm": warm[1],
        "worker_descriptors_end": seen[-1][1],
    }


def network() -> "nn.Module":
    """Returns the MLP that is asked."""
    from torch import nn

    return nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10)).eval().requires_grad_(False)


def usage(pid: int) -> tuple[float, int]:
    """Returns a process's own memory in MB, without what it shares, and the number of its open descriptors."""
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        (kilobytes,) = (int(line.split()[1]) for line in file if line.startswith("RssAnon"))
    return kilobytes / 1024, len(os.listdir(f"/proc/{pid}/fd"))


def _start(
    inferencer: "Inferencer", selector: selectors.BaseSelector, clients: dict["subprocess.Popen[bytes]", int]
) -> None:
    command = [sys.executable, "-m", "ai.examples.infer_soak"]
    client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert client.stdin is not None
    assert client.stdout is not None
    clients[client] = 0
    client.stdin.write(pickle.dumps(inferencer.create_client()))
    client.stdin.close()
    selector.register(client.stdout, selectors.EVENT_READ, client)


def _stop(
    client: "subprocess.Popen[bytes]",
    selector: selectors.BaseSelector,
    clients: dict["subprocess.Popen[bytes]", int],
) -> None:
    assert client.stdout is not None
    selector.unregister(client.stdout)
    client.kill()
    client.wait()
    client.stdout.close()
    del clients[client]


def main() -> None:
    """Asks for ever, as the client that comes on stdin; a line on stdout for each `_REPORT` replies."""
    import torch

    torch.set_num_threads(1)
    client = pickle.load(sys.stdin.buffer)
    x = torch.linspace(-1, 1, 784, device="cpu")[None]
    first, version, n = client(x), 0, 0
    pending: deque[int] = deque()
    while True:
        while len(pending) < _OUTSTANDING:
            pending.append(client.infer_async(x))
        y = client.wait_for_resp(pending.popleft())
        n += 1
        if client.version < version:
            raise RuntimeError(f"reply {n} was made with version {client.version} after one of {version}")
        version = client.version
        if n % _CHECKED == 0 and not torch.allclose(y, first, rtol=1e-4, atol=1e-5):
            raise RuntimeError(f"reply {n} is {y.tolist()}, and the first was {first.tolist()}")
        if n % _REPORT == 0:
            print(n, flush=True)


if __name__ == "__main__":
    main()
