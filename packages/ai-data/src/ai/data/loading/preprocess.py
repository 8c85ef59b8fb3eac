"""What a data worker does with a batch of stored samples; importable without torch."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ai.data.batch.collate import collate
from ai.data.batch.seeds import derive_seeds, seed_global_states
from ai.data.batch.transform import Applied, Transform

if TYPE_CHECKING:
    from torch import Tensor

    from ai.data.storage.columns import Columns
    from ai.data.storage.gathering import Empty
    from ai.data.workers.worker import Link


class PreprocessError(RuntimeError):
    """A preprocess raised; the message names the sample."""


def sample_at(columns: "Columns", index: int) -> Any:
    """Returns one stored sample: an entry, or a dict of entries."""
    if isinstance(columns, dict):
        return {name: column[index] for name, column in columns.items()}
    return columns[index]


@dataclass
class Job:
    """The stored samples of one batch, with the place of each in the dataset and what their seeds follow from."""

    indices: list[int]
    seed: int
    epoch: int
    columns: "Columns"

    @classmethod
    def gather(
        cls, columns: "Columns", seed: int, epoch: int, indices: "Tensor", empty: "Empty | None" = None
    ) -> "Job":
        """Returns the job of the batch at `indices`, its tensors in the memory that `empty` gives."""
        from ai.data.storage.columns import take

        return cls(indices.tolist(), seed, epoch, take(columns, indices, empty))


class Preprocess:
    """Preprocesses the samples of a job and makes one batch of them.

    Args:
        preprocess: the dataset's; None takes the samples as stored.
        collate_with: makes a batch of a list of samples; None stacks.
    """

    def __init__(self, preprocess: Transform | None, collate_with: Callable[[list[Any]], Any] | None) -> None:
        self._transform = None if preprocess is None else Applied(preprocess, "preprocess")
        self._collate = collate_with

    def __call__(
        self,
        job: Job,
        *,
        seed_globals: bool,
        begin: Callable[[int], None] | None = None,
        room: Callable[[int], np.ndarray | None] | None = None,
    ) -> Any:
        """Returns the batch.

        Args:
            job: which samples.
            seed_globals: also seed the process's global generators for each sample.
            begin: called with the index of each sample before its turn.
            room: as of `collate`.

        Raises:
            PreprocessError: preprocess raised, from what it raised.
            ValueError: the preprocessed samples do not fit in one batch.
        """
        samples = []
        seeds = derive_seeds((job.seed, job.epoch), job.indices)
        for place, (index, seed) in enumerate(zip(job.indices, seeds, strict=True)):
            if begin is not None:
                begin(index)
            samples.append(self._sample(index, seed, sample_at(job.columns, place), seed_globals))
        return collate(samples, room=room) if self._collate is None else self._collate(samples)

    def _sample(self, index: int, seed: int, sample: Any, seed_globals: bool) -> Any:
        if self._transform is None:
            return sample

        def generator(name: str) -> Any:
            if name == "rng":
                return np.random.default_rng(seed)
            import torch

            return torch.Generator().manual_seed(seed)

        had_torch = "torch" in sys.modules
        if seed_globals:
            seed_global_states(seed)
        try:
            value = self._transform(sample, generator)
            if seed_globals and not had_torch and "torch" in sys.modules:
                # The call imported torch, so it may have drawn from a generator that was not seeded.
                seed_global_states(seed)
                value = self._transform(sample, generator)
        except Exception as error:
            shown = repr(sample)
            raise PreprocessError(
                f"preprocess failed on sample {index} ({shown if len(shown) < 100 else shown[:97] + '...'}): "
                f"{type(error).__name__}: {error}"
            ) from error
        return value


def serve(run: Preprocess, watched: bool, link: "Link") -> None:
    """Runs in a worker process: a batch for each job, for ever.

    Messages in: `(ticket, job)`. Out: `(ticket, batch, error)`, and where it is watched `("at", index)` before each
    sample.
    """
    from ai.data.workers.worker import portable_error

    begin = (lambda index: link.send(("at", index))) if watched else None

    def answer(ticket: int, job: Job) -> None:  # and keep nothing of it: others use its memory
        parcel = link.parcel()
        try:
            link.send((ticket, run(job, seed_globals=True, begin=begin, room=parcel.room), None), parcel)
        except Exception as error:  # or a batch that cannot be pickled
            link.send((ticket, None, portable_error(error)))

    while True:
        answer(*link.inbox.get())
