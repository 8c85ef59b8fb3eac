"""`ai-infer bench`: what a model's worker can do, by number of clients, as a table and as a picture."""

import argparse
import math
import pickle
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ai.infer.arguments import UsageError, check_counts, check_seconds
from ai.infer.connection.handshake import Transport
from ai.infer.http.formats.tensors import DATATYPES
from ai.infer.http.models.model_sources import ModelSource, build
from ai.infer.inferencer import Inferencer


@dataclass(frozen=True)
class Measurement:
    """What so many clients, each with so many requests on their way, get."""

    clients: int
    outstanding: int
    requests_per_s: float
    p50_us: float
    p99_us: float
    rows_per_batch: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `bench`."""
    parser.add_argument(
        "model", metavar="SOURCE[?OPTION=VALUE&…]", help="as for serve; needs input=NAME:DATATYPE:SIZES"
    )
    parser.add_argument("--trust", action="store_true", help="as for serve")
    parser.add_argument("--clients", default="1,2,4,8", help="numbers of client processes, between commas")
    parser.add_argument("--outstanding", type=int, default=1, help="requests on their way for each client")
    parser.add_argument("--seconds", type=float, default=2.0, help="for each number of clients")
    parser.add_argument("--transport", choices=["auto", "shm", "socket"], default="auto", help="between processes")
    parser.add_argument("--png", type=Path, help="where to draw the table (needs matplotlib)")


def run(arguments: argparse.Namespace) -> int:
    """Measures, prints the table, draws the picture; returns the exit code."""
    try:
        source = ModelSource.parse(f"model={arguments.model}")
        counts = _counts(arguments.clients)
        if arguments.outstanding < 1 or not 0 < arguments.seconds < math.inf:
            raise ValueError(
                f"--outstanding ({arguments.outstanding}) and --seconds ({arguments.seconds}) must be positive"
            )
        model, inputs = build(source, trust=arguments.trust)
    except ValueError as error:
        raise UsageError(f"ai-infer bench: {error}") from error
    if not inputs:
        raise UsageError("ai-infer bench: the model must have an input: add ?input=NAME:DATATYPE:SIZES")
    tensors = [torch.zeros([max(n, 1) for n in s.shape], dtype=DATATYPES[s.datatype], device="cpu") for s in inputs]
    device = source.options.get("device", "cpu")
    print(f"{'clients':>8} {'out':>4} {'requests/s':>11} {'p50 µs':>8} {'p99 µs':>8} {'rows/batch':>11}")
    results = []
    with Inferencer(model, device, source.batch_size) as inferencer:
        for count in counts:
            result = measure(inferencer, tensors, count, arguments.outstanding, arguments.seconds, arguments.transport)
            results.append(result)
            print(
                f"{result.clients:>8} {result.outstanding:>4} {result.requests_per_s:>11,.0f} {result.p50_us:>8.0f} "
                f"{result.p99_us:>8.0f} {result.rows_per_batch:>11.1f}",
                flush=True,
            )
    if arguments.png is not None:
        draw(results, arguments.png)
    return 0


def _counts(text: str) -> list[int]:
    """Returns the numbers of clients that somebody wrote."""
    given = [count.strip() for count in text.split(",")]
    if not all(count.isascii() and count.isdigit() and int(count) for count in given):
        raise ValueError(f"--clients must be numbers from 1 between commas, not {text!r}")
    return [int(count) for count in given]


def measure(
    inferencer: Inferencer,
    tensors: Sequence[Tensor],
    clients: int,
    outstanding: int = 1,
    seconds: float = 2.0,
    transport: Transport = "auto",
) -> Measurement:
    """Returns what `clients` processes get that ask at the same time, as fast as they can.

    Args:
        inferencer: to be asked.
        tensors: the positional arguments of every request.
        clients: number of processes.
        outstanding: requests that each keeps on their way.
        seconds: how long.
        transport: see `InferencerClient`.

    Raises:
        TypeError: a number is of another kind.
        ValueError: a number is out of range, or no request was answered in so short a time.
    """
    check_counts(clients=clients, outstanding=outstanding)
    check_seconds(seconds=seconds, none=False, endless=False)
    task = (inferencer.create_client(transport=transport), tuple(tensors), outstanding, seconds)
    command = [sys.executable, "-P", "-m", "ai.infer.bench_client"]
    processes = []
    try:
        for _ in range(clients):
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            processes.append(process)
            assert process.stdin is not None
            process.stdin.write(pickle.dumps(task))
            process.stdin.flush()
        for process in processes:
            assert process.stdout is not None
            if process.stdout.read(1) != b"r":
                raise RuntimeError("a client of the benchmark could not start; its message is above")
        before = inferencer.stats()
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(b"go\n")
            process.stdin.flush()
        outputs = [process.communicate()[0] for process in processes]
        after = inferencer.stats()
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    latencies = np.concatenate([np.frombuffer(output, np.float64) for output in outputs])
    if not len(latencies):
        raise ValueError(f"seconds ({seconds}) must be time enough for a request")
    p50, p99 = np.percentile(latencies, [50, 99])
    batches = max(after.batches - before.batches, 1)
    return Measurement(
        clients=clients,
        outstanding=outstanding,
        requests_per_s=len(latencies) / seconds,
        p50_us=float(p50) * 1e6,
        p99_us=float(p99) * 1e6,
        rows_per_batch=(after.rows - before.rows) / batches,
    )


def draw(results: Sequence[Measurement], path: Path) -> None:
    """Draws throughput and latency over the number of clients into a PNG."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise SystemExit("ai-infer bench: --png needs matplotlib, which is not installed") from error
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    clients = [result.clients for result in results]
    left.plot(clients, [result.requests_per_s for result in results], marker="o")
    left.set(xlabel="client processes", ylabel="requests per second", ylim=(0, None))
    right.plot(clients, [result.p50_us for result in results], marker="o", label="p50")
    right.plot(clients, [result.p99_us for result in results], marker="o", label="p99")
    right.set(xlabel="client processes", ylabel="latency in µs", ylim=(0, None))
    right.legend()
    figure.savefig(path)
