"""What the three trainers have in common: options, and how models are trained, validated and averaged."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from inspect import signature
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ai.model import Model
from ai.model.arguments import check_module
from ai.train.ema import Ema
from ai.train.engine.argument_checks import check_hook, check_loader
from ai.train.engine.evaluate import evaluate, evaluating
from ai.train.engine.ranks import Ranks
from ai.train.engine.run import Interrupted, Run
from ai.train.engine.update import Loss, Update
from ai.train.loop.loop import Advance, Hooks, loop
from ai.train.loop.options import Options
from ai.train.loop.prepare import Limits, Schedule, prepare
from ai.train.state.between_runs import peek

Models = Mapping[str, nn.Module]
Start = Callable[[Run, Mapping[str, Update]], Advance]


class Core:
    """The options of a trainer, and how it calls its environment.

    Args:
        call: (env, models, model name, batch, step) -> loss.
        options: how models are trained.
        named: whether numbers carry the models' names.
    """

    def __init__(
        self,
        call: Callable[[Any, Models, str, Any, int], Loss],
        options: Options,
        *,
        named: bool,
    ) -> None:
        self.options = options
        self._call, self._named = call, named

    def train(
        self,
        env: Callable[..., Loss],
        data: Iterable[Any],
        models: Models,
        optimizers: Mapping[str, Optimizer],
        hook: Hooks,
        limits: Limits,
        start: Start,
        *,
        schedules: Mapping[str, Schedule | None],
        batches_per_step: int,
    ) -> int:
        """Run the loop over what `start` makes: (run, updates) -> the trainer's step; the step that was reached."""
        check_hook(hook)
        run, updates = prepare(
            self.options,
            env,
            partial(self._call, env, models),
            models,
            optimizers,
            data,
            limits,
            schedules=schedules,
            batches_per_step=batches_per_step,
            validate=lambda run, val_data: self._evaluate(env, models, run.optimizers, val_data, run),
            named=self._named,
        )
        return loop(run, hook, lambda: start(run, updates), updates, limits.timelimit)

    def validate(
        self, env: Callable[..., Loss], models: Models, trained: Iterable[str], data: Iterable[Any]
    ) -> dict[str, float]:
        """The mean losses of `trained` over `data`, in evaluation mode and with moving averages where there are any."""
        for key, model in models.items():
            check_module(**{f"{key!r}": model})
        outside = [env] if isinstance(env, nn.Module) else []
        with evaluating([*models.values(), *outside], self._averages(models)):
            return self._evaluate(env, models, trained, data, None)

    @contextmanager
    def evaluating(self, models: Models) -> Iterator[None]:
        """Evaluation mode, moving averages swapped in, own random seed; all undone afterwards."""
        with evaluating(models.values(), self._averages(models)):
            yield

    @contextmanager
    def averaged(self, models: Models) -> Iterator[None]:
        """The models carry their moving averages inside the block.

        Raises:
            ValueError: there is no average of any of them.
        """
        for key, model in models.items():
            check_module(**{f"{key!r}": model})
        averages = self._averages(models)
        if not averages:
            raise ValueError(
                "there is no moving average of these weights: give the trainer ema=0.999, say, and train with it; once "
                "something else has changed the weights there is none either"
            )
        with ExitStack() as stack:
            for ema in averages:
                stack.enter_context(ema.swapped_in())
            yield

    def _averages(self, models: Models) -> list[Ema]:
        found = []
        for model in models.values() if self.options.ema is not None else ():
            left = peek(model)
            if left is not None and left.averages:
                ema = Ema(model, self.options.ema or 0.0)
                ema.load_state_dict(dict(left.averages))
                found.append(ema)
        return found

    def _evaluate(
        self,
        env: Callable[..., Loss],
        models: Models,
        trained: Iterable[str],
        data: Iterable[Any],
        run: Run | None,
    ) -> dict[str, float]:
        step = 0 if run is None else run.step
        ranks = Ranks() if run is None else run.ranks

        def loss_of(key: str) -> Callable[[Any], Loss]:
            return lambda batch: self._call(env, models, key, batch, step)

        def look_for_signals() -> None:
            # Of several ranks each has as many batches as it has; there the signal waits.
            if run is not None and ranks.world == 1 and run.interrupted():
                raise Interrupted

        tensor = next((p for model in models.values() for p in model.parameters()), torch.empty(0, device="cpu"))
        return evaluate(
            {f"loss_{key}" if self._named else "loss": loss_of(key) for key in trained},
            data,
            precision=self.options.precision,
            device=tensor.device,
            ranks=ranks,
            sharded=run is not None and run.sharded,
            between=look_for_signals,
        )


def call_with_model(env: Callable[..., Loss], models: Models, key: str, batch: Any, step: int) -> Loss:
    """`env(model, batch, step)`."""
    return env(models[key], batch, step)


def check_env(env: Any, call: str) -> None:
    """Raise if it could not be called as a trainer calls it."""
    if isinstance(env, type):
        raise TypeError(f"env must be an instance: {env.__name__}(), not the class {env.__name__}")
    if not callable(env):
        raise TypeError(f"env must be callable as env({call}), not {type(env).__name__}")
    asked = env
    while isinstance(asked, Model) and type(asked).forward is Model.forward and "net" in asked._modules:
        asked = asked.net  # which is called with whatever the model is
    try:
        takes = signature(asked.forward if isinstance(asked, nn.Module) else asked)
    except (TypeError, ValueError):  # a function of C says nothing
        return
    try:
        takes.bind(*call.split(", "))
    except TypeError:
        name = getattr(env, "__name__", type(env).__name__)
        fix = ": the model goes to train(model, opt)" if isinstance(env, nn.Module) else ""
        raise TypeError(
            f"env must be callable as env({call}), and {name} takes ({', '.join(takes.parameters)}){fix}"
        ) from None


def check_data(data: Any) -> None:
    """Raise if it does not yield batches."""
    check_loader("data", data)
