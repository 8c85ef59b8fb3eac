"""How a trainer trains: the options that all trainers share, documented and checked once."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

from ai.model.arguments import check_real, check_whole
from ai.train.engine.precision import DTYPES


class TrainOptions(TypedDict, total=False):
    """What `Trainer`, `MultiTrainer` and `RLTrainer` take besides their own arguments.

    Attributes:
        accumulate: micro-batches per update. Gradients are those of the one large batch: losses are weighted by their
            rows (or by the environment's own weights) and divided once.
        precision: None for the model's own, `'bf16'`, or `'fp16'` with a gradient scaler.
        compile: compile the models in place (their saved keys do not change); `'graphs'` captures them as CUDA graphs
            too, which pays where launching takes longer than computing; or a dict of options for `torch.compile`.
        parallel: `'ddp'` or `'fsdp'` under `torchrun`; see `ai.train.parallel`.
        ema: decay of a moving average of the parameters, swapped in for validation and saved beside the model;
            `averaged` gives it to others. It begins at the weights with which training begins.
        on_nan: what to do when a loss, gradient, parameter or buffer is not finite: `'raise'`, `'skip'` the update, or
            `'stop'`. It is noticed at the next logged step and before anything is saved; `'skip'` looks at every step,
            and puts back what a bad forward pass has left in buffers.
    """

    accumulate: int
    precision: str | None
    compile: bool | str | dict[str, Any]
    parallel: Any
    ema: float | None
    on_nan: str


@dataclass(frozen=True, kw_only=True)
class Options:
    """`TrainOptions` with their defaults, checked."""

    accumulate: int = 1
    precision: str | None = None
    compile: bool | str | dict[str, Any] = False
    parallel: Any = None
    ema: float | None = None
    on_nan: str = "raise"

    def __post_init__(self) -> None:
        check_whole(accumulate=self.accumulate)
        check_real(or_none=True, ema=self.ema)
        if self.accumulate < 1:
            raise ValueError(f"accumulate must be at least 1, not {self.accumulate}")
        if self.precision not in (None, *DTYPES):
            raise ValueError(f"precision must be None, 'bf16' or 'fp16', not {self.precision!r}")
        if isinstance(self.compile, str) and self.compile != "graphs":
            raise ValueError(f"compile must be True, 'graphs' or a dict of options, not {self.compile!r}")
        if self.on_nan not in ("raise", "skip", "stop"):
            raise ValueError(f"on_nan must be 'raise', 'skip' or 'stop', not {self.on_nan!r}")
        if self.ema is not None and not 0 <= self.ema < 1:
            raise ValueError(f"the decay of ema ({self.ema}) must lie in [0, 1)")
        if self.parallel is not None:
            from ai.train.parallel import as_parallel

            object.__setattr__(self, "parallel", as_parallel(self.parallel))


_ELSEWHERE = {
    "accumulate_grad_batches": "accumulate",
    "callbacks": "a hook, or a list of them, for train(model, opt, hook)",
    "gradient_clip_val": "clip_norm of the optimiser, opt.adam(model, clip_norm=1.0)",
    "logger": "an ai.Trial, whose hook() goes to train(model, opt, hook)",
    "max_epochs": "epochs of train(model, opt, epochs=3)",
    "max_steps": "steplimit of train(model, opt, steplimit=1000)",
    "strategy": "parallel",
}
"""What Lightning calls an option -> ours."""


def options_of(trainer: str, how: Mapping[str, Any]) -> Options:
    """The options that a trainer was given.

    Raises:
        TypeError: one of them is unknown.
        ValueError: one is outside its range.
    """
    known = TrainOptions.__annotations__
    for name in how:
        if name not in known:
            ours = f"what others call so is {_ELSEWHERE[name]}; " if name in _ELSEWHERE else ""
            raise TypeError(f"{trainer} has no option {name!r}; {ours}its options are {', '.join(known)}")
    return Options(**how)
