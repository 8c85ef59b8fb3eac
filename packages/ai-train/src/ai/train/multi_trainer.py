"""`MultiTrainer`: several models with an optimiser each, stepped in turn."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from itertools import islice
from typing import Any, Unpack

import torch
from torch import nn
from torch.optim import Optimizer

from ai.model.arguments import check_whole, elsewhere
from ai.train.engine.log import Record
from ai.train.engine.run import Run
from ai.train.engine.update import Loss, Update
from ai.train.loop.core import Core, check_data, check_env
from ai.train.loop.loop import Advance, Hooks
from ai.train.loop.options import TrainOptions, options_of
from ai.train.loop.other_names import TRAIN_ARGUMENTS, OtherNames
from ai.train.loop.prepare import Limits, Schedule
from ai.train.state.between_runs import trained_in


class MultiTrainer(OtherNames):
    """Trains models that interact (GANs, distillation, adversarial autoencoders): one step is one round of them all.

    In a round each model that has an optimiser is updated in the order of the optimisers' dict, with
    `env(key, models, batch, step)` as its loss; meanwhile the others' parameters are frozen, so that only the model
    being stepped gets gradients. What you freeze or unfreeze, also between two rounds, stays as you left it. Models
    without an optimiser (a teacher) are never changed, nor is their mode (`teacher.eval()` stays). Models may share
    modules.

    Args:
        env: any callable (key, models, batch, step) -> loss, or (loss, weight); otherwise as for `Trainer`.
        data: as for `Trainer`. The models of one round share its batch; each further repeat takes a fresh one.
        repeats: model name -> updates per round, 1 by default; 0 leaves the model out.
        how: options, by name, as for `Trainer`; every trained model has a moving average.

    Raises:
        ValueError: an option is outside its range.
        TypeError: an option is unknown.

    >>> from ai.train import Gan, opt
    >>> models = {'g': nn.Linear(2, 3), 'd': nn.Linear(3, 1)}
    >>> trainer = MultiTrainer(Gan(2), [torch.randn(8, 3)] * 6, repeats={'d': 2})
    >>> trainer.train(models, {'d': opt.adam(models['d']), 'g': opt.adam(models['g'])})
    3
    >>> sorted(trainer.validate(models, [torch.randn(8, 3)]))
    ['d', 'g']
    """

    def __init__(
        self,
        env: Callable[..., Loss],
        data: Iterable[Any],
        *,
        repeats: Mapping[str, int] | None = None,
        **how: Unpack[TrainOptions],
    ) -> None:
        check_env(env, "key, models, batch, step")
        check_data(data)
        self.env, self.data = env, data
        if not isinstance(repeats, Mapping | None):
            raise TypeError(f"repeats must be a dict by model name, not {type(repeats).__name__}")
        self.repeats = dict(repeats or {})
        for key, count in self.repeats.items():
            check_whole(**{f"repeats[{key!r}]": count})
            if count < 0:
                raise ValueError(f"repeats[{key!r}] ({count}) must not be negative")
        self.options = options_of(type(self).__name__, how)
        self._core = Core(_call, self.options, named=True)

    @elsewhere(ckpt_path="step, which trial.resume(models, opts, loader) returns", optimizers="opts", **TRAIN_ARGUMENTS)
    def train(
        self,
        models: Mapping[str, nn.Module],
        opts: Mapping[str, Optimizer],
        hook: Hooks = None,
        *,
        step: int = 0,
        steplimit: int | None = None,
        timelimit: float | None = None,
        epochs: int | None = None,
        schedule: Schedule | Mapping[str, Schedule] | None = None,
    ) -> int:
        """Train until something says stop, as `Trainer.train`.

        Args:
            models: by name.
            opts: an optimiser for each model to be trained; their order is the order of the updates in a round.
            hook: as for `Trainer.train`.
            step: rounds made so far.
            steplimit: the absolute round to end at.
            timelimit: seconds.
            epochs: as for `Trainer.train`.
            schedule: one for all, or one by model name.

        Raises:
            ValueError: an optimiser's, a repeat's or a schedule's name is not among the models, or `repeats` is 0 for
                all.
        """
        _check_named(models=models, opts=opts)
        for key in [*opts, *self.repeats]:
            if key not in models:
                raise ValueError(f"{key!r} must be among the models {sorted(models)}")
        for key in schedule if isinstance(schedule, Mapping) else ():
            if key not in opts:
                raise ValueError(f"schedule's {key!r} must be among the optimizers {sorted(opts)}")
        if not opts:
            raise ValueError(f"opts must hold an optimizer for at least one of the models {sorted(models)}")
        if not any(self.repeats.get(key, 1) for key in opts):
            raise ValueError(f"repeats ({self.repeats}) must leave something to train among {sorted(opts)}")
        counts = {key: self.repeats.get(key, 1) for key in opts}
        n_rounds = max(counts.values())

        def start(run: Run, updates: Mapping[str, Update]) -> Advance:
            batches, n_micro = run.batches(), self.options.accumulate

            def advance(step: int, record: Record | None) -> bool:
                """One round: update `repeats[key]` times each model, its peers frozen."""
                taken = [list(islice(batches, n_micro)) for _ in range(n_rounds)]
                n = run.ranks.common(len(taken[-1]))
                if not n:
                    return False
                del taken[-1][n:]
                for key, update in updates.items():
                    with _peers_frozen(key, models):
                        for micro in taken[: counts[key]]:
                            update(micro, step, record)
                return True

            return advance

        return self._core.train(
            self.env,
            self.data,
            models,
            opts,
            hook,
            Limits(step=step, steplimit=steplimit, timelimit=timelimit, epochs=epochs),
            start,
            schedules=dict(schedule) if isinstance(schedule, Mapping) else dict.fromkeys(opts, schedule),
            batches_per_step=self.options.accumulate * n_rounds,
        )

    def validate(self, models: Mapping[str, nn.Module], data: Iterable[Any]) -> dict[str, float]:
        """Each trained model's mean loss over `data`, by name; with moving averages, as `Trainer.validate`.

        The environment is asked for the models that a trainer has trained; where none was, for each one.
        """
        _check_named(models=models)
        found = self._core.validate(self.env, models, trained_in(models), data)
        return {key: found[f"loss_{key}"] for key in models if f"loss_{key}" in found}

    def averaged(self, models: Mapping[str, nn.Module]) -> AbstractContextManager[None]:
        """The models carry their moving averages inside the block: to measure them, to save them, to hand them on.

        Raises:
            ValueError: there is none: the trainer has no `ema`, the models were not trained with one, or something else
                has changed their weights since.
        """
        _check_named(models=models)
        return self._core.averaged(models)


def _check_named(**given: Any) -> None:
    for name, value in given.items():
        if not isinstance(value, Mapping):
            kind = value.__name__ if isinstance(value, type) else type(value).__name__
            raise TypeError(f"{name} must be a dict by name, not {kind}")


def _call(env: Callable[..., Loss], models: Mapping[str, nn.Module], key: str, batch: Any, step: int) -> Loss:
    return env(key, models, batch, step)


@contextmanager
def _peers_frozen(key: str, models: Mapping[str, nn.Module]) -> Iterator[None]:
    """Only the parameters of model `key` take gradients inside; afterwards those do that did before."""
    own = set(models[key].parameters())
    frozen: list[torch.nn.Parameter] = []
    for name, model in models.items():
        if name != key:
            frozen += [p for p in model.parameters() if p.requires_grad and p not in own]
    for param in frozen:
        param.requires_grad_(False)
    try:
        yield
    finally:
        for param in frozen:
            param.requires_grad_(True)
