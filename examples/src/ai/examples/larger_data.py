"""Whether data larger than a limit of memory is read in flat memory: a memory-mapped file, through `in_blocks`.

Run: `python -m ai.examples.reproduce larger-data [--gib 64]`, on Linux. The file is sparse, and takes no room on disk.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_ROW = 4096  # bytes


def reproduce(*, gib: int = 64, limit_mib: int = 128, batches: int = 2000, seed: int = 0) -> dict[str, float]:
    """Draws batches of 1 MiB from a file of `gib` in a process that may take `limit_mib` more than it has.

    Raises:
        RuntimeError: the process failed, as one that runs out of memory does.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows")
        with open(path, "wb") as file:
            file.truncate(gib << 30)
        command = [sys.executable, "-m", "ai.examples.larger_data", str(path), str(limit_mib), str(batches), str(seed)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the process within {limit_mib} MiB ended with {done.returncode}: {done.stderr[-500:]}")
    told = dict(json.loads(done.stdout))
    print(f"{gib} GiB in batches of 1 MiB, at most {limit_mib} MiB more: {told}")
    return {"file_gib": gib, "limit_mib": limit_mib, **told}


def _read_within(path: str, limit_mib: int, n_batches: int, seed: int) -> None:
    """Runs in the limited process: prints what it took as JSON."""
    import resource

    import numpy as np
    import torch

    from ai.data import Dataset, sampling

    torch.set_num_threads(1)
    rows = np.memmap(path, np.uint8, "r").reshape(-1, _ROW)
    before = _status()
    limit = (before["VmData"] + limit_mib * 1024) << 10
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    dataset = Dataset({"x": rows})
    loader = dataset.loader(256, train=True, seed=seed, sampler=sampling.in_blocks(len(dataset)))
    begin = time.monotonic()
    iterator = iter(loader)
    next(iterator)
    first_s = time.monotonic() - begin
    peak_kib = 0
    for _ in range(n_batches):
        next(iterator)
        peak_kib = max(peak_kib, _status()["RssAnon"])
    after = _status()
    told = {
        "first_batch_s": round(first_s, 3),
        "batches_s": round(time.monotonic() - begin - first_s, 1),
        "own_memory_above_mib": round((peak_kib - before["RssAnon"]) / 1024, 1),
        "pages_of_the_file_mib": round((after["RssFile"] - before["RssFile"]) / 1024),
    }
    print(json.dumps(told))


def _status() -> dict[str, int]:
    """Returns this process's memory by kind, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return {name: int(value.split()[0]) for name, _, value in (line.partition(":") for line in lines) if "kB" in value}


if __name__ == "__main__":
    _read_within(sys.argv[1], *map(int, sys.argv[2:]))
