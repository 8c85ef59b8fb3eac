"""A trial as an experiment's objective sees it: it chooses hyper-parameters and may be given up."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ai.lab.trial import HookOptions, Stopper, Trial

if TYPE_CHECKING:
    import optuna


class ExperimentTrial(Trial):
    """A trial that chooses its hyper-parameters and may be pruned; made by `Experiment.run`.

    Attributes:
        number: Its place in the experiment, from 0.
        hp: Defines and chooses hyper-parameters.
        pruned: Whether the search has given it up; its training then ends as if it were finished.
    """

    def __init__(
        self, path: Path, optuna_trial: "optuna.Trial", prune_by: str, options: HookOptions, **how: Any
    ) -> None:
        from ai.lab.search.hyperparameters import HyperParameters

        super().__init__(path, **{**options, **how})
        self._optuna = optuna_trial
        self._prune_by = prune_by
        self.number: int = optuna_trial.number
        self.hp: HyperParameters = HyperParameters(optuna_trial)
        self.pruned = False
        self._reported: set[int] = set()

    def report(self, step: int, score: float) -> bool:
        """Tells the search an intermediate score; True when the trial should stop, having no hope."""
        if step not in self._reported:
            self._optuna.report(float(score), step)
            self._reported.add(step)
        self.pruned = self.pruned or self._optuna.should_prune()
        return self.pruned

    def _stopper(self, stopper: Stopper | None) -> Stopper:
        def stop(step: int, metrics: dict[str, float]) -> bool:
            pruned = self._prune_by in metrics and self.report(step, metrics[self._prune_by])
            return (stopper is not None and stopper(step, metrics)) or pruned

        return stop

    def _end(self, state: str, error: BaseException | None = None, **fields: object) -> None:
        pass  # the objective may go on after its training: `_finish` gives the folder up when the score is in

    def _finish(self, state: str, error: BaseException | None = None, **fields: object) -> None:
        super()._end(state, error, hparams=self.hp.chosen, **fields)


Objective = Callable[[ExperimentTrial], float]
