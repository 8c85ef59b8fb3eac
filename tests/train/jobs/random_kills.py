"""Kills runs at random moments until each is done, and compares their last bits with a run that was never killed.

    python tests/train/jobs/random_kills.py --kills 100

Each run is a process of its own, forked before it has done anything. Killed at random times, it may die anywhere: in a
forward pass, mid-accumulation, while a snapshot is written.
"""

import argparse
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import resumable


def _child(folder: Path, case: str, steps: int, result: Path) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # resume notices of a hundred runs
    result.write_text(resumable.run(folder, case, steps))


def _start(folder: Path, case: str, steps: int, result: Path) -> multiprocessing.process.BaseProcess:
    process = multiprocessing.get_context("fork").Process(target=_child, args=(folder, case, steps, result))
    process.start()
    return process


def kill_until_done(case: str, kills: int, steps: int, seed: int, folder: Path) -> tuple[int, int, float]:
    """Run `case` with so many kills at random moments.

    Returns:
        How many kills hit a running process, how many runs it took to completion, and the seconds one whole run takes.

    Raises:
        AssertionError: a run ended in other bits than the run that was never killed.
    """
    draw = random.Random(seed)
    began = time.perf_counter()
    whole = _start(folder / "whole", case, steps, folder / "whole.txt")
    whole.join()
    seconds = time.perf_counter() - began
    expected = (folder / "whole.txt").read_text()
    hits = runs = 0
    while hits < kills:
        runs += 1
        result, place = folder / f"{runs}.txt", folder / f"run-{runs}"
        while True:
            process = _start(place, case, steps, result)
            if hits < kills:
                # The whole span, so that kills fall before the first snapshot as well as at the end.
                process.join(draw.uniform(0.0, seconds))
                if process.is_alive():
                    os.kill(process.pid or 0, signal.SIGKILL)
                    hits += 1
            process.join()
            if process.exitcode == 0:
                break
            assert process.exitcode == -signal.SIGKILL, f"{case}: exit status {process.exitcode}"
        assert result.read_text() == expected, f"{case}: run {runs} ended in other bits"
    return hits, runs, seconds


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    cases = [case for case in resumable.CASES if case not in ("ddp", "fsdp")]
    total = 0
    for index, case in enumerate(cases):
        share = args.kills * (index + 1) // len(cases) - args.kills * index // len(cases)
        with tempfile.TemporaryDirectory() as scratch:
            hits, runs, seconds = kill_until_done(case, share, args.steps, args.seed + index, Path(scratch))
        total += hits
        print(
            f"{case:<8} {hits:3} kills, {runs:2} runs to completion ({seconds:.2f} s each), all bit-identical",
            flush=True,
        )
    print(f"{total} kills survived bit for bit")
    sys.exit(0)
