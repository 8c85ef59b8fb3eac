"""How the ranks of a torch.distributed job decide together, without waiting for one another at every step."""

import atexit
import copy
import os
import socket
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ai.train.engine.ranks import Ranks, Totals

# A wish to stop takes effect at most twice as many steps later, of slow steps sooner: as many as fit into a second.
_POLL_STEPS = 8
_POLL_S = 0.5

_control: Any = None


def start_process_group(timeout_s: float) -> None:
    """Join the job that `torchrun` describes in the environment, if that has not happened yet."""
    if dist.is_initialized() or "RANK" not in os.environ:
        return
    backend = "gloo" if own_device().type == "cpu" else "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, timeout=timedelta(seconds=timeout_s))


def own_device() -> torch.device:
    """The device of this rank: the GPU that `torchrun` numbers it by, from now on what 'cuda' means; else the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cuda", torch.cuda.current_device())


class GroupRanks(Ranks):
    """The ranks of the job's process group.

    Small decisions travel over a gloo group on the CPU, so that no device is waited for. Wishes to stop and the clock
    are reduced in the background: what is launched at one poll is read at the next.

    Args:
        timeout_s: how long a decision may take before the run fails.
        endless: whether the training data never ends, so that nobody needs to ask.
    """

    def __init__(self, timeout_s: float, endless: bool = False) -> None:
        super().__init__()
        global _control
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.endless, self.timeout_s = endless, timeout_s
        if _control is None:
            _control = dist.new_group(backend="gloo", timeout=timedelta(seconds=timeout_s))
            atexit.register(_let_gloo_rest)
        self.group = _control
        self._wish = 0
        self._now = 0.0
        self._work: Any = None
        self._vote = torch.zeros(3, dtype=torch.float64, device="cpu")
        self._stride = self._until_poll = 1
        self._polled = super().time()
        everyone: list[Any] = [None] * self.world
        dist.all_gather_object(everyone, (socket.gethostname(), os.getpid()), group=self.group)
        self._processes: list[tuple[str, int]] = everyone

    def poll(self, step: int, wish: int) -> int:
        """The strongest wish to end, agreed on every few steps, or every step where these are slow."""
        self._wish = max(self._wish, wish)
        self._until_poll -= 1
        if self._until_poll:
            return 0
        agreed, passed = 0, super().time() - self._polled
        self._polled += passed
        stride = min(_POLL_STEPS, max(1, int(_POLL_S * self._stride / max(passed, 1e-9))))
        if self._work is not None:
            self._work.wait()
            agreed = int(self._vote[0])
            self._now = float(self._vote[1])
            self._stride = int(self._vote[2])
        self._until_poll = self._stride
        # Rank 0's clock is everyone's, and so is its stride.
        votes = [self._wish, *((super().time(), stride) if self.rank == 0 else (0.0, 1))]
        self._vote = torch.tensor(votes, dtype=torch.float64, device="cpu")
        self._work = dist.all_reduce(self._vote, dist.ReduceOp.MAX, group=self.group, async_op=True)
        return agreed

    def time(self) -> float:
        """Rank 0's clock at the last poll."""
        return self._now

    def common(self, n_batches: int) -> int:
        """How many batches every rank has at least: forward passes may be collective, so all make the same number."""
        if self.endless:
            return n_batches
        value = torch.tensor(n_batches, device="cpu")
        dist.all_reduce(value, dist.ReduceOp.MIN, group=self.group)
        return int(value)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        value = torch.tensor(int(flag), device="cpu")
        dist.all_reduce(value, dist.ReduceOp.MAX, group=self.group)
        return bool(value)

    def sum_named(self, totals: Mapping[str, tuple[float, float]]) -> Totals:
        """The pairs summed by name."""
        summed: Totals = {}
        for part in self.gather(dict(totals)):
            for name, (total, weight) in part.items():
                before = summed.get(name, (0.0, 0.0))
                summed[name] = (before[0] + total, before[1] + weight)
        return summed

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks."""
        everyone: list[Any] = [None] * self.world
        dist.all_gather_object(everyone, value, group=self.group)
        return everyone

    def barrier(self) -> None:
        """Wait until every rank is here."""
        dist.barrier(group=self.group)

    def apart(self) -> "GroupRanks":
        """The same ranks over a gloo group of their own, for what decides in another thread; every rank calls it."""
        other = copy.copy(self)
        other.group = dist.new_group(backend="gloo", timeout=timedelta(seconds=self.timeout_s))
        return other

    def explain(self, error: BaseException) -> None:
        """Say on this rank's error which rank it is, and which others are gone."""
        gone = self._gone()
        if not gone and _is_of_a_collective(error):
            # A dying process closes its sockets before the system shows it as dead: look again for a moment.
            deadline = time.monotonic() + 2
            while not gone and time.monotonic() < deadline:
                time.sleep(0.02)
                gone = self._gone()
        if gone:
            names = ", ".join(f"rank {rank} (pid {self._processes[rank][1]})" for rank in gone)
            error.add_note(f"on rank {self.rank}: {names} died")
        else:
            error.add_note(f"on rank {self.rank} of {self.world}")

    def _gone(self) -> list[int]:
        return [rank for rank, process in enumerate(self._processes) if _is_gone(process)]


def mean_weight(total: float | Tensor, device: torch.device) -> Tensor:
    """The weights summed over the ranks and divided by their number, since gradients are averaged over ranks."""
    # A number is filled in there: one that is copied to a device waits for all that the device has to do.
    weight = (torch.zeros((), device=device) + total).float()
    dist.all_reduce(weight)
    return weight / dist.get_world_size()


def _is_of_a_collective(error: BaseException) -> bool:
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error).lower())


def _is_gone(process: tuple[str, int]) -> bool:
    host, pid = process
    if host != socket.gethostname():
        return False
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"  # killed, and not yet waited for
    except FileNotFoundError:
        return os.path.isdir("/proc/self")
    except OSError:
        return False


def _let_gloo_rest(timeout_s: float = 10.0) -> None:
    """Wait until gloo's threads have freed the tensors of the last collectives.

    They do so after those who wait for the collective have gone on, and need the interpreter's lock for it. One that
    asks for the lock when the interpreter has gone aborts the process ("terminate called without an active exception").
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        time.sleep(0.002)  # gives the lock to a thread that wants it, which is then seen as running until it is done
        if all(_is_asleep(thread) for thread in Path("/proc/self/task").glob("*/stat")):
            return


def _is_asleep(thread: Path) -> bool:
    try:
        name, _, rest = thread.read_text(encoding="utf-8").partition("(")[2].rpartition(")")
    except OSError:  # it has ended
        return True
    return name != "pt_gloo_runloop" or rest.split()[0] == "S"
