"""`MultiTrainer`: several models with an optimiser each, stepped in turn."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ai.train.engine.argument_checks import check_hook, check_loader
from ai.train.engine.carried_over import Kept
from ai.train.engine.evaluate import evaluate
from ai.train.engine.log import Record
from ai.train.engine.run import Run
from ai.train.engine.update import Loss
from ai.train.hook import HookInterface
from ai.train.loop.loop import Advance, loop
from ai.train.loop.prepare import Options, Schedule, prepare


class MultiTrainer:
    """Trains models that interact (GANs, distillation, adversarial autoencoders): one step is one round of them all.

    In a round each model that has an optimiser is updated in the order of the optimisers' dict, with
    `env(key, models, batch, step)` as its loss; meanwhile the others' parameters are frozen, so that only the model
    being stepped gets gradients. Models without an optimiser (a teacher) are never changed, nor is their mode
    (`teacher.eval()` stays). Models may share modules.

    Args:
        env: any callable (key, models, batch, step) -> loss, or (loss, weight).
        data: as for `Trainer`. The models of one round share its batch; each further repeat takes a fresh one.
        repeats: model name -> updates per round, 1 by default; 0 leaves the model out.
        accumulate: as for `Trainer`.
        precision: as for `Trainer`.
        compile: as for `Trainer`.
        parallel: as for `Trainer`.
        ema: as for `Trainer`; every trained model has one.
        on_nan: as for `Trainer`.

    Raises:
        ValueError: an option is outside its range.

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
        accumulate: int = 1,
        precision: str | None = None,
        compile: bool | dict[str, Any] = False,
        parallel: Any = None,
        ema: float | None = None,
        on_nan: str = "raise",
    ) -> None:
        if not callable(env):
            raise TypeError(f"env must be callable as env(key, models, batch, step), not {type(env).__name__}")
        check_loader("data", data)
        self.env = env
        self.data = data
        self.repeats = dict(repeats or {})
        for key, count in self.repeats.items():
            if count < 0:
                raise ValueError(f"repeats[{key!r}] ({count}) must not be negative")
        self.options = Options(
            accumulate=accumulate, precision=precision, compile=compile, parallel=parallel, ema=ema, on_nan=on_nan
        )
        self._kept = Kept(ema)

    def train(
        self,
        models: Mapping[str, nn.Module],
        opts: Mapping[str, Optimizer],
        hook: HookInterface | None = None,
        *,
        step: int = 0,
        steplimit: int | None = None,
        timelimit: float | None = None,
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
            schedule: one for all, or one by model name.

        Raises:
            ValueError: an optimiser's or a repeat's name is not among the models, or `repeats` is 0 for all.
        """
        check_hook(hook)
        for key in [*opts, *self.repeats]:
            if key not in models:
                raise ValueError(f"{key!r} must be among the models {sorted(models)}")
        if opts and not any(self.repeats.get(key, 1) for key in opts):
            raise ValueError(f"repeats ({self.repeats}) must leave something to train among {sorted(opts)}")
        schedules = dict(schedule) if isinstance(schedule, Mapping) else dict.fromkeys(opts, schedule)
        counts = {key: self.repeats.get(key, 1) for key in opts}
        prepared = prepare(
            self.options,
            self.env,
            models,
            opts,
            self.data,
            step=step,
            steplimit=steplimit,
            schedules=schedules,
            batches_per_step=self.options.accumulate * max(counts.values(), default=1),
            validate=lambda run, data: self._evaluate(run, models, data),
            kept=self._kept,
            named=True,
        )
        run, updates = prepared.run, prepared.updates
        trainable = {key: [p for p in model.parameters() if p.requires_grad] for key, model in models.items()}

        def start() -> Advance:
            batches, n_micro = run.batches(), self.options.accumulate
            n_rounds = max(counts.values(), default=1)

            def advance(step: int, record: Record | None) -> bool:
                """One round: update `repeats[key]` times each model, its peers frozen."""
                taken = [list(islice(batches, n_micro)) for _ in range(n_rounds)]
                n = run.ranks.common(len(taken[-1]))
                if not n:
                    return False
                del taken[-1][n:]
                for key, update in updates.items():
                    _train_only(key, trainable)
                    for micro in taken[: counts[key]]:
                        update(micro, step, record)
                return True

            return advance

        try:
            return loop(run, hook, start, updates, timelimit)
        finally:
            for params in trainable.values():
                _require_grad(params, True)

    def validate(self, models: Mapping[str, nn.Module], data: Iterable[Any]) -> dict[str, float]:
        """Each model's mean loss over `data`, by name; with moving averages, as `Trainer.validate`."""
        with self._kept.own_writing(models):
            emas = self._kept.emas(models)
            run = Run(models, {}, data, ema=emas, validate=lambda d: self._evaluate(None, models, d))
            found = run.validate(data)
        return {key: found[f"loss_{key}"] for key in models if f"loss_{key}" in found}

    @contextmanager
    def averaged(self, models: Mapping[str, nn.Module]) -> Iterator[None]:
        """The models carry their moving averages inside the block: to measure them, to save them, to hand them on.

        Raises:
            ValueError: there is none: the trainer has no `ema` or did not train these models, or something else
                has changed their weights since.
        """
        with self._kept.averaged(models):
            yield

    def _evaluate(self, run: Run | None, models: Mapping[str, nn.Module], data: Iterable[Any]) -> dict[str, float]:
        step = 0 if run is None else run.step
        trained = models if run is None else run.optimizers

        def loss_of(key: str) -> Callable[[Any], Loss]:
            return lambda batch: self.env(key, models, batch, step)

        losses = {f"loss_{key}": loss_of(key) for key in trained}
        return evaluate(losses, data, self.options.precision, next(iter(models.values())), run)


def _train_only(key: str, trainable: Mapping[str, list[torch.nn.Parameter]]) -> None:
    for params in trainable.values():
        _require_grad(params, False)
    _require_grad(trainable[key], True)  # last: models may share modules


def _require_grad(params: list[torch.nn.Parameter], value: bool) -> None:
    for param in params:
        param.requires_grad_(value)
