"""A resumable run in forked processes, one for each rank: they need not import torch anew, and can be killed."""

import json
import multiprocessing
import multiprocessing.connection
import os
import time
import traceback
from datetime import timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import resumable
import torch.distributed as dist
import torch.distributed.checkpoint.state_dict  # before the fork, once for all processes
import torch.distributed.fsdp  # noqa: F401

TIMEOUT_S = 180  # of a machine with much else to do
GRACE_S = 60  # between SIGTERM and SIGKILL, where torchrun has 30


class Job:
    """Starts the run of `case` in `folder`: two ranks for ddp and fsdp, else one process.

    Args:
        folder: where the run keeps its snapshots; the same folder continues it.
        case: one of `resumable.CASES`.
        steps: the step to end at.
        limit: a step to stop at in good order.
        rank: the rank that signals itself, with the arguments that follow.
        signalled: `at`, `part` and `number` of `resumable.run`.
    """

    def __init__(
        self, folder: Path, case: str, steps: int, *, limit: int | None = None, rank: int = 0, **signalled: int
    ) -> None:
        self.world = 2 if case in ("ddp", "fsdp") else 1
        folder.mkdir(parents=True, exist_ok=True)
        self._results = [folder / f"digest-{rank}.txt" for rank in range(self.world)]
        meeting = folder / "meeting"  # a file instead of a port, which another process could take
        for path in [*self._results, meeting]:
            path.unlink(missing_ok=True)
        self._processes: list[BaseProcess] = []
        for own in range(self.world):
            how = {"limit": limit, **(signalled if own == rank else {})}
            arguments = (folder, case, steps, how, own, self.world, meeting, self._results[own])
            process = multiprocessing.get_context("fork").Process(target=_run, args=arguments)
            process.start()
            self._processes.append(process)

    def wait(self, timeout_s: float = TIMEOUT_S + 15) -> list[int | None]:
        """Wait until all have ended, or until the time is over; their exit statuses."""
        deadline = time.monotonic() + timeout_s
        for process in self._processes:
            process.join(max(0.0, deadline - time.monotonic()))
        return [process.exitcode for process in self._processes]

    def signal(self, rank: int, number: int) -> bool:
        """Send one rank a signal and see the job to its end; whether that rank was running."""
        process = self._processes[rank]
        if not process.is_alive():
            return False
        os.kill(process.pid or 0, number)
        self.end()
        return True

    def end(self) -> None:
        """Wait for the first rank to end; where it failed, end the others as `torchrun` does: SIGTERM, then SIGKILL.

        A rank that waits in gloo for a group to be made does not hear SIGTERM.
        """
        waiting = {process.sentinel: process for process in self._processes if process.is_alive()}
        patience_s = TIMEOUT_S + 15
        while waiting:
            ended = multiprocessing.connection.wait(list(waiting), patience_s)
            if not ended:
                for process in waiting.values():
                    process.kill()
            for sentinel in ended:
                process = waiting.pop(sentinel)  # type: ignore[call-overload]
                process.join()
                if process.exitcode:
                    patience_s = GRACE_S
                    for other in waiting.values():
                        other.terminate()

    def digests(self) -> list[dict[str, str]] | None:
        """What each rank ended in, by name; None where one has not come to the end."""
        if not all(path.exists() for path in self._results):
            return None
        return [json.loads(path.read_text()) for path in self._results]


def _run(
    folder: Path, case: str, steps: int, how: dict[str, Any], rank: int, world: int, meeting: Path, result: Path
) -> None:
    log = os.open(folder / f"log-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 2)  # the resume notices of a hundred runs
    if world > 1:
        limit = timedelta(seconds=TIMEOUT_S)
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world, timeout=limit)
    try:
        found = resumable.run(folder / "snapshots", case, steps, **how)
    except Exception:
        traceback.print_exc()
        os._exit(1)  # what waits for a rank that is gone must not be waited for
    if found is not None:
        whole = result.with_suffix(".partial")
        whole.write_text(json.dumps(found))
        whole.rename(result)  # killed in between, it must not have ended in no bits
    if world > 1:
        dist.destroy_process_group()
