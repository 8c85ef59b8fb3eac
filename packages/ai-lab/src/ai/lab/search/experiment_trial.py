"""A trial as an experiment's objective sees it: it chooses hyper-parameters and may be given up."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ai.lab.files.metrics_writer import as_row
from ai.lab.files.ownership import Owner
from ai.lab.recording.options import HookOptions, Stopper
from ai.lab.trial import Trial

if TYPE_CHECKING:
    import optuna

    from ai.train import Run


class PruneRule(NamedTuple):
    """What the pruner compares.

    Attributes:
        by: The metric.
        sign: What it is multiplied by before the pruner, which compares in the objective's direction, sees it.
    """

    by: str
    sign: int


class ExperimentTrial(Trial):
    """A trial that chooses its hyper-parameters and may be pruned; made by `Experiment.run`.

    Attributes:
        number: Its place in the experiment, from 0.
        hp: Defines and chooses hyper-parameters.
        pruned: Whether the search has given it up; its training then ends as if it were finished.
        optuna: Optuna's trial underneath, for what is not offered here, such as constraints.
        seed: Which of the runs of its configuration it is, from 0; for `torch.manual_seed`, say.
        device: Which of the `devices` of `Experiment.run` is this process's; None without.
    """

    def __init__(
        self,
        path: Path,
        optuna_trial: "optuna.Trial",
        prune: PruneRule | None,
        options: HookOptions,
        *,
        seed: int = 0,
        device: str | None = None,
        goes_on: bool = False,
        reported: Sequence[int] = (),
        **how: Any,
    ) -> None:
        from ai.lab.search.hyperparameters import HyperParameters

        super().__init__(path, **{**options, **how})
        self.optuna = optuna_trial
        self.number: int = optuna_trial.number
        self.hp: HyperParameters = HyperParameters(optuna_trial)
        self.pruned = False
        self.seed, self.device = seed, device
        self._writer.is_left_over = goes_on
        self._prune = prune
        self._reported: set[int] = set(reported)
        self._evaluated: set[str] = set()

    def begin(self, **fields: object) -> None:
        """Takes the folder."""
        self._writer.open(in_use=True, number=self.number, **fields)

    def report(self, step: int, score: float) -> bool:
        """Tells the search an intermediate score; True when the trial should stop, having no hope.

        `score` is of the metric that the experiment prunes by: large is good where it says so.

        Raises:
            TypeError: the step is no whole number, or the score no number.
            ValueError: the step is negative, or either is too large.
        """
        row = as_row(step, {"score": score})
        step, score = int(row["step"]), row["score"]
        if self.seed > 0:
            return False  # a configuration is given up in its first run, or not
        if step not in self._reported:
            self.optuna.report((self._prune.sign if self._prune else 1) * score, step)
            self._reported.add(step)
        self.pruned = self.pruned or self.optuna.should_prune()
        return self.pruned

    def finish(self, state: str, error: BaseException | None = None, **fields: object) -> Owner | None:
        """Records how it ended; the folder is kept until the owner is released, when the search knows it too."""
        return self._writer.end(state, error, release=False, hparams=self.hp.chosen, **fields)

    def unseen_metric(self) -> str | None:
        """Returns the metric that pruning waits for in vain, though there were evaluations; else None."""
        if self._prune is None or self.seed > 0 or self._reported or not self._evaluated:
            return None
        return self._prune.by

    @property
    def evaluated(self) -> list[str]:
        """What its evaluations have measured."""
        return sorted(self._evaluated)

    def _stopper(self, stopper: Stopper | None) -> Stopper:
        def stop(step: int, metrics: dict[str, float]) -> bool:
            self._evaluated |= metrics.keys()
            seen = self._prune is not None and self._prune.by in metrics
            pruned = seen and self._prune is not None and self.report(step, metrics[self._prune.by])
            return (stopper is not None and stopper(step, metrics)) or pruned

        return stop

    def _begin(self, run: "Run") -> None:
        super()._begin(run)
        self._writer.open().update(hparams=dict(self.hp.chosen))  # also for who looks while it runs

    def _end(self, state: str, error: BaseException | None = None, **fields: Any) -> None:
        pass  # the objective may go on after its training: `finish` gives the folder up when the score is in


Objective = Callable[[ExperimentTrial], float | Sequence[float] | Mapping[str, float]]
