"""Which worker of how many reads here, for a dataset that divides itself; torch need not be loaded for it."""

import sys
from typing import Any


class WorkerInfo:
    """What `torch.utils.data.get_worker_info` returns in a worker of ours; `asked` tells whether somebody looked.

    Args:
        worker: number of this worker.
        n_workers: how many there are.
        dataset: this worker's copy.
    """

    current: "WorkerInfo | None" = None  # of this process

    def __init__(self, worker: int, n_workers: int, dataset: Any) -> None:
        self.asked = False
        self.seed = worker
        self.dataset = dataset
        self._worker = worker
        self._n_workers = n_workers

    @property
    def id(self) -> int:
        """Number of this worker."""
        self.asked = True
        return self._worker

    @property
    def num_workers(self) -> int:
        """How many workers there are."""
        self.asked = True
        return self._n_workers

    def tell(self) -> None:
        """Lets this process know it, and torch where it is loaded: a worker without it starts ten times as fast."""
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
