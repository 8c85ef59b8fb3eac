"""From a trainer's options and the user's objects to a `Run` and its `Update`s."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ai.train.ema import Ema
from ai.train.engine.argument_checks import check_model_and_optimizer, check_owns, check_step
from ai.train.engine.placement import Placement, place
from ai.train.engine.precision import in_precision
from ai.train.engine.run import Run
from ai.train.engine.update import Loss, Update, takes_closure
from ai.train.loop.options import Options
from ai.train.optimizers.factor import check_schedule
from ai.train.saving.specs import SpecNote
from ai.train.state.between_runs import Continuation, fingerprint, leave, take
from ai.train.state.environment import EnvironmentState, outside_parameters
from ai.train.state.random_state import random_state
from ai.train.state.stateful import Stateful

Schedule = Callable[[int], float]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """From where to where a run goes.

    Attributes:
        step: the first step.
        steplimit: the absolute step to end at, or None.
        timelimit: seconds, or None.
        epochs: the number of passes over the data to end at, absolute, too; None: with the pass that is begun.
    """

    step: int = 0
    steplimit: int | None = None
    timelimit: float | None = None
    epochs: int | None = None


def prepare(
    options: Options,
    env: Callable[..., Any],
    call: Callable[[str, Any, int], Loss],
    models: Mapping[str, nn.Module],
    optimizers: Mapping[str, Optimizer],
    data: Iterable[Any],
    limits: Limits,
    *,
    schedules: Mapping[str, Schedule | None],
    batches_per_step: int,
    validate: Callable[[Run, Iterable[Any]], dict[str, float]],
    named: bool,
) -> tuple[Run, dict[str, Update]]:
    """Place, compile and wrap as the options say; bind each model to its optimiser; take up what was left.

    Args:
        options: the trainer's.
        env: the user's environment, part of the run where it has a state.
        call: (model name, batch, step) -> loss, of that environment.
        models: by name.
        optimizers: under the same names.
        data: the trainer's.
        limits: where the run begins and ends.
        schedules: by model name.
        batches_per_step: how many batches one step takes.
        validate: (run, data) -> metrics, called inside `run.evaluating`.
        named: whether logged numbers carry the model's name.
    """
    check_step(limits.step, limits.steplimit, limits.epochs, limits.timelimit)
    for key, optimizer in optimizers.items():
        check_model_and_optimizer(key, models[key], optimizer)
        check_owns(key, models[key], optimizer)
        _check_closure(key, optimizer, options)
        check_schedule(schedule=schedules.get(key))
    continued = {key: take(model, limits.step) for key, model in models.items()}
    placement, ranks = place(options.parallel)
    for key, model in models.items():
        _place(model, optimizers.get(key), placement, options)
    averages = {key: Ema(models[key], options.ema) for key in optimizers} if options.ema is not None else {}
    run = Run(
        models,
        optimizers,
        placement.part_of(data, ranks),
        step=limits.step,
        steplimit=limits.steplimit,
        ema=averages,
        ranks=ranks,
        batches_per_step=batches_per_step,
        on_nan=options.on_nan,
        validate=lambda val_data: validate(run, val_data),
        epoch=max((one.epoch for one in continued.values() if one is not None), default=0),
    )
    run.sharded = placement.shards
    _set_epochs(run, limits.epochs)
    _add_environment(run, env)
    updates = {}
    for key in optimizers:
        updates[key] = _update(run, key, env, call, options, placement, schedules.get(key), named)
        run.add_state(f"update.{key}", updates[key])
        run.add_finite_check(updates[key].find_non_finite)
    _take_up(run, updates, continued)
    run.at_end.callback(_leave, run, updates)
    if not options.compile:  # a hook would be compiled in, and its removal compile everything anew
        for key, model in models.items():
            run.at_end.callback(SpecNote(key, model, run.specs).remove)
    return run, updates


def _place(model: nn.Module, optimizer: Optimizer | None, placement: Placement, options: Options) -> None:
    if optimizer is not None and not model.training:
        model.train()  # of a model that is in training mode, parts in evaluation mode are meant to be
    placement.check_device(model)
    placement.apply(model, optimizer, options)
    if options.compile:
        model.compile(**_compile_options(model, options))


def _compile_options(model: nn.Module, options: Options) -> dict[str, Any]:
    if options.compile != "graphs":
        return options.compile if isinstance(options.compile, dict) else {}
    device = next(model.parameters()).device
    if device.type != "cuda":
        raise ValueError(f"compile='graphs' needs models on CUDA, and {type(model).__name__} is on {device}")
    return {"mode": "reduce-overhead"}


def _update(
    run: Run,
    key: str,
    env: Callable[..., Any],
    call: Callable[[str, Any, int], Loss],
    options: Options,
    placement: Placement,
    schedule: Schedule | None,
    named: bool,
) -> Update:
    model, optimizer = run.models[key], run.optimizers[key]
    device = next(model.parameters()).device
    by_model = placement.owns_precision(options.precision)

    forward = partial(call, key)  # joined with the core's own into one call without a frame of Python
    wrapped, extra = placement.wrap(
        forward if by_model else in_precision(forward, options.precision, device),
        model,
        outside_parameters(env, model, optimizer),
    )
    if schedule is not None and callable(observe := getattr(schedule, "observe", None)):
        run.add_observer(observe, getattr(schedule, "keys", ()))
        if isinstance(schedule, Stateful):
            run.add_state(f"schedule.{key}", schedule)
    return Update(
        key if named else "",
        wrapped,
        model,
        optimizer,
        schedule=schedule,
        scaler=placement.scaler(device) if options.precision == "fp16" and not by_model else None,
        ema=run.ema.get(key),
        on_nan=options.on_nan,
        weighted=options.accumulate > 1 or run.ranks.world > 1,
        environment=env if isinstance(env, nn.Module) else None,
        # What a graph gave at the step before may be written over.
        begin=torch.compiler.cudagraph_mark_step_begin if options.compile == "graphs" else None,
        peers=[other for other in run.models.values() if other is not model],
        **extra,
    )


def _set_epochs(run: Run, epochs: int | None) -> None:
    if epochs is None:
        return
    run.position.end = epochs
    if getattr(run.data, "train", None) is True:  # it never ends: its length says how far the passes go
        per_epoch = run.steps_per_epoch
        if per_epoch is None:
            raise ValueError(f"epochs ({epochs}) needs data that has a length or an end: use steplimit")
        last = math.ceil(epochs * per_epoch)
        run.steplimit = last if run.steplimit is None else min(last, run.steplimit)


def _add_environment(run: Run, env: Any) -> None:
    if isinstance(env, nn.Module):
        run.outside.append(env)
        run.add_state("env", EnvironmentState(env))
    elif isinstance(env, Stateful) and not isinstance(env, type):
        run.add_state("env", env)


def _take_up(run: Run, updates: Mapping[str, Update], continued: Mapping[str, Continuation | None]) -> None:
    for key, found in continued.items():
        if found is None:
            continue
        if found.averages and key in run.ema:
            run.ema[key].load_state_dict(dict(found.averages))
            run.keep_average(key)
        if found.scaler is not None and key in updates:
            updates[key].load_scaler(dict(found.scaler))
        if found.rest is not None:
            # Where a run had ended they were put back then, and may have been drawn from since.
            run.load_state_dict({"random": random_state(), **found.rest})


def _leave(run: Run, updates: Mapping[str, Update]) -> None:
    """At the end of a run, what belongs to its models."""
    rest = run.rest_of_untrained()
    for index, (key, model) in enumerate(run.models.items()):
        averages = {name: value.clone() for name, value in run.ema[key].state_dict().items()} if key in run.ema else {}
        scaler = updates[key].scaler_state() if key in updates else None
        leave(
            model,
            Continuation(
                step=run.step,
                averages=averages,
                scaler=scaler,
                # Where nothing was trained, the next call is the next pass of a loop over them, as without a stop.
                epoch=run.position.epoch if rest is None else int(run.position.end),
                rest=rest if index == 0 else None,
                weights=fingerprint(model) if averages or scaler is not None else None,
                trained=key in run.optimizers,
            ),
        )


def _check_closure(key: str, optimizer: Optimizer, options: Options) -> None:
    if takes_closure(optimizer) and options.precision == "fp16":
        name = type(optimizer).__name__
        raise ValueError(f"precision='fp16' and the optimizer of {key!r} ({name}), which steps by closure, cannot meet")
