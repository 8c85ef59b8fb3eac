"""Which sampler chooses: Optuna's own, seeded for each trial so that a resumed search chooses what a whole one does."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, GridSampler, QMCSampler
from optuna.trial import FrozenTrial, TrialState

from ai.lab.search.hyperparameters import as_labels

MakeSampler = Callable[[int], BaseSampler]
WALKS = (GridSampler, QMCSampler)
"""Samplers that walk one sequence, which their seed shuffles: each trial needs the same seed."""


def as_sampler(search: "str | Mapping[str, Sequence[Any]] | BaseSampler | MakeSampler", seed: int) -> BaseSampler:
    """Returns the sampler that `Experiment(search=…)` means."""
    if isinstance(search, BaseSampler):
        return search
    if isinstance(search, Mapping):
        return GridSampler({name: as_labels(choices) for name, choices in search.items()}, seed=seed)
    if search == "tpe":
        return SeededSampler(lambda number: optuna.samplers.TPESampler(seed=number), seed)
    if search == "random":
        return SeededSampler(lambda number: optuna.samplers.RandomSampler(seed=number), seed)
    assert callable(search)
    first = search(seed)
    if not isinstance(first, BaseSampler):
        raise TypeError(f"search must return an Optuna sampler, got {type(first).__name__}")
    return first if isinstance(first, WALKS) else SeededSampler(search, seed)


class SeededSampler(BaseSampler):
    """For each trial a fresh sampler, seeded by the search's seed and the trial's place in it.

    Args:
        make: From a seed to a sampler.
        seed: The search's.

    Attributes:
        place: The place of the next trial: its number, had no trial before it been lost. None where others may begin
            one in the same moment: then the number itself.
    """

    def __init__(self, make: MakeSampler, seed: int) -> None:
        self._make, self._seed = make, seed
        self.place: int | None = 0
        self._inner = make(seed)
        self._drawn_before: dict[str, BaseDistribution] = {}  # by a process that was lost, in its order

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Makes the trial's sampler."""
        place = trial.user_attrs.get("place", trial.number if self.place is None else self.place)
        self._inner = self._make(int(np.random.SeedSequence([self._seed, place]).generate_state(1)[0]))
        self._inner.before_trial(study, trial)
        given = trial.system_attrs.get("fixed_params", {})
        self._drawn_before = {
            name: one for name, one in trial.distributions.items() if name not in given and not one.single()
        }

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """See Optuna."""
        return self._inner.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """See Optuna."""
        chosen = self._inner.sample_relative(study, trial, search_space)
        self._drawn_before = {name: one for name, one in self._drawn_before.items() if name not in chosen}
        return chosen

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """See Optuna; a trial that was lost after some of its choices makes the others as if it had not been."""
        drawn, self._drawn_before = self._drawn_before, {}
        for name, distribution in drawn.items():
            self._inner.sample_independent(study, trial, name, distribution)
        return self._inner.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """See Optuna."""
        self._inner.after_trial(study, trial, state, values)
