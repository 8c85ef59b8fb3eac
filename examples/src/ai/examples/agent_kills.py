"""Kills a learning agent again and again, and compares what it becomes with one that was never killed.

Command: `python -m ai.examples.reproduce agent-kills --kind ppo`.
"""

import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Literal

from ai.examples import dqn, ppo, sac

Kind = Literal["ppo", "ppo-recurrent", "dqn", "sac"]
_MOST_ENDS = 20  # in a row; the machine was busier while the first run was timed

CONFIGS = {
    "ppo": (ppo, replace(ppo.main.PRESETS["tiny"], total_steps=4096, task_interval=8)),
    "ppo-recurrent": (
        ppo,
        replace(
            ppo.main.PRESETS["tiny"],
            env="hidden:CartPole-v1",
            sequence=8,
            total_steps=4096,
            batches=2,
            task_interval=16,
        ),
    ),
    "dqn": (
        dqn,
        replace(dqn.main.PRESETS["tiny"], total_steps=1500, n_step=3, alpha=0.6, quantiles=5, task_interval=64),
    ),
    "sac": (sac, replace(sac.main.PRESETS["tiny"], total_steps=1500, n_step=3, task_interval=32)),
}


def learn(kind: Kind, trial: str) -> None:
    """Runs an agent in this process, from the trial's newest snapshot on."""
    import torch

    torch.set_num_threads(1)
    example, config = CONFIGS[kind]
    example.run(replace(config, trial=trial, resume=True))


def newest(trial: Path) -> Path | None:
    """Returns a trial's newest snapshot."""
    found = sorted(trial.glob("snapshots/[0-9]*"))
    return found[-1] if found else None


def start(kind: Kind, trial: Path) -> "subprocess.Popen[bytes]":
    """Starts a process that learns."""
    code = f"from ai.examples.agent_kills import learn; learn({kind!r}, {str(trial)!r})"
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def reproduce(*, kind: Kind = "ppo", kills: int = 20, seed: int = 0) -> dict[str, float]:
    """Kills by SIGKILL, `kills` times after random times; `different` should be 0, of the files at each run's end.

    A run that came to its end before it was killed is compared and begun anew, and is no kill.

    Raises:
        RuntimeError: a run did not end well, or so many in a row ended before their time that none would be killed.
    """
    drawn = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, parts = Path(folder) / "whole", Path(folder) / "parts"
        began = time.monotonic()
        if start(kind, whole).wait(timeout=1800):
            raise RuntimeError(f"the {kind} that nobody kills did not end well")
        length = time.monotonic() - began
        killed = ended = in_a_row = different = 0
        while killed < kills:
            process = start(kind, parts)
            try:
                process.wait(timeout=drawn.uniform(0.2, 1.0) * length)
            except subprocess.TimeoutExpired:
                process.kill()
            status = process.wait(timeout=60)  # what it was killed by, or its own where it ended just then
            if status == -signal.SIGKILL:
                killed, in_a_row = killed + 1, 0
                continue
            if status:
                raise RuntimeError(f"the {kind} that was killed did not end well")
            different += _differences(whole, parts)
            _forget(parts)
            ended, in_a_row = ended + 1, in_a_row + 1
            if in_a_row > _MOST_ENDS:
                raise RuntimeError(f"{in_a_row} runs in a row ended before they were killed: run it again")
        if start(kind, parts).wait(timeout=1800):
            raise RuntimeError(f"the {kind} that was killed did not end well")
        different += _differences(whole, parts)
    return {"kills": float(killed), "ran_to_the_end": float(ended), "different": float(different)}


def _differences(whole: Path, parts: Path) -> int:
    """Returns how many files differ between a run that nobody killed and one that was, at their ends."""
    pairs = [(trial / "episodes.csv").read_bytes() for trial in (whole, parts)]
    ends = [newest(whole), newest(parts)]
    weights = [None if end is None else (end / "model.safetensors").read_bytes() for end in ends]
    if None in weights:
        raise RuntimeError("a run left no snapshot")
    return int(pairs[0] != pairs[1]) + int(weights[0] != weights[1])


def _forget(trial: Path) -> None:
    import shutil

    shutil.rmtree(trial)
