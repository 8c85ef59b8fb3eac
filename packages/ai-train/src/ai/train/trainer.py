"""`Trainer`: one model, one optimiser, one visible loop."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any, Unpack

from torch import nn
from torch.optim import Optimizer

from ai.model.arguments import elsewhere
from ai.train.engine.log import Record
from ai.train.engine.run import Run
from ai.train.engine.update import Loss, Update
from ai.train.loop.core import Core, call_with_model, check_data, check_env
from ai.train.loop.loop import Advance, Hooks
from ai.train.loop.options import TrainOptions, options_of
from ai.train.loop.other_names import TRAIN_ARGUMENTS, OtherNames
from ai.train.loop.prepare import Limits, Schedule


class Trainer(OtherNames):
    """Trains a model on a loss: for each batch `env(model, batch, step)`, backward, one step of the optimiser.

    Args:
        env: any callable (model, batch, step) -> loss, or (loss, weight) where batches must not count equally.
            Where it is an `nn.Module`, or has `state_dict` and `load_state_dict`, it is saved and restored with the
            run.
        data: any iterable of batches. Training ends with a pass over it; a loader with `train=True` never ends.
            Whatever has `state_dict` and `load_state_dict` is resumed at its position.
        how: options, by name: `accumulate`, `precision`, `compile`, `parallel`, `ema`, `on_nan`; see
            `ai.train.TrainOptions`.

    Raises:
        ValueError: an option is outside its range.
        TypeError: an option is unknown.

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

    def __init__(self, env: Callable[..., Loss], data: Iterable[Any], **how: Unpack[TrainOptions]) -> None:
        check_env(env, "model, batch, step")
        check_data(data)
        self.env, self.data = env, data
        self.options = options_of(type(self).__name__, how)
        self._core = Core(call_with_model, self.options, named=False)

    @elsewhere(ckpt_path="step, which trial.resume(model, opt, loader) returns", optimizer="opt", **TRAIN_ARGUMENTS)
    def train(
        self,
        model: nn.Module,
        opt: Optimizer,
        hook: Hooks = None,
        *,
        step: int = 0,
        steplimit: int | None = None,
        timelimit: float | None = None,
        epochs: int | None = None,
        schedule: Schedule | None = None,
    ) -> int:
        """Train until the step limit, the time limit, the last epoch, the hook or a signal says stop.

        Args:
            model: any module; the environment receives this very object.
            opt: a torch optimiser over its parameters; several of them go together with `opt.together`.
            hook: what happens beside training, one hook or a list of them; with one, SIGTERM and Ctrl-C end the run
                after the step under way, have it saved, and exit with status 0. Ctrl-C at a prompt, or with nothing
                saved, is a KeyboardInterrupt. None shows a bar in a terminal or notebook; `Hook()` and `[]` are silent.
            step: the number of updates made so far, as a restored snapshot says or as `train` returned: beyond 0 the
                moving average and the scale of fp16 go on, too.
            steplimit: the absolute step to end at.
            timelimit: seconds.
            epochs: the number of passes over the data to end at, absolute, too; None: one pass.
            schedule: step -> factor of the optimiser's learning rate; see `ai.train.schedule`.

        Returns:
            The step that was reached.
        """

        def start(run: Run, updates: Mapping[str, Update]) -> Advance:
            batches, count, common = run.batches(), self.options.accumulate, run.ranks.common
            update = updates["model"]

            def advance(step: int, record: Record | None) -> bool:
                """One update from the next micro-batches; False where there are none."""
                micro = list(islice(batches, count))
                n = common(len(micro))
                if not n:
                    return False
                update(micro[:n], step, record)
                return True

            return advance

        return self._core.train(
            self.env,
            self.data,
            {"model": model},
            {"model": opt},
            hook,
            Limits(step=step, steplimit=steplimit, timelimit=timelimit, epochs=epochs),
            start,
            schedules={"model": schedule},
            batches_per_step=self.options.accumulate,
        )

    def validate(self, model: nn.Module, data: Iterable[Any]) -> float:
        """The mean loss over `data`, in evaluation mode and without gradients; training state is left as it was.

        It is that of the moving average where there is one: where this trainer has `ema`, the model was trained with
        one, and nothing has changed the weights since.
        """
        return self._core.validate(self.env, {"model": model}, ["model"], data)["loss"]

    def averaged(self, model: nn.Module) -> AbstractContextManager[None]:
        """The model carries its moving average inside the block: to measure it, to save it, to hand it on.

        Raises:
            ValueError: there is none: the trainer has no `ema`, the model was not trained with one, or something else
                has changed its weights since.
        """
        return self._core.averaged({"model": model})
