"""What a trainer calls of a hook."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ai.train.engine.run import Run


class HookInterface:
    """What a trainer calls. Extend it and override what you need; each method's default does nothing.

    The order of a run: `setup(run)`; for each step k `step(k)` before batch k is fetched, so that at `step(k)` exactly
    k updates were made from k batches; `gradients(k)` between backward and the optimiser's step; `log(key, value)` for
    each number after a logged step; `done()` at the end, also after an error, a signal, or a failed `setup`.

    A trainer takes one hook or a list of them.

    >>> class Print(HookInterface):
    ...     log_interval = 2
    ...     def log(self, key, value):
    ...         print(key, round(value, 3)) if key == 'loss' else None
    >>> import torch
    >>> from ai.train import Trainer, opt
    >>> model = torch.nn.Linear(1, 1)
    >>> Trainer(lambda model, batch, step: model(batch).sum() * 0 + step, [torch.ones(1, 1)] * 4).train(
    ...     model, opt.sgd(model), Print())
    loss 0.0
    loss 1.5
    4
    """

    log_interval: int = 100

    def setup(self, run: "Run") -> None:
        """The run begins; it may be moved to a snapshot here with `run.load_state_dict`."""

    def step(self, step: int) -> bool | None:
        """Step `step` is about to begin; True ends the run. Called by every rank, with the same steps.

        What it gives to `ai.train.log` is logged with the step's other numbers, if the run goes on.
        """

    def gradients(self, step: int) -> None:
        """The gradients of step `step` are there, divided and unscaled; the optimiser has not used them yet.

        What it gives to `ai.train.log` is logged with the step's other numbers.

        Under `MultiTrainer` it is called at each model's update; a hook that does not override it costs nothing.
        """

    def wants_log(self, step: int) -> bool:
        """Whether this step's numbers are wanted: asked after `step`, at every step, so keep it cheap."""
        return step % self.log_interval == 0

    def log(self, key: str, value: float) -> None:
        """A number of the step that was just made, the mean over micro-batches and ranks."""

    def done(self) -> None:
        """The run is over; `run.outcome` says how."""
