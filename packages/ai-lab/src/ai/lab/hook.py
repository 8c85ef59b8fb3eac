"""The hook of a trial: `ai.train.Hook`, writing to the trial's folder."""

from typing import TYPE_CHECKING, Any

from ai.train import Hook, Run

if TYPE_CHECKING:
    from ai.lab.trial import Trial

_STATES = {"finished": "finished", "stopped": "stopped", "interrupted": "interrupted", "error": "failed"}


class TrialHook(Hook):
    """Records a training run in a trial; made by `Trial.hook`.

    Args:
        trial: The trial.
        how: What `ai.train.Hook` takes.
    """

    def __init__(self, trial: "Trial", **how: Any) -> None:
        super().__init__(**how)
        self._trial = trial

    def setup(self, run: Run) -> None:
        """Takes the trial's folder, and drops the rows that were written after the snapshot resumed from."""
        if run.ranks.rank == 0:
            self._trial._begin(run)
        try:
            super().setup(run)
        except BaseException as error:
            if run.ranks.rank == 0:
                self._trial._end("failed", error)
            raise

    def done(self) -> None:
        """Makes the last evaluations and snapshot, and records how the run ended."""
        run = self._run
        try:
            super().done()
        except BaseException as error:
            if run is not None and run.ranks.rank == 0:
                self._trial._end("failed", error)
            raise
        if run is not None and run.ranks.rank == 0:
            self._trial._end(_STATES[run.outcome or "finished"], run.error)
