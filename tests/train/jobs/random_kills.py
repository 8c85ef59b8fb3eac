"""Stops runs in every way until each is done, and compares their last bits with a run that was never stopped.

    python tests/train/jobs/random_kills.py --kills 100

Each run is a process of its own, or one for each of two ranks, forked before it has done anything. It is stopped by
SIGKILL, by SIGTERM, or in good order at a step limit; at a random time (in a forward pass, while a snapshot is
written), in the middle of an accumulation, or at an epoch's turn. Of two ranks one is signalled; where that kills it
the other is sent SIGTERM, as `torchrun` does. What is compared is all that a snapshot holds: models, optimisers,
averages, scaler, random states, data position, hook.
"""

import argparse
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import forked
import resumable

WHEN = ("at random", "mid-accumulation", "epoch's turn")
_WAYS = {"kill": 0.6, "term": 0.2, "clean": 0.2}


class Soak:
    """Runs of one case.

    Args:
        case: one of `resumable.CASES`.
        steps: of each run.
        seed: of the stops.
        folder: for the runs' folders.
    """

    def __init__(self, case: str, steps: int, seed: int, folder: Path) -> None:
        self.case, self.steps, self.folder = case, steps, folder
        self.stops: Counter[tuple[str, str]] = Counter()
        self.runs = 0
        self._draw = random.Random(seed)
        began = time.perf_counter()
        whole = forked.Job(folder / "whole", case, steps)
        assert whole.wait() == [0] * whole.world, (folder / "whole" / "log-0.txt").read_text()
        self.seconds = time.perf_counter() - began
        self._expected = whole.digests()
        assert self._expected is not None

    def kills(self) -> int:
        """How many SIGKILLs have hit a running process."""
        return sum(count for (way, _), count in self.stops.items() if way == "kill")

    def run_until_done(self, kills: int) -> None:
        """One run, stopped again and again as long as fewer than `kills` have been counted.

        Raises:
            AssertionError: it ended in other bits, or in a way it was not made to.
        """
        self.runs += 1
        folder = self.folder / f"run-{self.runs}"
        while True:
            way, when = "none", ""
            if self.kills() < kills:
                (way,) = self._draw.choices(list(_WAYS), weights=list(_WAYS.values()))
                when = self._draw.choice(WHEN if way != "clean" else ("at random", "epoch's turn"))
            job, stopped = self._stop(folder, way, when)
            self.stops[way, when] += stopped
            statuses, found = job.wait(), job.digests()
            allowed = {0} | ({1, -signal.SIGTERM, -signal.SIGKILL} if stopped and way != "clean" else set())
            log = folder / "log-0.txt"
            assert set(statuses) <= allowed, f"{self.case}: {way} {when}: {statuses}\n{log.read_text()[-3000:]}"
            if found is not None:
                break
            assert stopped, f"{self.case}: run {self.runs} ended early"
        assert found == self._expected, f"{self.case}: run {self.runs} ended in other {self._differing(found)}"

    def _differing(self, found: list[dict[str, str]]) -> str:
        """The names of what is not as it should be."""
        expected = self._expected or []
        pairs = enumerate(zip(found, expected, strict=True))
        names = [
            f"{name} of rank {rank}" for rank, (a, b) in pairs for name in sorted(a | b) if a.get(name) != b.get(name)
        ]
        return ", ".join(names)

    def _stop(self, folder: Path, way: str, when: str) -> tuple[forked.Job, bool]:
        """Start or continue a run and stop it; whether that was in time."""
        newest = max((int(p.name) for p in (folder / "snapshots").glob("0*")), default=0)
        ahead = [s for s in range(newest + 1, self.steps) if when != "epoch's turn" or s % resumable.EPOCH == 0]
        if way == "none" or not ahead:
            return forked.Job(folder, self.case, self.steps), False
        number = {"kill": signal.SIGKILL, "term": signal.SIGTERM}.get(way)
        if number is None:
            job = forked.Job(folder, self.case, self.steps, limit=self._draw.choice(ahead))
            job.end()
            return job, True
        if when == "at random":
            job = forked.Job(folder, self.case, self.steps)
            # The whole span, so that some fall before the first snapshot, and some at the end.
            job.wait(self._draw.uniform(0.0, self.seconds))
            return job, job.signal(self._draw.randrange(job.world), number)
        world = 2 if self.case in ("ddp", "fsdp") else 1
        job = forked.Job(
            folder,
            self.case,
            self.steps,
            rank=self._draw.randrange(world),
            at=self._draw.choice(ahead),
            part=int(when == "mid-accumulation"),
            number=number,
        )
        job.end()
        return job, True


def main(kills: int, steps: int, seed: int, cases: list[str]) -> None:
    """Prints a line for each case, and the sums."""
    total: Counter[tuple[str, str]] = Counter()
    for index, case in enumerate(cases):
        share = kills * (index + 1) // len(cases) - kills * index // len(cases)
        with tempfile.TemporaryDirectory() as scratch:
            soak = Soak(case, steps, seed + index, Path(scratch))
            while soak.kills() < share:
                soak.run_until_done(share)
        total += soak.stops
        counted = ", ".join(f"{n} {way} {when}" for (way, when), n in sorted(soak.stops.items()) if n)
        print(f"{case:<8}{soak.runs:3} runs, all bit-identical; {counted}", flush=True)
    for way in _WAYS:
        each = ", ".join(f"{total[way, when]} {when}" for when in WHEN)
        print(f"{sum(total[way, when] for when in WHEN):4} {way:<6} ({each})")
    print(f"{sum(n for (way, _), n in total.items() if way == 'kill')} kills survived bit for bit")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", nargs="+", choices=resumable.CASES, default=resumable.CASES)
    args = parser.parse_args()
    main(args.kills, args.steps, args.seed, args.cases)
    sys.exit(0)
