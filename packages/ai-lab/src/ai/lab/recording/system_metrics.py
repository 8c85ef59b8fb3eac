"""What the machine did during a run: processor, memory, GPU, disk, at an interval, from a thread of its own.

One JSON object a line in `system.jsonl`, the time first, as in the metrics file.
"""

import contextlib
import sys
import threading
import time
from pathlib import Path

from ai.lab.files.metrics_writer import MetricsWriter


class SystemSampler:
    """Appends a row of system metrics every `interval_s` seconds, from its start until `close`.

    A failure to sample or to write ends the sampling, never the run.

    Args:
        path: The file, as of `MetricsWriter`.
        interval_s: Seconds between two rows.
    """

    def __init__(self, path: Path, interval_s: float) -> None:
        self._writer = MetricsWriter(path)
        self._interval_s = interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ai-lab system metrics", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        import psutil  # type: ignore[import-untyped]

        process = psutil.Process()
        process.cpu_percent()
        psutil.cpu_percent()
        count = 0
        with contextlib.suppress(Exception):
            while not self._stop.wait(self._interval_s if count else min(self._interval_s, 0.2)):
                self._writer.write(count, sample(process))
                count += 1

    def move_to(self, path: Path) -> None:
        """Goes on in the same file, which was moved."""
        self._writer.move_to(path)

    def close(self) -> None:
        """Stops the thread and waits for it."""
        self._stop.set()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout=5)
        self._writer.close()


def sample(process: object) -> dict[str, float]:
    """Returns the system metrics of this moment.

    Percentages are 0 to 100 (`cpu_process_percent`: per core), memory and disk in bytes.

    Args:
        process: The `psutil.Process` to look at.
    """
    import psutil

    assert isinstance(process, psutil.Process)
    memory = psutil.virtual_memory()
    values = {
        "cpu_percent": psutil.cpu_percent(),
        "cpu_process_percent": process.cpu_percent(),
        "memory_percent": memory.percent,
        "memory_process_bytes": process.memory_info().rss,
        "threads": process.num_threads(),
    }
    torch = sys.modules.get("torch")
    # Asking an uninitialised CUDA would initialise it, in a run that may not want it.
    if torch is not None and torch.cuda.is_initialized():
        for index in range(torch.cuda.device_count()):
            values[f"gpu{index}_memory_allocated_bytes"] = torch.cuda.memory_allocated(index)
            values[f"gpu{index}_memory_reserved_bytes"] = torch.cuda.memory_reserved(index)
            with contextlib.suppress(Exception):  # utilisation needs NVML, which is not always there
                values[f"gpu{index}_percent"] = torch.cuda.utilization(index)
    return values


def now() -> float:
    """Returns seconds since the epoch, to the millisecond, as the files hold them."""
    return round(time.time(), 3)
