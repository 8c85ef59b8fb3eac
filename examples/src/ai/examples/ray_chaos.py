"""A search on a simulated Ray cluster whose workers, machines and driver are killed at random, to the same end.

Run: `python -m ai.examples.reproduce ray-chaos [--minutes 20]`, on Linux, with the extra `ray` of ai-data.
"""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from ai.lab import Experiment, ExperimentTrial, Record

_STEPS = 200
# Where workers start more slowly than others are killed, a search would rightly give up at its usual limit.
_MAX_DEATHS = 1000
_STORE_BYTES = 100 << 20
# Ray gives a machine 30 s to start, whatever else the computer does.
_MAX_STARTS = 20
# By which a searching process says that Ray did not let it in: no fault of the search.
_NOT_JOINED = 75


def reproduce(*, minutes: float = 20.0, trials: int = 12, nodes: int = 3, seed: int = 0) -> dict[str, float]:
    """Searches twice, once undisturbed here and once on a cluster under kills, and compares all that was found.

    Raises:
        RuntimeError: a choice or a score differs between the two searches.
    """
    ray: Any = import_module("ray")
    cluster_utils: Any = import_module("ray.cluster_utils")
    rng = random.Random(seed)
    whole = search("ray-chaos/undisturbed", clean=True).run(trials, Training(0.0), progress=False)
    folder = search("ray-chaos/killed", clean=True).path
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    how: dict[str, Any] = {"object_store_memory": _STORE_BYTES}
    cluster = cluster_utils.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **how}
    )
    killed: Counter[str] = Counter()
    broken_off: Counter[str] = Counter()  # by Ray itself
    begun = time.monotonic()
    driver: subprocess.Popen[bytes] | None = None
    try:
        living = [_started(cluster, how, broken_off) for _ in range(nodes)]
        cluster.wait_for_nodes()
        command = [sys.executable, "-m", __spec__.name, cluster.address, str(trials), str(nodes)]
        while True:
            if driver is None:
                driver = subprocess.Popen(command)
            over = time.monotonic() - begun > 60 * minutes
            status = None
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = driver.wait(None if over else rng.uniform(4, 20))
            if status == 0:
                break
            if status == _NOT_JOINED:
                broken_off["driver"] += 1
                driver = None
                continue
            if status is not None:
                raise RuntimeError(f"the searching process ended with {status}")
            what = rng.choice(["worker", "worker", "node", "driver"])
            if what == "worker" and (pids := _running(folder)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(rng.choice(pids), signal.SIGKILL)
                    killed[what] += 1
            elif what == "node":
                cluster.remove_node(living.pop(rng.randrange(len(living))), allow_graceful=False)
                killed[what] += 1
                living.append(_started(cluster, how, broken_off))
            elif what == "driver":
                driver.kill()
                driver.wait()
                driver = None
                killed[what] += 1
            print(f"{time.monotonic() - begun:6.0f} s  {dict(killed)}", flush=True)
    finally:
        if driver is not None and driver.poll() is None:
            driver.kill()
            driver.wait()
        ray.shutdown()
        cluster.shutdown()
    survivor = search("ray-chaos/killed")
    found, expected = ([row[:4] for row in one.trials()] for one in (survivor, whole))
    if found != expected:
        raise RuntimeError(f"{sum(a != b for a, b in zip(found, expected, strict=False))} trials came to another end")
    sessions = [len(Record(row.path).meta["sessions"]) for row in survivor.trials()]
    return {
        "trials": trials,
        "workers_killed": killed["worker"],
        "machines_killed": killed["node"],
        "drivers_killed": killed["driver"],
        "trials_gone_on": sum(count > 1 for count in sessions),
        "most_sessions_of_one": max(sessions),
        "broken_off_by_ray": broken_off.total(),
        "different": 0,
    }


def _started(cluster: Any, how: dict[str, Any], broken_off: Counter[str]) -> Any:
    """Returns a new machine: where Ray gives up one that a busy computer starts too slowly, another is tried."""
    for _ in range(_MAX_STARTS):
        before = _raylets()
        try:
            return cluster.add_node(num_cpus=1, **how)
        except Exception as error:  # Ray has no class of its own for it
            broken_off["node"] += 1
            print(f"Ray itself did not start a machine: {str(error)[:100]}", flush=True)
            for pid in _raylets() - before:  # which may come after all, and be one too many
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
    raise RuntimeError(f"Ray itself did not start a machine {_MAX_STARTS} times in a row: the run shows nothing")


def _raylets() -> set[int]:
    """Returns the processes of the machines that this one has started."""
    found = set()
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):  # it ends while it is looked at
            if child.name() == "raylet":
                found.add(child.pid)
    return found


def search(path: str, *, clean: bool = False) -> Experiment:
    """Returns the search in its folder."""
    return Experiment(Path(path), search="random", clean=clean, save_snapshots=True, save_interval=20, log_interval=20)


class Training:
    """The objective: a resumable training with dropout, whose score is the norm of its weights.

    Args:
        pause_s: Between two steps, so that there is time to be killed.
    """

    def __init__(self, pause_s: float) -> None:
        self.pause_s = pause_s

    def __call__(self, trial: ExperimentTrial) -> float:
        """Trains and returns the norm."""
        import torch

        import ai.model as m
        from ai.data import digits_dataset
        from ai.train import Classify, Trainer, opt

        torch.set_num_threads(1)
        torch.manual_seed(trial.number)
        model = m.Model(m.seq(m.flatten(), m.fc(64, 32, actv="relu"), torch.nn.Dropout(0.3), m.fc(32, 10)))
        model.init(seed=trial.number)
        loader = digits_dataset(size=8).loader(32, "cpu", train=True, seed=1)
        optimizer = opt.adamw(model, lr=trial.hp.log("lr", 1e-4, 1e-1))
        classify = Classify()

        def env(model: torch.nn.Module, batch: Any, step: int) -> Any:
            time.sleep(self.pause_s)
            return classify(model, batch, step)

        step = trial.resume(model, optimizer, loader)
        Trainer(env, loader).train(model, optimizer, trial.hook(), step=step, steplimit=_STEPS)
        return float(torch.cat([p.detach().flatten() for p in model.parameters()]).double().norm())


def _running(folder: Path) -> list[int]:
    """Returns the processes of the trials that have begun and not ended."""
    pids = []
    for file in folder.glob("trials/*/meta.json"):
        with contextlib.suppress(OSError, ValueError):
            meta = json.loads(file.read_text())
            pid = int(meta["sessions"][-1]["pid"])
            if meta["state"] == "running" and b"ray::" in Path(f"/proc/{pid}/cmdline").read_bytes():
                pids.append(pid)
    return pids


def main(address: str, trials: str, n_jobs: str) -> None:
    """Runs the driver."""
    from ai.data import Ray

    ray: Any = import_module("ray")
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except Exception as error:  # of several classes
        print(f"Ray itself did not let the searching process in: {str(error)[:100]}", flush=True)
        sys.exit(_NOT_JOINED)
    engine = Ray(max_deaths=_MAX_DEATHS)
    search("ray-chaos/killed").run(int(trials), Training(0.1), n_jobs=int(n_jobs), engine=engine, progress=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
