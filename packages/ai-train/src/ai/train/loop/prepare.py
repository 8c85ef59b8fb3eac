"""From a trainer's options and the user's objects to a `Run` and its `Update`s: precision, compile, ranks, averages."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ai.train.ema import Ema
from ai.train.engine.argument_checks import check_model_and_optimizer
from ai.train.engine.carried_over import Kept
from ai.train.engine.ranks import Ranks
from ai.train.engine.run import Run, take_restored
from ai.train.engine.update import Loss, Update

Schedule = Callable[[int], float]
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a trainer trains; the same for every trainer, checked when the trainer is made.

    Attributes:
        accumulate: micro-batches per update; their losses are averaged by weight.
        precision: None for the model's own, `'bf16'` or `'fp16'` for autocast (fp16 with a gradient scaler).
        compile: whether to compile the models in place, or a dict of `torch.compile` options.
        parallel: None, `'ddp'`, `'fsdp'`, or an `ai.train.parallel.Ddp` or `Fsdp` with options.
        ema: None, or the decay of a moving average of the parameters.
        on_nan: `'raise'`, `'skip'` (the update is not made) or `'stop'`.
    """

    accumulate: int = 1
    precision: str | None = None
    compile: bool | dict[str, Any] = False
    parallel: Any = None
    ema: float | None = None
    on_nan: str = "raise"

    def __post_init__(self) -> None:
        if self.accumulate < 1:
            raise ValueError(f"accumulate must be at least 1, not {self.accumulate}")
        if self.precision not in (None, *_DTYPES):
            raise ValueError(f"precision must be None, 'bf16' or 'fp16', not {self.precision!r}")
        if self.on_nan not in ("raise", "skip", "stop"):
            raise ValueError(f"on_nan must be 'raise', 'skip' or 'stop', not {self.on_nan!r}")
        if self.ema is not None and not 0 <= self.ema < 1:
            raise ValueError(f"the decay of ema ({self.ema}) must lie in [0, 1)")
        if self.parallel is not None:
            from ai.train.parallel import as_parallel

            object.__setattr__(self, "parallel", as_parallel(self.parallel))


@dataclass
class Prepared:
    """A run ready to start."""

    run: Run
    updates: dict[str, Update] = field(default_factory=dict)


