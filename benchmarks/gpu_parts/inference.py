"""An inference worker on the device: latency and rows a second, with graphs and without, weights pushed or not."""

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

import ai.model as m
from ai.infer import Inferencer
from gpu_parts.machine import Machine, Row

SIZES = (1, 4, 16, 64, 256, 1024)


def network() -> m.Model:
    """A small convolutional network, of which launching takes longer than computing."""
    blocks = [m.resblk(32, 32, norm="batch", actv="relu") for _ in range(4)]
    net: m.Model = m.Model(m.seq(m.conv(3, 32), *blocks, m.global_avg(), m.fc(32, 10))).init(seed=0)
    return net


def rows(machine: Machine) -> Iterator[Row]:
    """The model itself in this process; then each size plain, by graphs, and while another thread pushes weights."""
    sizes = SIZES[:2] if machine.quick else SIZES
    on_cuda = machine.device.type == "cuda"
    model = network().eval().to(machine.device)
    with torch.no_grad():
        for n in sizes:
            yield {
                "row": f"{n} rows, in this process",
                **latency(machine, lambda x: model(x.to(machine.device)).cpu(), n),
            }
    for name, how in {"": {}, ", graphs": {"graph_rows": sizes}}.items():
        if how and not on_cuda:
            yield {"row": "graphs", "left out": "no CUDA"}
            continue
        model = network()
        with Inferencer(model, machine.device, batch_size=sizes[-1], **how) as inferencer:
            for n in sizes:
                if machine.time_left(3):
                    yield {"row": f"{n} rows{name}", **latency(machine, inferencer, n)}
            with pushed(inferencer, model):
                yield {"row": f"{sizes[-1]} rows{name}, weights pushed", **latency(machine, inferencer, sizes[-1])}


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
