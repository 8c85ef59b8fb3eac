"""A resumable run in forked processes, one for each rank: they need not import torch anew, and can be killed."""

import multiprocessing
import os
import signal
import time
import traceback
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path

import resumable
import torch.distributed as dist
import torch.distributed.checkpoint.state_dict  # before the fork, once for all processes
import torch.distributed.fsdp  # noqa: F401

TIMEOUT_S = 60


class Job:
    """Starts the run of `case` in `folder`: two ranks for ddp and fsdp, else one process.

    Args:
        folder: where the run keeps its snapshots; the same folder continues it.
        case: one of `resumable.CASES`.
        steps: the step to end at.
        at: the step in whose middle `suicide` kills itself.
        suicide: the rank that does.
    """

    def __init__(self, folder: Path, case: str, steps: int, *, at: int | None = None, suicide: int = 0) -> None:
        self.world = 2 if case in ("ddp", "fsdp") else 1
        self.was_killed = False
        folder.mkdir(parents=True, exist_ok=True)
        self._results = [folder / f"digest-{rank}.txt" for rank in range(self.world)]
        meeting = folder / "meeting"  # a file instead of a port, which another process could take
        for path in [*self._results, meeting]:
            path.unlink(missing_ok=True)
        self._processes: list[BaseProcess] = []
        for rank in range(self.world):
            own_at = at if rank == suicide else None
            arguments = (folder, case, steps, own_at, rank, self.world, meeting, self._results[rank])
            process = multiprocessing.get_context("fork").Process(target=_run, args=arguments)
            process.start()
            self._processes.append(process)

    def wait(self, timeout_s: float = TIMEOUT_S + 15) -> list[int | None]:
        """Wait until all have ended, or until the time is over; their exit statuses."""
        deadline = time.monotonic() + timeout_s
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))
        return [process.exitcode for process in self._processes]

    def kill(self, rank: int) -> bool:
        """Kill one rank and terminate the others; whether that one was alive."""
        process = self._processes[rank]
        if not process.is_alive():
            return False
        self.was_killed = True
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        for other in self._processes:
            if other.is_alive():
                other.terminate()
        return True

    def digests(self) -> list[str]:
        """What each rank ended in."""
        return [path.read_text() for path in self._results]


def _run(
    folder: Path, case: str, steps: int, at: int | None, rank: int, world: int, meeting: Path, result: Path
) -> None:
    log = os.open(folder / f"log-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 2)  # the resume notices of a hundred runs
    if world > 1:
        limit = timedelta(seconds=TIMEOUT_S)
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world, timeout=limit)
    try:
        result.write_text(resumable.run(folder / "snapshots", case, steps, at))
    except Exception:
        traceback.print_exc()
        os._exit(1)  # what waits for a rank that is gone must not be waited for
    if world > 1:
        dist.destroy_process_group()
