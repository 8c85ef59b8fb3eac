"""An inference worker on the device: latency and rows a second, with graphs and without, weights pushed or not."""

import functools
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch

import ai.model as m
from ai.infer import Inferencer
from gpu_parts.machine import Job, Machine, Row

SIZES = (1, 4, 16, 64, 256, 1024)


def network() -> m.Model:
    """A small convolutional network, of which launching takes longer than computing."""
    blocks = [m.resblk(32, 32, norm="batch", actv="relu") for _ in range(4)]
    net: m.Model = m.Model(m.seq(m.conv(3, 32), *blocks, m.global_avg(), m.fc(32, 10))).init(seed=0)
    return net


def rows(machine: Machine) -> Iterator[Job]:
    """The model itself in this process; then each size plain, by graphs, and while another thread pushes weights."""
    sizes = SIZES[:2] if machine.quick else SIZES
    on_cuda = machine.device.type == "cuda"
    model = network().eval().to(machine.device)

    @torch.no_grad()
    def here(x: torch.Tensor) -> torch.Tensor:
        return model(x.to(machine.device)).cpu()

    for name, how in {", graphs": {"graph_rows": sizes}, "": {}}.items():
        if how and not on_cuda:
            yield Job("graphs", lambda: {"left out": "no CUDA"})
            continue
        with ExitStack() as stack:
            served = network()

            def start(served: Any = served, how: Any = how, stack: ExitStack = stack) -> Inferencer:
                return stack.enter_context(Inferencer(served, machine.device, batch_size=sizes[-1], **how))

            started = functools.cache(start)  # by the first row that asks it

            def asked(n: int, started: Any = started) -> Row:
                return latency(machine, started(), n)

            def asked_while_pushed(n: int, started: Any = started, served: Any = served) -> Row:
                with pushed(started(), served):
                    return latency(machine, started(), n)

            for n in sizes:
                yield Job(f"{n} rows{name}", partial(asked, n), 3 if n > 1 else 15)
            yield Job(f"{sizes[-1]} rows{name}, weights pushed", partial(asked_while_pushed, sizes[-1]), 3)
    for n in sizes:
        yield Job(f"{n} rows, in this process", partial(latency, machine, here, n), 3)


def latency(machine: Machine, answer: Callable[[torch.Tensor], object], n: int) -> Row:
    x = torch.randn(n, 3, 32, 32)
    times: list[float] = []
    end = time.perf_counter() + (0.1 if machine.quick else 1.0)
    for _ in range(3):
        answer(x)
    while time.perf_counter() < end or len(times) < 5:
        start = time.perf_counter()
        answer(x)
        times.append(time.perf_counter() - start)
    p50 = statistics.median(times)
    return {"p50 ms": p50 * 1e3, "p99 ms": sorted(times)[int(0.99 * len(times))] * 1e3, "rows/s": n / p50}


class pushed:  # noqa: N801  (a context, read as a verb)
    """Meanwhile a thread pushes the weights, again and again."""

    def __init__(self, inferencer: Inferencer, model: Any) -> None:
        self._ended = threading.Event()
        state = model.state_dict()

        def push() -> None:
            while not self._ended.wait(0.01):
                inferencer.update_params(state)

        self._thread = threading.Thread(target=push)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()