def prepare(
    options: Options,
    env: Callable[..., Any],
    models: Mapping[str, nn.Module],
    optimizers: Mapping[str, Optimizer],
    data: Iterable[Any],
    *,
    step: int,
    steplimit: int | None,
    schedules: Mapping[str, Schedule | None],
    batches_per_step: int,
    validate: Callable[[Run, Iterable[Any]], dict[str, float]],
    named: bool,
    kept: Kept,
) -> Prepared:
    """Shard, compile and wrap as the options say; take up what was restored; bind each model to its optimiser.

    Args:
        options: the trainer's.
        env: (model, batch, step), or (key, models, batch, step) when `named`.
        models: by name.
        optimizers: under the same names.
        data: the trainer's.
        step: the first step.
        steplimit: the step at which to end.
        schedules: by model name.
        batches_per_step: how many batches one step takes.
        validate: (run, data) -> metrics, called inside `run.evaluating`.
        named: whether `env` takes a key and all models.
        kept: what the trainer's runs before left; a run that begins at a later step goes on with it.
    """
    _check_step(step, steplimit)
    for key, optimizer in optimizers.items():
        check_model_and_optimizer(key, models[key], optimizer)
        _check_owns(key, models[key], optimizer)
    parallel = options.parallel
    ranks = Ranks() if parallel is None else parallel.ranks()
    for key, model in models.items():
        if key in optimizers:
            model.train()
        if parallel is not None and ranks.world > 1:
            parallel.check_device(model)
            parallel.apply(model, optimizers.get(key), options)
        if options.compile:
            model.compile(**(options.compile if isinstance(options.compile, dict) else {}))
    if ranks.world > 1:
        data = parallel.part_of(data, ranks)
    scales = {key: kept.scaler(models[key]) if step > 0 else None for key in optimizers}
    emas = kept.emas({key: models[key] for key in optimizers}) if step > 0 else {}
    if options.ema is not None:
        emas |= {key: Ema(models[key], options.ema) for key in optimizers if key not in emas}
    run = Run(
        models,
        optimizers,
        data,
        step=step,
        steplimit=steplimit,
        ema=emas,
        ranks=ranks,
        batches_per_step=batches_per_step,
        on_nan=options.on_nan,
        validate=lambda val_data: validate(run, val_data),
    )
    prepared = Prepared(run)
    weighted = options.accumulate > 1 or ranks.world > 1
    for key, optimizer in optimizers.items():
        model = models[key]
        call = _caller(env, key, models, named)
        device = next(model.parameters()).device
        scaler = None
        in_model = parallel is not None and ranks.world > 1 and parallel.owns_precision(options.precision)
        if options.precision is not None and not in_model:
            call = torch.autocast(device.type, _DTYPES[options.precision])(call)
            if options.precision == "fp16":
                sharded = parallel is not None and ranks.world > 1 and parallel.shards
                scaler = parallel.scaler(device) if sharded else torch.amp.GradScaler(device.type)
                if (scale := scales[key]) is not None:
                    scaler.load_state_dict(scale)
        extra: dict[str, Any] = {}
        if parallel is not None and ranks.world > 1:
            call, extra = parallel.wrap(call, model)
        update = Update(
            key if named else "",
            call,
            model,
            optimizer,
            schedule=schedules.get(key),
            scaler=scaler,
            ema=emas.get(key),
            on_nan=options.on_nan,
            weighted=weighted,
            **extra,
        )
        prepared.updates[key] = update
        run.add_state(f"update.{key}", update)
    run.sharded = parallel is not None and ranks.world > 1 and parallel.shards
    restored = take_restored(next(iter(models.values())), step)
    if restored is not None:
        run.load_state_dict(restored)
    run.at_end.callback(kept.keep, models, emas, prepared.updates)
    if not options.compile:  # a hook would be compiled in, and its removal compile everything anew
        for key, model in models.items():
            run.at_end.callback(_SpecNote(key, model, run.specs).remove)
    return prepared


def _caller(env: Callable[..., Any], key: str, models: Mapping[str, nn.Module], named: bool) -> Callable[..., Loss]:
    if named:

        def call_named(batch: Any, step: int) -> Any:
            return env(key, models, batch, step)

        return call_named
    model = models[key]

    def call(batch: Any, step: int) -> Any:
        return env(model, batch, step)

    return call


def _check_step(step: int, steplimit: int | None) -> None:
    if step < 0:
        raise ValueError(f"step ({step}) must not be negative")
    if steplimit is not None and steplimit < 0:
        raise ValueError(f"steplimit ({steplimit}) must not be negative; it is absolute, not counted from step")


def _check_owns(key: str, model: nn.Module, optimizer: Optimizer) -> None:
    own = {id(p) for p in model.parameters()}
    if not own:
        raise ValueError(f"model {key!r} ({type(model).__name__}) has no parameters to train")
    if not any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
        raise ValueError(f"the optimizer of {key!r} holds none of the model's parameters: build it from this model")


class _SpecNote:
    """Notes a model's input and output shapes at its first call, for the manifest of its snapshots.

    It holds nothing but the notes, so that a model can be copied and pickled meanwhile.
    """

    def __init__(self, key: str, model: nn.Module, specs: dict[str, Any]) -> None:
        self._key, self._specs = key, specs
        self._handle = model.register_forward_hook(self)

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self._specs[self._key] = {"inputs": [_spec(x) for x in inputs], "outputs": [_spec(output)]}
        self.remove()

    def remove(self) -> None:
        """A model whose `forward` was never called must not carry the note for good."""
        self._handle.remove()


def _spec(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        # The leading axis is the batch, whose size is free.
        return {"shape": [None, *value.shape[1:]] if value.ndim else [], "dtype": str(value.dtype).split(".")[-1]}
    if isinstance(value, (list, tuple)):
        return [_spec(item) for item in value]
    if isinstance(value, dict):
        return {str(name): _spec(item) for name, item in value.items()}
    return type(value).__name__
