"""The hook of a trial: `ai.train.Hook`, which also tells a trial when its run begins and how it ends."""

from collections.abc import Callable
from typing import Any

from ai.train import Hook, Run

_STATES = {"finished": "finished", "stopped": "stopped", "interrupted": "interrupted", "error": "failed"}
_SAME = "run the same command to go on"
_RESUME = "to go on from there resume the trial: trial.resume(model, opt, loader), or --resume where a command has it"


class TrialHook(Hook):
    """Records a training run in a trial; made by `Trial.hook`.

    Args:
        begin: Called on rank 0 with the run, before anything is recorded.
        end: Called on rank 0 with the state in which the run ended, and its error.
        was_resumed: Whether the script asked the trial to resume; asked before `begin`.
        how: What `ai.train.Hook` takes.
    """

    def __init__(
        self,
        begin: Callable[[Run], None],
        end: Callable[[str, BaseException | None], None],
        was_resumed: Callable[[], bool],
        **how: Any,
    ) -> None:
        super().__init__(**how)
        self._begin, self._end, self._was_resumed = begin, end, was_resumed

    def setup(self, run: Run) -> None:
        """Takes the trial's folder, and drops the rows that were written after the snapshot resumed from."""
        run.to_go_on = _SAME if self._was_resumed() else _RESUME
        if run.ranks.rank == 0:
            self._begin(run)
        try:
            super().setup(run)
        except BaseException as error:
            if run.ranks.rank == 0:
                self._end("failed", error)
            raise

    def done(self) -> None:
        """Makes the last evaluations and snapshot, and records how the run ended."""
        run = self._run
        try:
            super().done()
        except BaseException as error:
            if run is not None and run.ranks.rank == 0:
                self._end("failed", error)
            raise
        if run is not None and run.ranks.rank == 0:
            self._end(_STATES[run.outcome or "finished"], run.error)
