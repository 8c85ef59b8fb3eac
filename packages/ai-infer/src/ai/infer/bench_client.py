"""One client of the benchmark: `python -m ai.infer.bench_client`, its task on stdin, its latencies on stdout."""

import pickle
import sys
import time
from collections import deque

import numpy as np


def main() -> None:
    """Asks as fast as it can for a while, and writes each request's latency in seconds, as raw float64."""
    client, arguments, outstanding, seconds = pickle.load(sys.stdin.buffer)
    client(*arguments)
    sys.stdout.buffer.write(b"r")
    sys.stdout.buffer.flush()
    sys.stdin.buffer.readline()
    clock = time.perf_counter
    latencies: list[float] = []
    pending: deque[tuple[int, float]] = deque()
    end = clock() + seconds
    while clock() < end:
        while len(pending) < outstanding:
            pending.append((client.infer_async(*arguments), clock()))
        request_id, start = pending.popleft()
        client.wait_for_resp(request_id)
        latencies.append(clock() - start)
    for request_id, _ in pending:
        client.wait_for_resp(request_id)
    sys.stdout.buffer.write(np.array(latencies).tobytes())
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
