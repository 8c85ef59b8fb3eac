"""Whether generated data keeps coming, in flat memory, while its workers are killed at random.

Run: `python -m ai.examples.reproduce datagen-soak [--minutes 20]`, on Linux.
"""

import os
import random
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ai.data import Episode


class Numbered:
    """Episodes whose rows tell which step of which episode they are, so that a torn one is seen.

    It needs numpy alone, and so do its workers: they import this module.
    """

    def start(self, seed: int, worker: int) -> None:
        """Called once in each worker."""
        self.rng = np.random.default_rng(seed)

    def __next__(self) -> "Episode":
        """Returns an episode of 20 to 80 steps, whose `obs` is its name plus the number of the step."""
        n = int(self.rng.integers(20, 81))
        name = int(self.rng.integers(1 << 40))
        step = np.arange(n + 1)
        obs = np.repeat((name + step)[:, None], 64, axis=1)
        return {"obs": obs, "action": step[:n], "reward": np.ones(n, np.float32), "name": name}

    def update_params(self, state_dict: Mapping[str, Any], version: int) -> None:
        """Takes the parameters; they change nothing here."""


def reproduce(*, minutes: float = 20.0, n_workers: int = 2, seed: int = 0) -> dict[str, float]:
    """Draws batches for `minutes`, checks every row, and kills a worker every 1 to 10 seconds.

    Raises:
        RuntimeError: a batch held a row of no episode that was made.
    """
    import torch

    from ai.data import Datagen, ReplayBuffer

    rng = random.Random(seed)
    buffer = ReplayBuffer(100_000, seed=seed)
    n_batches, n_kills, longest_wait_s = 0, 0, 0.0
    memory: list[float] = []
    with Datagen(Numbered()).loader(256, n_workers=n_workers, buffer=buffer, replay_ratio=4.0, seed=seed) as loader:
        next(loader)
        begin = last = next_line = time.monotonic()
        next_kill = begin + rng.uniform(0, 2)
        while last - begin < 60 * minutes:
            batch = next(loader)
            if not torch.equal(batch["obs"], (batch["name"] + batch["action"])[:, None].expand(-1, 64)):
                raise RuntimeError(f"batch {n_batches} holds a row of no episode that was made")
            n_batches += 1
            now = time.monotonic()
            longest_wait_s, last = max(longest_wait_s, now - last), now
            if now >= next_kill and loader.stats()["worker_deaths"] == n_kills and (pids := loader.pids):
                os.kill(rng.choice(pids), signal.SIGKILL)
                n_kills += 1
                next_kill = now + rng.uniform(1, 10)
            if now >= next_line:
                next_line += max(1.0, 60 * minutes / 20)
                memory.append(resident_mb(os.getpid()))
                figures = loader.stats()
                print(
                    f"{now - begin:6.0f} s  {n_batches:10,} batches  {figures['episodes']:10,} episodes  "
                    f"reuse {figures['reuse']:.2f}  deaths {figures['worker_deaths']:4}  "
                    f"longest wait {longest_wait_s:.2f} s  parent {memory[-1]:.0f} MB  "
                    f"workers {[round(resident_mb(pid)) for pid in loader.pids]} MB",
                    flush=True,
                )
        figures = loader.stats()
    return {
        "minutes": round((last - begin) / 60, 2),
        "batches": n_batches,
        "episodes": figures["episodes"],
        "kills": n_kills,
        "worker_deaths": figures["worker_deaths"],
        "longest_wait_s": round(longest_wait_s, 2),
        # The ring fills in the first lines; from then on memory should be flat.
        "parent_mb_middle": round(memory[len(memory) // 2]),
        "parent_mb_end": round(memory[-1]),
    }


def resident_mb(pid: int) -> float:
    """Returns the memory of a process in MB; 0 if it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6
