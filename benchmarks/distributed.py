"""What a Ray cluster costs beside local processes, on simulated machines of this one, local and Ray alternating.

    python benchmarks/distributed.py                 # all but alphazero, in five minutes; on a quiet machine
    python benchmarks/distributed.py --seconds 1 --repeats 1 generate push   # some, shorter
    python benchmarks/distributed.py --repeats 1 alphazero                   # three minutes
    python benchmarks/distributed.py --repeats 1 --updates 8000 alphazero    # until no fault is left

Parts: `generate` (episodes a second of sources that cost nothing, and the CPU that the trainer and Ray's processes take
for them), `push` (until every worker plays with parameters of 40 MB), `kill` (until a death is noticed), `trial` (a
trial that does nothing), `alphazero` (the example's tic-tac-toe, played here and on two machines, by networks and by an
inferencer on each, by turns, 256 games side by side in each worker, as a question to an inferencer costs nearly as much
about 64 positions as about 256; only where it is named). Medians; needs the extra `ray` of ai-data.
"""

# ruff: noqa: D102  (a source's three methods mean what they are called)
import argparse
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from ai.data import Datagen, DatagenLoader, Ray, ReplayBuffer
from ai.lab import Experiment

NODES, NODE_CPUS, STORE_BYTES, LIMIT_S = 2, 2, 200 << 20, 120.0


class Board:
    """Connect Four's size: 42 moves, 14 kB."""

    shape, moves = (2, 6, 7), 42
    dtype: Any = np.float32

    def start(self, seed: int, worker: int) -> None:
        self.worker = worker

    def __next__(self) -> dict[str, Any]:
        return {
            "obs": np.zeros((self.moves + 1, *self.shape), self.dtype),
            "action": np.zeros(self.moves, np.int64),
            "who": np.int64(self.worker),
        }

    def update_params(self, state_dict: Any, version: int) -> None:
        pass


class Frames(Board):
    """Frames of a game: 100 of 84 × 84 bytes."""

    shape, moves, dtype = (84, 84), 100, np.uint8


class Slow(Board):
    """A hundred episodes a second."""

    def __next__(self) -> dict[str, Any]:
        time.sleep(0.01)
        return super().__next__()


def wait(condition: Callable[[], bool]) -> float:
    """Returns how many seconds it took."""
    begun = time.monotonic()
    while not condition():
        if time.monotonic() - begun > LIMIT_S:
            raise TimeoutError(f"not within {LIMIT_S:g} s")
        time.sleep(0.002)
    return time.monotonic() - begun


def made(source: Board, n_workers: int, engine: Ray | None) -> DatagenLoader:
    """Returns a loader all of whose workers have begun."""
    loader = Datagen(source).loader(16, n_workers=n_workers, engine=engine, buffer=ReplayBuffer(20_000))
    seen: set[int] = set()
    wait(lambda: len(playing(loader, 0, seen)) == n_workers)
    return loader


def playing(loader: DatagenLoader, version: int, seen: set[int]) -> set[int]:
    """Adds to `seen` the workers whose episodes of a version are in the buffer, which holds few messages at a time."""
    with loader.locked():
        if len(loader.buffer):
            which = loader.buffer.column("version") == version
            seen.update(loader.buffer.column("who")[which].tolist())
    return seen


def ray_cpu_s() -> float:
    """Returns the CPU time of Ray's own processes, those of the workers left out."""
    names = ("raylet", "gcs_server")
    return sum(sum(p.cpu_times()[:2]) for p in psutil.process_iter(["name"]) if p.info["name"] in names)


def cpu_s(pids: list[int]) -> float:
    """Returns the CPU time of this process, of Ray's own and of those that are named."""
    return time.process_time() + ray_cpu_s() + sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids)


