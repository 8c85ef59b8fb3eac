"""What goes wrong on a simulated Ray cluster, one thing after the other: how long until it is said, and in what words.

Run: `python -m ai.examples.reproduce ray-failures [--only hung-source]`, on Linux, with the extra `ray` of ai-data;
four minutes.
"""

import contextlib
import os
import signal
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]

from ai.data import Datagen, DatagenLoader, Ray, ReplayBuffer

_STORE_BYTES = 100 << 20
_LIMIT_S = 300.0


class Numbered:
    """A hundred small episodes a second, numbered.

    Args:
        hangs_at: The episode of its first worker at which it hangs; None for none.
    """

    def __init__(self, hangs_at: int | None = None) -> None:
        self.hangs_at = hangs_at

    def start(self, seed: int, worker: int) -> None:
        """Begins to count."""
        self.seed, self.worker, self.n = seed % 2**40, worker, 0

    def __next__(self) -> dict[str, Any]:
        """Returns the next episode."""
        self.n += 1
        time.sleep(1e9 if self.worker == 0 and self.n == self.hangs_at else 0.01)
        return {
            "obs": np.zeros((3, 1), np.float32),
            "action": np.zeros(2, np.int64),
            "who": np.array([self.worker, self.seed, self.n, 0], np.int64),
        }

    def update_params(self, state_dict: Mapping[str, Any], version: int) -> None:
        """Takes parameters and leaves them."""


def reproduce(*, only: str | None = None, seed: int = 0) -> dict[str, float]:
    """Has each thing go wrong on a cluster of a head and two machines.

    Args:
        only: One of them by name.
        seed: Of the workers.

    Raises:
        RuntimeError: Something was lost, came twice, or was said in other words.
    """
    ray: Any = import_module("ray")
    cluster_utils: Any = import_module("ray.cluster_utils")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": _STORE_BYTES}
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
    numbers = {}
    try:
        nodes = [cluster.add_node(num_cpus=1, object_store_memory=_STORE_BYTES) for _ in range(2)]
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        for name, failure in _FAILURES.items():
            if only in (None, name):
                seconds, words = failure(cluster, nodes, seed)
                numbers[f"{name}_s"] = round(seconds, 2)
                print(f"{name:14} {seconds:6.1f} s  {words}", flush=True)
    finally:
        ray.shutdown()
        cluster.shutdown()
    return numbers


def _no_room(cluster: Any, nodes: list[Any], seed: int) -> tuple[float, str]:
    begun = time.monotonic()
    with _loader(Numbered(), 1, Ray(num_gpus=1, start_timeout_s=2.0), seed=seed) as loader:
        return _error_of(loader, begun, TimeoutError, "no machine of the Ray cluster has had room")


def _other_version(cluster: Any, nodes: list[Any], seed: int) -> tuple[float, str]:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "ai_data-0.0.1.dist-info").mkdir()
        (Path(folder) / "ai_data-0.0.1.dist-info/METADATA").write_text("Name: ai-data\nVersion: 0.0.1\n")
        path = os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")])
        node = cluster.add_node(
            num_cpus=1, resources={"old": 1}, object_store_memory=_STORE_BYTES, env_vars={"PYTHONPATH": path}
        )
        cluster.wait_for_nodes()
        begun = time.monotonic()
        try:
            with _loader(Numbered(), 1, Ray(resources={"old": 1}), seed=seed) as loader:
                return _error_of(loader, begun, RuntimeError, "ai-data is 0.0.1 but")
        finally:
            cluster.remove_node(node)


def _full_store(cluster: Any, nodes: list[Any], seed: int) -> tuple[float, str]:
    with _loader(Numbered(), 2, Ray(), seed=seed) as loader:
        _draw_until(loader, lambda: _workers(loader, 0) == 2)
        begun = time.monotonic()
        version = loader.update_params({"w": np.ones(60_000_000, np.float32)})
        _draw_until(loader, lambda: _workers(loader, version) == 2)
        seconds = time.monotonic() - begun
        _check_nothing_lost(loader, deaths=0)
    return seconds, "240 MB of parameters are with both workers, through stores of 100 MB"


def _hung_source(cluster: Any, nodes: list[Any], seed: int) -> tuple[float, str]:
    with _loader(Numbered(hangs_at=300), 2, Ray(), seed=seed, stall_timeout_s=5.0) as loader:
        _draw_until(loader, lambda: _workers(loader, 0) == 2)
        return _death_of(
            loader,
            "gave nothing for 5 s (stall_timeout_s: raise it if one piece of work may take longer) and was in __next__",
        )


