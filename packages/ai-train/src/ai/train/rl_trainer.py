"""`RLTrainer`: for data that the model being trained generates itself."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Any, Protocol, runtime_checkable

from torch import nn
from torch.optim import Optimizer

from ai.train.engine.argument_checks import check_hook
from ai.train.engine.carried_over import Kept
from ai.train.engine.evaluate import evaluate
from ai.train.engine.log import Record
from ai.train.engine.run import Run
from ai.train.engine.update import Loss
from ai.train.hook import HookInterface
from ai.train.loop.loop import Advance, loop
from ai.train.loop.prepare import Options, Schedule, prepare
from ai.train.monitoring.interval import Due, Interval, as_interval


@runtime_checkable
class Generator(Protocol):
    """Data that takes parameters, as `ai.data.DatagenLoader` does; it may also have `stats() -> dict of numbers`."""

    def __iter__(self) -> Iterator[Any]:
        """Batches."""

    def update_params(self, state_dict: Mapping[str, Any], /) -> Any:
        """Take new parameters."""


class RLTrainer:
    """Trains as `Trainer` does and sends the parameters to the generator of its data.

    The generator holds the replay ratio (`replay_ratio` of `Datagen.loader`): batches wait for games and games for
    training. With a synchronous generator (`n_workers=0`) and an interval in steps, a run is a function of its seeds.

    Args:
        env: any callable (model, batch, step) -> loss, or (loss, weight); such as `RL` or `MuZero`.
        data: batches from a generator with `update_params`.
        push_interval: when the parameters are sent, an int in steps or a string such as `'10s'`; also before the
            first batch. In steps, step k is sent before batch k where k is a multiple. None follows the data: they are
            sent whenever it is about to act for the next batch (`data.wants_params`), and at no other time.
        push_ema: send the moving average rather than the parameters themselves.
        task: (model, step) -> dict of numbers, what `validate` runs: matches, episodes.
        accumulate: as for `Trainer`.
        precision: as for `Trainer`.
        compile: as for `Trainer`.
        parallel: as for `Trainer`; each rank has its own generator.
        ema: as for `Trainer`.
        on_nan: as for `Trainer`.

    On logged steps the generator's `stats()` are logged as `data_*`, beside the hook's `steps_per_s`.

    Raises:
        TypeError: the data takes no parameters.
        ValueError: an option is outside its range, or `push_interval` is None and workers act at any time.
    """

    def __init__(
        self,
        env: Callable[..., Loss],
        data: Generator,
        *,
        push_interval: Interval | int | str | None = 100,
        push_ema: bool = False,
        task: Callable[[nn.Module, int], Mapping[str, float]] | None = None,
        accumulate: int = 1,
        precision: str | None = None,
        compile: bool | dict[str, Any] = False,
        parallel: Any = None,
        ema: float | None = None,
        on_nan: str = "raise",
    ) -> None:
        if not callable(env):
            raise TypeError(f"env must be callable as env(model, batch, step), not {type(env).__name__}")
        if not callable(getattr(data, "update_params", None)):
            raise TypeError(
                f"data must have update_params(state_dict), as Datagen(...).loader(...) has, not {type(data).__name__}"
            )
        interval = as_interval(push_interval)
        if interval is None:
            if not callable(wants := getattr(data, "wants_params", None)):
                raise TypeError(f"push_interval=None needs data with wants_params(batches), not {type(data).__name__}")
            wants(1)  # refused here where workers act
        if push_ema and ema is None:
            raise ValueError("push_ema=True needs ema: the decay of the moving average")
        self.env, self.data, self.task, self.push_ema = env, data, task, push_ema
        self._interval = interval
        self.options = Options(
            accumulate=accumulate, precision=precision, compile=compile, parallel=parallel, ema=ema, on_nan=on_nan
        )
        self._kept = Kept(ema)

    def train(
        self,
        model: nn.Module,
        opt: Optimizer,
        hook: HookInterface | None = None,
        *,
        step: int = 0,
        steplimit: int | None = None,
        timelimit: float | None = None,
        schedule: Schedule | None = None,
    ) -> int:
        """Train until something says stop; arguments and result as of `Trainer.train`."""
        check_hook(hook)
        prepared = prepare(
            self.options,
            self.env,
            {"model": model},
            {"model": opt},
            self.data,
            step=step,
            steplimit=steplimit,
            schedules={"model": schedule},
            batches_per_step=self.options.accumulate,
            validate=lambda run, data: self._evaluate(run, model, data),
            kept=self._kept,
            named=False,
        )
        run, update = prepared.run, prepared.updates["model"]
        generator: Any = run.data
        stats = getattr(generator, "stats", None)

        def push() -> None:
            if self.push_ema:
                with run.ema["model"].swapped_in():
                    generator.update_params(_whole(model))
            else:
                generator.update_params(_whole(model))

        def start() -> Advance:
            interval, count, common, any_rank = self._interval, self.options.accumulate, run.ranks.common, run.ranks.any
            due = Due(interval, run.step, run.time())
            # Sent again after a resume where the step itself is due: the snapshot was taken just before.
            if run.step == 0 or (interval is not None and interval.next_step(run.step - 1) == run.step):
                due.next_step = run.step
            elif interval is not None and interval.seconds is not None:
                due.next_time = 0.0
            batches = run.batches()

            def advance(step: int, record: Record | None) -> bool:
                """Send the parameters if it is time, and make one update."""
                if any_rank(generator.wants_params(count)) if interval is None else due.at(step, run.time()):
                    push()
                micro = list(islice(batches, count))
                n = common(len(micro))
                if not n:
                    return False
                update(micro[:n], step, record)
                if record is not None and stats is not None:
                    for name, value in stats().items():
                        record.add(f"data_{name}", value)
                return True

            return advance

        return loop(run, hook, start, prepared.updates, timelimit)

    def validate(self, model: nn.Module, data: Iterable[Any] | None = None) -> dict[str, float]:
        """What the task finds about the model, in evaluation mode; with data, its mean loss besides.

        With a moving average it is that one which is measured, as by `Trainer.validate`.

        Raises:
            ValueError: there is neither a task nor data.
        """
        if self.task is None and data is None:
            raise ValueError("validate needs data, or a task given to RLTrainer(task=...)")
        models = {"model": model}
        with self._kept.own_writing(models):
            emas = self._kept.emas(models)
            run = Run(models, {}, (), ema=emas, validate=lambda d: self._evaluate(None, model, d))
            found = run.validate(data) if data is not None else {}
            if self.task is not None:
                with run.evaluating():
                    found |= {key: float(value) for key, value in self.task(model, 0).items()}
            return found

    @contextmanager
    def averaged(self, model: nn.Module) -> Iterator[None]:
        """The model carries its moving average inside the block: to measure it, to save it, to hand it on.

        Raises:
            ValueError: there is none: the trainer has no `ema` or did not train this model, or something else
                has changed its weights since.
        """
        with self._kept.averaged({"model": model}):
            yield

    def _evaluate(self, run: Run | None, model: nn.Module, data: Iterable[Any]) -> dict[str, float]:
        step = 0 if run is None else run.step
        losses = {"loss": lambda batch: self.env(model, batch, step)}
        return evaluate(losses, data, self.options.precision, model, run)


def _whole(model: nn.Module) -> dict[str, Any]:
    """The state dict with every sharded tensor put together; each rank takes part."""
    return {
        name: value.full_tensor() if hasattr(value, "full_tensor") else value
        for name, value in model.state_dict().items()
    }