def generate(make: Callable[[], Ray], seconds: float, repeats: int) -> None:
    for source, n_workers, reach in ((Board(), 4, 0.25), (Frames(), 2, 0.2)):
        rates: dict[str, list[float]] = {"local": [], "Ray": []}
        cores: dict[str, list[float]] = {"local": [], "Ray": []}
        for _ in range(repeats):
            for name in rates:
                with made(source, n_workers, make() if name == "Ray" else None) as loader:
                    episodes, cpu, begun = loader.stats()["episodes"], time.process_time() + ray_cpu_s(), time.time()
                    time.sleep(seconds)
                    lasted = time.time() - begun
                    rates[name].append((loader.stats()["episodes"] - episodes) / lasted)
                    cores[name].append((time.process_time() + ray_cpu_s() - cpu) / lasted)
        local, by_ray = (statistics.median(rates[name]) for name in rates)
        title = f"{type(source).__name__} episodes a second, {n_workers} workers"
        line(title, f"{local:.0f}", f"{by_ray:.0f}", f"{by_ray / local:.2f} × (reach {reach})")
        taken = [statistics.median(cores[name]) for name in cores]
        line("  cores of the trainer and of Ray", f"{taken[0]:.2f}", f"{taken[1]:.2f}", "(reach 1)")


def push(make: Callable[[], Ray], seconds: float, repeats: int) -> None:
    import ray

    class Bare:
        def take(self, array: Any) -> tuple[str, int]:
            return str(ray.get_runtime_context().get_node_id()), os.getpid()

    took: dict[str, list[float]] = {"local": [], "Ray": [], "bare": []}
    cpu: dict[str, list[float]] = {name: [] for name in took}
    params = {"w": np.zeros(10_000_000, np.float32)}
    actors = [ray.remote(num_cpus=0.1, scheduling_strategy="SPREAD")(Bare).remote() for _ in range(NODES)]
    bare = ray.get([actor.take.remote(None) for actor in actors])
    assert len({node for node, _ in bare}) == NODES
    with made(Slow(), 2, None) as here, made(Slow(), 2, make()) as there:
        for _ in range(8 * repeats):
            for name, loader in (("local", here), ("Ray", there)):
                before = cpu_s(loader.pids)
                version = loader.update_params(params)
                seen: set[int] = set()
                took[name].append(
                    wait(lambda loader=loader, version=version, seen=seen: len(playing(loader, version, seen)) == 2)
                )
                cpu[name].append(cpu_s(loader.pids) - before)
            before, begun = cpu_s([pid for _, pid in bare]), time.monotonic()
            put = ray.put(params["w"])
            ray.get([actor.take.remote(put) for actor in actors])
            took["bare"].append(time.monotonic() - begun)
            cpu["bare"].append(cpu_s([pid for _, pid in bare]) - before)
            del put
    local, by_ray, alone = (statistics.median(took[name]) for name in took)
    line("push of 40 MB to 2 workers, s", f"{local:.2f}", f"{by_ray:.2f}", f"{by_ray / local:.2f} × (reach 1.2)")
    line("  Ray's put and fetch alone, nothing of ours", "", f"{alone:.2f}", f"{alone / local:.2f} ×")
    local, by_ray, alone = (statistics.mean(cpu[name]) for name in cpu)
    line("  CPU of all processes, s", f"{local:.3f}", f"{by_ray:.3f}", f"{by_ray / local:.2f} ×")
    line("  Ray's put and fetch alone, nothing of ours", "", f"{alone:.3f}", f"{alone / local:.2f} ×")
    for actor in actors:
        ray.kill(actor)


