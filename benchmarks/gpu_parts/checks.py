"""The tests of the suite that run on a device, a row for each part of the library."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from gpu_parts.machine import Job, Machine, Row

ROOT = Path(__file__).parents[2]
PARTS = ("model", "data", "train", "infer", "game", "examples")
PROCESSES = min(8, os.cpu_count() or 1)


def rows(machine: Machine) -> Iterator[Job]:
    """All tests that take `device`, `any_device` or `on_device`, on this device; the dry run takes one part's.

    They share the device, several processes at a time, where pytest-xdist is installed.
    """
    for part in ("infer",) if machine.quick else PARTS:
        limit = max(1.0, machine.deadline - time.monotonic())
        # Begun while there is any time; pytest is ended at the limit, before this row would be.
        yield Job(part, partial(of_part, part, machine.device.type, limit), limit * 0.75)


def of_part(part: str, device: str, limit: float) -> Row:
    """How many pass, fail and are skipped, and which fail; within the limit in seconds."""
    takes_device = re.compile(r"def \w+\([^)]*\b(device|any_device|on_device)\b|@pytest\.mark\.cuda")
    found = [path for path in ROOT.glob(f"tests/{part}/**/test_*.py") if takes_device.search(path.read_text())]
    files = sorted(str(path.relative_to(ROOT)) for path in found)
    chosen = ["-m", "cuda"] if device == "cuda" else ["-k", device]
    together = [f"--numprocesses={PROCESSES}"] if device == "cuda" and find_spec("xdist") else []
    # Other versions of what the tests import may be deprecating other things.
    quiet = ["-W", "ignore::DeprecationWarning", "-W", "ignore::FutureWarning"]
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:benchmark"]
    command = [*pytest, *together, *quiet, *chosen, *files]
    start = time.perf_counter()
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"seconds": limit, "errors": 1, "which failed": "none was told when the time was up"}
    last = done.stdout.strip().splitlines()[-1:] or [done.stderr[-300:]]
    counts = {what: int(n) for n, what in re.findall(r"(\d+) (passed|failed|errors?|skipped)", last[0])}
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    return {"seconds": time.perf_counter() - start, **counts, "which failed": ", ".join(failed)}
