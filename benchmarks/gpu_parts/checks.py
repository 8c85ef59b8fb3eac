"""The tests of the suite that run on a device, as one row."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from gpu_parts.machine import Machine, Row

ROOT = Path(__file__).parents[2]


def rows(machine: Machine) -> Iterator[Row]:
    """All tests that take the `device` fixture, on this device; the dry run takes those of one folder."""
    files = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("tests/**/test_devices.py"))
    if machine.quick:
        files = [name for name in files if "infer" in name]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", machine.device.type, *files]
    start = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    last = done.stdout.strip().splitlines()[-1:] or [done.stderr[-300:]]
    counts = {what: int(n) for n, what in re.findall(r"(\d+) (passed|failed|errors?|skipped)", last[0])}
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    yield {"row": "tests", "seconds": time.perf_counter() - start, **counts, "which failed": ", ".join(failed)}
