"""The device that is measured: its clock, its memory, its peak."""

import gc
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

Row = dict[str, Any]

# Dense bfloat16 FLOP/s without sparsity, from the vendor's data sheets; of other devices no share is given.
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L4": 121e12, "T4": 65e12}


@dataclass(frozen=True)
class Job:
    """One row to be measured: begun where `seconds` are left, ended after twice that."""

    name: str
    run: Callable[[], Row]
    seconds: float = 5.0


class Machine:
    """Where everything runs, how large, and until when (of `time.monotonic`)."""

    def __init__(self, device: str, quick: bool, deadline: float) -> None:
        self.device, self.quick, self.deadline = torch.device(device), quick, deadline

    def time_left(self, seconds: float) -> bool:
        """Whether a row that takes so long should still be begun."""
        return time.monotonic() + seconds < self.deadline

    def wait(self) -> None:
        """All that was asked of the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def now(self) -> float:
        """The clock, once all that was asked of the device is done."""
        self.wait()
        return time.perf_counter()

    def forget_peak(self) -> None:
        """Give back what nobody holds, and count the most memory from here on."""
        gc.collect()  # an error holds the tensors of its frames
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_mib(self) -> float | None:
        """The most memory that tensors took since `forget_peak`; None where nobody counts it."""
        return torch.cuda.max_memory_allocated(self.device) / 2**20 if self.device.type == "cuda" else None

    def name(self) -> str:
        """What the driver calls the device."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"

    def peak_flops(self) -> float | None:
        """Of bfloat16 products, where the device is known."""
        return next((peak for name, peak in PEAK_FLOPS.items() if name in self.name()), None)


class Chunks:
    """A source of one batch again and again; the device is waited for between chunks, and the time noted."""

    def __init__(self, machine: Machine, batch: Any, warmup: int, chunks: int, steps: int) -> None:
        self.machine, self.batch, self.warmup, self.chunks, self.steps = machine, batch, warmup, chunks, steps
        self.times: list[float] = []

    def __iter__(self) -> Iterator[Any]:
        for _ in range(self.warmup):
            yield self.batch
        for _ in range(self.chunks):
            self.times.append(self.machine.now())
            for _ in range(self.steps):
                yield self.batch
        self.times.append(self.machine.now())
        yield self.batch  # so that the last chunk ends inside the loop that is measured

    def seconds_a_step(self) -> float:
        """The median over the chunks."""
        return statistics.median(b - a for a, b in zip(self.times, self.times[1:], strict=False)) / self.steps


def timed(machine: Machine, call: Callable[[], object], repeats: int) -> float:
    """Seconds of one call: the median, waiting for the device after each."""
    call()
    times = []
    for _ in range(repeats):
        start = machine.now()
        call()
        times.append(machine.now() - start)
    return statistics.median(times)


def seconds_each(machine: Machine, items: Iterable[Any], skip: int = 2) -> float:
    """Seconds of one item of an iterable, after the first few."""
    start, n = 0.0, 0
    for index, _ in enumerate(items):
        if index == skip - 1:
            start = machine.now()
        n = index - skip + 1
    return (machine.now() - start) / max(n, 1)
