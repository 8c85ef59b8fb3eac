"""Kills runs at random moments until each is done, and compares their last bits with a run that was never killed.

    python tests/train/jobs/random_kills.py --kills 100

Each run is a process of its own, or one for each of two ranks, forked before it has done anything. Killed at random
times, it may die anywhere: in a forward pass, mid-accumulation, while a snapshot is written. Of two ranks one is killed
and the other is sent SIGTERM, as `torchrun` does.
"""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

import forked
import resumable


def kill_until_done(case: str, kills: int, steps: int, seed: int, folder: Path) -> tuple[int, int, float]:
    """Run `case` with so many kills at random moments.

    Returns:
        How many kills hit a running process, how many runs it took to completion, and the seconds one whole run takes.

    Raises:
        AssertionError: a run ended in other bits than the run that was never killed.
    """
    draw = random.Random(seed)
    began = time.perf_counter()
    whole = forked.Job(folder / "whole", case, steps)
    assert whole.wait() == [0] * whole.world
    seconds = time.perf_counter() - began
    expected = whole.digests()
    hits = runs = 0
    while hits < kills:
        runs += 1
        while True:
            job = forked.Job(folder / f"run-{runs}", case, steps)
            if hits < kills:
                # The whole span, so that kills fall before the first snapshot as well as at the end.
                job.wait(draw.uniform(0.0, seconds))
                hits += job.kill(draw.randrange(job.world))
            statuses = job.wait()
            if not any(statuses):
                break
            assert job.was_killed, f"{case}: exit statuses {statuses}"
        assert job.digests() == expected, f"{case}: run {runs} ended in other bits"
    return hits, runs, seconds


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", nargs="+", choices=resumable.CASES, default=resumable.CASES)
    args = parser.parse_args()
    cases = args.cases
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
