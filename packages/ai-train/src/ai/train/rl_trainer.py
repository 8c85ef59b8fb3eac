"""`RLTrainer`: for data that the model being trained generates itself."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any, Protocol, Unpack, runtime_checkable

from torch import nn
from torch.optim import Optimizer

from ai.model.arguments import elsewhere
from ai.train.engine.log import TRAINER, Record
from ai.train.engine.run import Run
from ai.train.engine.update import Loss, Update
from ai.train.hooks.interval import Due, Interval, as_interval
from ai.train.loop.core import Core, call_with_model, check_env
from ai.train.loop.loop import Advance, Hooks
from ai.train.loop.options import TrainOptions, options_of
from ai.train.loop.other_names import TRAIN_ARGUMENTS, OtherNames
from ai.train.loop.prepare import Limits, Schedule


@runtime_checkable
class Generator(Protocol):
    """Data that takes parameters, as `ai.data.DatagenLoader` does.

    It may also have `stats() -> dict of numbers`, and `wait(give_up) -> bool`, which waits for the next batch and
    returns False where `give_up()` says so: then a time limit and a signal hold while games are played.
    """

    def __iter__(self) -> Iterator[Any]:
        """Batches."""

    def update_params(self, state_dict: Mapping[str, Any], /) -> Any:
        """Take new parameters."""


class RLTrainer(OtherNames):
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
        how: options, by name, as for `Trainer`; with `parallel` each rank has its own generator.

    On logged steps the generator's `stats()` are logged as `data_*`, beside the hook's `steps_per_s`.

    Raises:
        TypeError: the data takes no parameters, or an option is unknown.
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
        **how: Unpack[TrainOptions],
    ) -> None:
        check_env(env, "model, batch, step")
        if not callable(getattr(data, "update_params", None)):
            raise TypeError(
                f"data must have update_params(state_dict), as Datagen(...).loader(...) has, not {type(data).__name__}"
            )
        interval = as_interval(push_interval, "push_interval")
        if interval is None:
            if not callable(wants := getattr(data, "wants_params", None)):
                raise TypeError(f"push_interval=None needs data with wants_params(batches), not {type(data).__name__}")
            wants(1)  # refused here where workers act
        self.options = options_of(type(self).__name__, how)
        if push_ema and self.options.ema is None:
            raise ValueError("push_ema=True needs ema: the decay of the moving average")
        self.env, self.data, self.task, self.push_ema = env, data, task, push_ema
        self._interval = interval
        self._core = Core(call_with_model, self.options, named=False)

    @elsewhere(
        ckpt_path="step, which trial.resume(model, opt, data) returns",
        optimizer="opt",
        **TRAIN_ARGUMENTS | {"max_epochs": "steplimit, in updates"},
    )
    def train(
        self,
        model: nn.Module,
        opt: Optimizer,
        hook: Hooks = None,
        *,
        step: int = 0,
        steplimit: int | None = None,
        timelimit: float | None = None,
        schedule: Schedule | None = None,
    ) -> int:
        """Train until something says stop; arguments and result as of `Trainer.train`."""

        def start(run: Run, updates: Mapping[str, Update]) -> Advance:
            generator: Any = run.data
            stats = getattr(generator, "stats", None)
            due, interval, any_rank = self._first_push(run), self._interval, run.ranks.any
            batches, count, common = run.batches(), self.options.accumulate, run.ranks.common
            update, wait = updates["model"], getattr(generator, "wait", None)
            # of several ranks all give up where one does; nobody is asked where nobody may
            on_any = any_rank if timelimit is not None else bool

            def advance(step: int, record: Record | None) -> bool:
                """Send the parameters if it is time, and make one update."""
                if any_rank(generator.wants_params(count)) if interval is None else due.at(step, run.time()):
                    with run.ema["model"].swapped_in() if self.push_ema else nullcontext():
                        generator.update_params(_whole(model))
                if wait is not None and on_any(not wait(run.gives_up)):
                    return False
                micro = list(islice(batches, count))
                n = common(len(micro))
                if not n:
                    return False
                update(micro[:n], step, record)
                if record is not None and stats is not None:
                    with record.logged(TRAINER):
                        for name, value in stats().items():
                            record.add(f"data_{name}", value)
                return True

            return advance

        return self._core.train(
            self.env,
            self.data,
            {"model": model},
            {"model": opt},
            hook,
            Limits(step=step, steplimit=steplimit, timelimit=timelimit),
            start,
            schedules={"model": schedule},
            batches_per_step=self.options.accumulate,
        )

    def _first_push(self, run: Run) -> Due:
        interval = self._interval
        due = Due(interval, run.step, run.time())
        # Sent again after a resume where the step itself is due: the snapshot was taken just before.
        if run.step == 0 or (interval is not None and interval.next_step(run.step - 1) == run.step):
            due.next_step = run.step
        elif interval is not None and interval.seconds is not None:
            due.next_time = 0.0
        return due

    def validate(self, model: nn.Module, data: Iterable[Any] | None = None) -> dict[str, float]:
        """What the task finds about the model, in evaluation mode; with data, its mean loss besides.

        With a moving average it is that one which is measured, as by `Trainer.validate`.

        Raises:
            ValueError: there is neither a task nor data.
        """
        if self.task is None and data is None:
            raise ValueError("validate needs data, or a task given to RLTrainer(task=...)")
        models = {"model": model}
        found = self._core.validate(self.env, models, ["model"], data) if data is not None else {}
        if self.task is not None:
            with self._core.evaluating(models):
                found |= {key: float(value) for key, value in self.task(model, 0).items()}
        return found

    def averaged(self, model: nn.Module) -> AbstractContextManager[None]:
        """The model carries its moving average inside the block: to measure it, to save it, to hand it on.

        Raises:
            ValueError: there is none: the trainer has no `ema`, the model was not trained with one, or something else
                has changed its weights since.
        """
        return self._core.averaged({"model": model})


def _whole(model: nn.Module) -> dict[str, Any]:
    """The state dict with every sharded tensor put together; each rank takes part."""
    return {
        name: value.full_tensor() if hasattr(value, "full_tensor") else value
        for name, value in model.state_dict().items()
    }
