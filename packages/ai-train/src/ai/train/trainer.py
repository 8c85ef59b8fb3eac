"""`Trainer`: one model, one optimiser, one visible loop."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

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


class Trainer:
    """Trains a model on a loss: for each batch `env(model, batch, step)`, backward, one step of the optimiser.

    Args:
        env: any callable (model, batch, step) -> loss, or (loss, weight) where batches must not count equally.
        data: any iterable of batches. Training ends when it ends; a loader with `train=True` never does. Whatever has
            `state_dict` and `load_state_dict` is resumed at its position.
        accumulate: micro-batches per update. Gradients are those of the one large batch: losses are weighted by their
            rows (or by the environment's own weights) and divided once.
        precision: None for the model's own, `'bf16'`, or `'fp16'` with a gradient scaler.
        compile: compile the model in place (its saved keys do not change); a dict of options for `torch.compile`.
        parallel: `'ddp'` or `'fsdp'` under `torchrun`; see `ai.train.parallel`.
        ema: decay of a moving average of the parameters, swapped in for validation and saved beside the model;
            `averaged` gives it to others.
        on_nan: what to do when a loss or gradient is not finite: `'raise'`, `'skip'` the update, or `'stop'`. It is
            noticed at the next logged step and before anything is saved; `'skip'` looks at every step.

    Raises:
        ValueError: an option is outside its range.

    >>> import torch
    >>> from ai.train import Classify, opt
    >>> model = torch.nn.Linear(4, 3)
    >>> batches = [{'x': torch.randn(8, 4), 'y': torch.zeros(8, dtype=torch.uint8)}] * 20
    >>> trainer = Trainer(Classify(), batches)
    >>> before = trainer.validate(model, batches)
    >>> trainer.train(model, opt.sgd(model, lr=0.1))
    20
    >>> trainer.validate(model, batches) < before
    True
    """

    def __init__(
        self,
        env: Callable[..., Loss],
        data: Iterable[Any],
        *,
        accumulate: int = 1,
        precision: str | None = None,
        compile: bool | dict[str, Any] = False,
        parallel: Any = None,
        ema: float | None = None,
        on_nan: str = "raise",
    ) -> None:
        if not callable(env):
            raise TypeError(f"env must be callable as env(model, batch, step), not {type(env).__name__}")
        check_loader("data", data)
        self.env = env
        self.data = data
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
        """Train until the step limit, the time limit, the end of the data, the hook or a signal says stop.

        Args:
            model: any module; the environment receives this very object.
            opt: a torch optimiser over its parameters.
            hook: what happens beside training; with one, SIGTERM and Ctrl-C end the run after the step under way, have
                it saved, and exit with status 0. Ctrl-C at a prompt, or with nothing saved, is a KeyboardInterrupt.
                None shows a bar in a terminal or notebook; `Hook()` is silent.
            step: the number of updates made so far, as a restored snapshot says or as `train` returned: beyond 0 the
                moving average and the scale of fp16 go on, too.
            steplimit: the absolute step to end at.
            timelimit: seconds.
            schedule: step -> factor of the optimiser's learning rate; see `ai.train.schedule`.

        Returns:
            The step that was reached.
        """
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

        def start() -> Advance:
            batches, count, common = run.batches(), self.options.accumulate, run.ranks.common

            def advance(step: int, record: Record | None) -> bool:
                """One update from the next micro-batches; False where there are none."""
                micro = list(islice(batches, count))
                n = common(len(micro))
                if not n:
                    return False
                update(micro[:n], step, record)
                return True

            return advance

        return loop(run, hook, start, prepared.updates, timelimit)

    def validate(self, model: nn.Module, data: Iterable[Any]) -> float:
        """The mean loss over `data`, in evaluation mode and without gradients; training state is left as it was.

        It is that of the moving average where there is one: where this trainer has `ema`, has trained the model, and
        nothing else has changed the weights since.
        """
        models = {"model": model}
        with self._kept.own_writing(models):
            emas = self._kept.emas(models)
            run = Run(models, {}, data, ema=emas, validate=lambda d: self._evaluate(None, model, d))
            return run.validate(data)["loss"]

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
        return evaluate({"loss": lambda batch: self.env(model, batch, step)}, data, self.options.precision, model, run)