def alphazero(make: Callable[[], Ray], seconds: float, repeats: int) -> None:
    from ai.examples.alphazero.main import PRESETS, run

    preset = PRESETS["tictactoe"]
    preset = replace(preset, play=replace(preset.play, games=GAMES))
    took: dict[str, list[float]] = {}
    for _ in range(repeats):
        for engine, inferencer in (("local", False), ("ray", False), ("local", True), ("ray", True)):
            with tempfile.TemporaryDirectory() as folder:
                how: dict[str, Any] = {"engine": engine, "inferencer": inferencer, "workers": NODES}
                how |= dict.fromkeys(("steps", "task_interval", "save_interval"), UPDATES)
                found = run(replace(preset, trial=f"{folder}/trial", **how))
            name = f"AlphaZero, {engine}{', inferencers' if inferencer else ''}: s"
            took.setdefault(name, []).append(found["seconds"])
            faults = {key: found[key] for key in ("wrong_8", "wrong_32", "lost_8", "lost_32")}
            print(f"  {name} {found['seconds']:.1f}, {faults} (reach 0 each after 8000 updates)", flush=True)
    local = statistics.median(next(iter(took.values())))
    for name, each in took.items():
        line(
            name,
            f"{local:.1f}",
            f"{statistics.median(each):.1f}",
            f"{statistics.median(each) / local:.2f} × (reach 1.2)",
        )


def kill(make: Callable[[], Ray], seconds: float, repeats: int) -> None:
    actors, nodes = [], []
    for _ in range(repeats):
        with made(Slow(), 2, make()) as loader:
            os.kill(loader.pids[0], signal.SIGKILL)
            actors.append(wait(lambda: loader.stats()["worker_deaths"] == 1))
            wait(lambda: len(loader.pids) == 2)
            node = next(node for node in cluster.nodes if set(loader.pids) & children(node))
            cluster.nodes.remove(node)
            cluster.remove_node(node, allow_graceful=False)
            nodes.append(wait(lambda: loader.stats()["worker_deaths"] > 1))
        cluster.nodes.append(add())
        cluster.wait_for_nodes()
    line("killed worker noticed after, s", "", f"{statistics.median(actors):.2f}", "(reach 1)")
    line("killed machine noticed after, s", "", f"{statistics.median(nodes):.2f}", "(reach 5)")


def children(node: Any) -> set[int]:
    return {child.pid for child in psutil.Process(node.all_processes["raylet"][0].process.pid).children()}


def trial(make: Callable[[], Ray], seconds: float, repeats: int) -> None:
    took: dict[str, list[float]] = {"local": [], "Ray": []}
    n = max(5, round(5 * seconds))
    for _ in range(repeats):
        for name in took:
            with tempfile.TemporaryDirectory() as folder:
                experiment, ends = Experiment(Path(folder) / "e", search="random"), []
                engine = make() if name == "Ray" else None
                notes = [lambda study, one, ends=ends: ends.append(time.monotonic())]
                experiment.run(n, lambda one: 0.0, engine=engine, callbacks=notes, progress=False)
                took[name] += np.diff(ends).tolist()
    local, by_ray = (statistics.median(took[name]) for name in took)
    line("a trial that does nothing, s", f"{local:.3f}", f"{by_ray:.3f}", f"+ {by_ray - local:.3f} (reach + 0.3)")


def line(what: str, local: str, by_ray: str, beside: str) -> None:
    print(f"{what:42} {local:>10} {by_ray:>10}   {beside}", flush=True)


def add() -> Any:
    return cluster.add_node(num_cpus=NODE_CPUS, object_store_memory=STORE_BYTES)


PARTS = {"generate": generate, "push": push, "kill": kill, "trial": trial, "alphazero": alphazero}
cluster: Any = None
UPDATES, GAMES = 1000, 256


def main() -> None:
    """Measures the parts that are named, all by default."""
    global cluster, UPDATES, GAMES
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--updates", type=int, default=UPDATES, help="of the network, in alphazero")
    parser.add_argument("--games", type=int, default=GAMES, help="side by side in each of its workers")
    options = parser.parse_args()
    UPDATES, GAMES = options.updates, options.games
    import ray
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    head = {"num_cpus": 0, "object_store_memory": STORE_BYTES, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        cluster.nodes = [add() for _ in range(NODES)]
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, {NODES} machines beside the head", flush=True)
        line("", "local", "Ray", "")
        for name in options.parts or [name for name in PARTS if name != "alphazero"]:
            PARTS[name](lambda: Ray(cluster.address), options.seconds, options.repeats)
    finally:
        ray.shutdown()
        cluster.shutdown()


if __name__ == "__main__":
    main()
