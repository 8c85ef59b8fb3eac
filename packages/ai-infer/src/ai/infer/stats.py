"""What a worker counts."""

from collections.abc import Sequence
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Stats:
    """A worker's counters since it started, or those of several workers added up."""

    requests: int
    """Answered, whatever the answer."""
    rows: int
    """That went through the model."""
    batches: int
    """Calls of the model."""
    errors: int
    """Requests answered with an error."""
    cancelled: int
    """Requests skipped because they were cancelled in time."""
    queued: int
    """Requests that wait now."""
    clients: int
    """Connected now."""
    version: int
    """Of the weights in use; of several workers the oldest."""
    busy_s: float
    """Spent in the model, and in gathering and answering batches."""
    uptime_s: float
    """Since the worker was ready; of several workers the sum."""

    @property
    def rows_per_batch(self) -> float:
        """The mean number of rows in a call of the model."""
        return self.rows / max(self.batches, 1)

    @staticmethod
    def total(workers: Sequence["Stats"]) -> "Stats":
        """Returns the counters of several workers as one."""
        sums = {field.name: sum(getattr(worker, field.name) for worker in workers) for field in fields(Stats)}
        return Stats(**{**sums, "version": min(worker.version for worker in workers)})