def _hung_machine(cluster: Any, nodes: list[Any], seed: int) -> tuple[float, str]:
    with _loader(Numbered(), 2, Ray(), seed=seed) as loader:
        _draw_until(loader, lambda: _workers(loader, 0) == 2)
        node = nodes.pop()
        stopped = _with_children(node.all_processes["raylet"][0].process.pid)
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            # Before Ray knows, it may give the one that takes the place to the machine that hangs: that dies with it.
            return _death_of(loader, at_most=2)
        finally:
            for pid in stopped:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _with_children(pid: int) -> list[int]:
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


def _head_lost(cluster: Any, nodes: list[Any], seed: int) -> tuple[float, str]:
    with _loader(Numbered(), 1, Ray(), seed=seed) as loader:
        _draw_until(loader, lambda: _workers(loader, 0) == 1)
        begun = time.monotonic()
        for process in cluster.head_node.all_processes["gcs_server"]:
            os.kill(process.process.pid, signal.SIGKILL)
        return _error_of(loader, begun, ConnectionError, "the head of the Ray cluster has not answered")


_FAILURES: dict[str, Callable[[Any, list[Any], int], tuple[float, str]]] = {
    "no-room": _no_room,
    "other-version": _other_version,
    "full-store": _full_store,
    "hung-source": _hung_source,
    "hung-machine": _hung_machine,
    "head-lost": _head_lost,  # and with it all others
}


def _loader(source: Numbered, n_workers: int, engine: Ray, **options: Any) -> DatagenLoader:
    buffer = ReplayBuffer(1_000_000)
    return Datagen(source).loader(16, n_workers=n_workers, engine=engine, buffer=buffer, **options)


def _made(loader: DatagenLoader) -> list[list[int]]:
    """Returns worker, seed, number and version of each episode, in the order of their arrival."""
    with loader.locked():
        if not len(loader.buffer):
            return []
        who, version = loader.buffer.column("who")[::3], loader.buffer.column("version")[::3]
        return [[*w[:3], v] for w, v in zip(who.tolist(), version.tolist(), strict=True)]


def _workers(loader: DatagenLoader, version: int) -> int:
    return len({worker for worker, _, _, v in _made(loader) if v == version})


def _draw_until(loader: DatagenLoader, condition: Callable[[], bool]) -> None:
    begun = time.monotonic()
    while not condition():
        next(loader)
        if time.monotonic() - begun > _LIMIT_S:
            raise RuntimeError(f"not within {_LIMIT_S:g} s")
        time.sleep(0.05)


def _error_of(loader: DatagenLoader, begun: float, kind: type[Exception], words: str) -> tuple[float, str]:
    """Returns when drawing raised, and what."""
    try:
        _draw_until(loader, lambda: False)
    except kind as error:
        if words not in str(error):
            raise
        return time.monotonic() - begun, str(error)
    raise AssertionError("unreachable")


def _death_of(loader: DatagenLoader, words: str = "", *, at_most: int = 1) -> tuple[float, str]:
    """Returns when a worker counted as dead, once the others have gone on and nothing came twice."""
    begun = time.monotonic()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _draw_until(loader, lambda: loader.stats()["worker_deaths"] > 0)
        seconds, n = time.monotonic() - begun, loader.stats()["episodes"]
        _draw_until(loader, lambda: loader.stats()["episodes"] > n + 300)
    said = [str(warning.message) for warning in caught if words and words in str(warning.message)]
    if words and not said:
        raise RuntimeError(f"nobody said: {words}")
    _check_nothing_lost(loader, deaths=1, at_most=at_most)
    dropped = loader.stats()["dropped_chunks"]
    return seconds, f"{dropped:.0f} parcels dropped, none twice, the other goes on{'; ' if said else ''}{''.join(said)}"


def _check_nothing_lost(loader: DatagenLoader, deaths: int, at_most: int | None = None) -> None:
    """Refuses episodes that came twice or out of order, and deaths that nobody has caused."""
    runs: dict[int, list[int]] = {}
    for _, seed, number, _ in _made(loader):
        runs.setdefault(seed, []).append(number)
    if any(numbers != list(range(1, len(numbers) + 1)) for numbers in runs.values()):
        raise RuntimeError("an episode was lost, came twice or out of order")
    if not deaths <= loader.stats()["worker_deaths"] <= max(deaths, at_most or 0):
        raise RuntimeError(f"{loader.stats()['worker_deaths']:.0f} workers died, not {deaths}")
