"""Which worker of how many reads here, for a dataset that divides itself; torch need not be loaded for it."""

import sys
from typing import Any

from ai.data.batch.seeds import derive_seed, seed_global_states


class WorkerInfo:
    """What `torch.utils.data.get_worker_info` returns in a worker of ours; `asked` tells whether somebody looked.

    Until then the workers draw alike from the global generators, since each reads all; a dataset that divides itself
    shuffles its files alike before. From then on each worker draws its own, so that no two change their samples alike.
    `early` tells whether `seed` was read before, when nobody knew yet that it must be this worker's own.

    Args:
        worker: number of this worker.
        n_workers: how many there are.
        dataset: this worker's copy.
    """

    current: "WorkerInfo | None" = None  # of this process

    def __init__(self, worker: int, n_workers: int, dataset: Any) -> None:
        self.asked = self.early = False
        self.dataset = dataset
        self._pass_seed = 0
        self._apart = False  # the draws of this pass
        self._worker = worker
        self._n_workers = n_workers

    @property
    def id(self) -> int:
        """Number of this worker."""
        self._look()
        return self._worker

    @property
    def num_workers(self) -> int:
        """How many workers there are."""
        self._look()
        return self._n_workers

    @property
    def seed(self) -> int:
        """What this worker draws from in this pass: of a dataset that divides itself, its own."""
        self.early = self.early or not self.asked
        return self._seed

    def _look(self) -> None:
        self.asked = True
        if not self._apart:
            self._apart = True
            if self._worker:  # the first one's draws are those of a lone reader
                seed_global_states(self._seed)

    @property
    def _seed(self) -> int:
        return derive_seed(self._pass_seed, self._worker) if self.asked and self._worker else self._pass_seed

    def begin(self, seed: int) -> None:
        """Begins a pass: seeds the global generators, and says here who reads.

        Torch is told where it is loaded: a worker without it starts ten times as fast.
        """
        self._pass_seed, self._apart = seed, False
        seed_global_states(seed)
        WorkerInfo.current = self
        if "torch" in sys.modules:
            import torch.utils.data._utils.worker as torch_worker

            torch_worker._worker_info = self  # type: ignore[assignment]


def worker_and_n_workers() -> tuple[int, int]:
    """Returns the number of the worker that reads here and how many there are, of ours or of torch; else 0 of 1."""
    info: Any = WorkerInfo.current
    if info is None and "torch.utils.data" in sys.modules:
        info = sys.modules["torch.utils.data"].get_worker_info()
    return (0, 1) if info is None else (info.id, info.num_workers)
