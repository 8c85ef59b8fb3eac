"""One training run as its hooks see it: what is trained, where it stands, and everything that resuming needs."""

import copy
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.optim import Optimizer

from ai.train.ema import Ema
from ai.train.engine.random_state import move_apart, own_randomness, random_state, set_random_state
from ai.train.engine.ranks import Ranks


@runtime_checkable
class Stateful(Protocol):
    """Anything whose state can be taken and put back."""

    def state_dict(self) -> Any:
        """The state, made of tensors, arrays and plain values."""

    def load_state_dict(self, state: Any, /) -> Any:
        """Put a state back."""


class StopTraining(Exception):  # noqa: N818  (it asks for an end; it reports no error)
    """Raise it from anywhere inside a step or a hook to end the run in good order; `train` then returns the step."""


class NonFiniteError(FloatingPointError):
    """The loss, a gradient or a parameter became NaN or infinite."""


class Run:
    """What a trainer hands to `hook.setup`.

    Attributes:
        models: the user's own modules by name; `Trainer` calls its single one `'model'`.
        optimizers: the optimisers under the same names.
        data: the object the trainer was given.
        step: how many updates have been made; also the index of the next batch.
        steplimit: the step at which the run ends, or None.
        ema: moving averages by model name; empty without.
        ranks: what the processes of this run decide together; `ranks.rank` is 0 in a single process.
        outcome: None while running; then `'finished'` (step limit, time limit or end of the data), `'stopped'` (a
            hook or `StopTraining`), `'interrupted'` (a signal) or `'error'`. Set before `hook.done`.
        error: the exception behind the outcome `'error'`.
        saved: where the last snapshot was put, for the message at the end.

    >>> run = Run({'model': nn.Linear(2, 1)}, {}, data=[])
    >>> run.load_state_dict(run.state_dict())
    >>> run.step
    0
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        optimizers: Mapping[str, Optimizer],
        data: Iterable[Any],
        *,
        step: int = 0,
        steplimit: int | None = None,
        validate: Callable[[Iterable[Any]], dict[str, float]] | None = None,
        ema: Mapping[str, Ema] | None = None,
        ranks: Ranks | None = None,
        batches_per_step: int = 1,
        on_nan: str = "raise",
    ) -> None:
        self.models = dict(models)
        self.optimizers = dict(optimizers)
        self.data = data
        self.step = step
        self.steplimit = steplimit
        self.ema = dict(ema or {})
        self.ranks = ranks or Ranks()
        self.time = self.ranks.time
        self.outcome: str | None = None
        self.error: BaseException | None = None
        self.saved: str | None = None
        self.resumed = False
        self.specs: dict[str, Any] = {}
        self.sharded = False
        self.at_end = ExitStack()  # what is undone when the run is over, however it ends
        self.on_nan = on_nan
        self._validate = validate
        self._batches_per_step = batches_per_step
        self._states: dict[str, Stateful] = {}
        self._unclaimed: dict[str, Any] = {}
        self._random: dict[str, Any] | None = None
        self._skip_batches = 0
        self._finite_checks: list[Callable[[], str | None]] = []

    # -- what a hook asks for

    def validate(self, data: Iterable[Any]) -> dict[str, float]:
        """The mean loss over `data` under `'loss'` and whatever else the environment logged.

        The models are in evaluation mode, without gradients, with their moving averages swapped in, on their own
        random seed; training continues as if it had not happened.
        """
        if self._validate is None:
            raise RuntimeError("this run has no validate: it was made without a trainer")
        with self.evaluating():
            return self._validate(data)

    @contextmanager
    def evaluating(self, seed: int = 0) -> Iterator[None]:
        """Evaluation mode, no gradients, moving averages swapped in, own random seed; all undone afterwards."""
        modes = [(module, module.training) for model in self.models.values() for module in model.modules()]
        with ExitStack() as stack:
            for ema in self.ema.values():
                stack.enter_context(ema.swapped_in())
            stack.enter_context(own_randomness(seed))
            stack.enter_context(torch.no_grad())
            for model in self.models.values():
                model.eval()
            try:
                yield
            finally:
                for module, training in modes:
                    module.training = training

    def check_finite(self) -> None:
        """Wait for the device and apply the trainer's `on_nan` if a loss or a parameter is not finite on any rank.

        Call it before anything is saved; under several ranks all of them call it.

        Raises:
            NonFiniteError: under `on_nan='raise'`, and under `'skip'`, where only a parameter can be meant.
            StopTraining: under `on_nan='stop'`.
        """
        problems = [problem for check in self._finite_checks if (problem := check()) is not None]
        if self.ranks.any(bool(problems)):
            self.refuse(problems[0] if problems else "something on another rank")

    def refuse(self, what: str) -> None:
        """Raise what `on_nan` asks for, `what` being not finite."""
        if self.on_nan == "stop":
            raise StopTraining(f"{what} is not finite")
        raise NonFiniteError(
            f"{what} is not finite by step {self.step}; on_nan='skip' passes over such updates, on_nan='stop' ends the "
            "run there"
        )

    def add_finite_check(self, check: Callable[[], str | None]) -> None:
        """Have `check` asked by `check_finite`; it names what is not finite."""
        self._finite_checks.append(check)

    # -- state

    def add_state(self, name: str, stateful: Stateful) -> None:
        """Save and restore `stateful` with the run; a state that was loaded before under this name goes to it at once.

        Raises:
            ValueError: the name is taken by another object.
            TypeError: the object lacks `state_dict` or `load_state_dict`.
        """
        if not isinstance(stateful, Stateful):
            raise TypeError(f"state {name!r} needs state_dict and load_state_dict; {type(stateful).__name__} has not")
        if self._states.get(name, stateful) is not stateful:
            raise ValueError(f"the run already holds another state named {name!r}")
        self._states[name] = stateful
        if name in self._unclaimed:
            state = self._unclaimed.pop(name)
            if id(stateful) != id(self.data):  # the data's own state has been put back already
                stateful.load_state_dict(state)

    def state_of_tensors(self) -> dict[str, Any]:
        """The large parts of `state_dict`: models, optimisers and moving averages."""
        return {
            "models": {key: model.state_dict() for key, model in self.models.items()},
            "optimizers": {key: optimizer.state_dict() for key, optimizer in self.optimizers.items()},
            "ema": {key: ema.state_dict() for key, ema in self.ema.items()},
        }

    def state_of_rank(self) -> dict[str, Any]:
        """The parts of `state_dict` that differ between ranks."""
        return {
            "data": self.data.state_dict() if isinstance(self.data, Stateful) else None,
            # A state that nobody has asked for yet is carried along rather than lost.
            "states": self._unclaimed | {key: stateful.state_dict() for key, stateful in self._states.items()},
            "random": random_state(),
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything that a bit-identical continuation needs; tensors are the live ones, not copies."""
        return {"step": self.step, **self.state_of_tensors(), **self.state_of_rank()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` gave; parts that it lacks (`models`, `optimizers`) are left as they are.

        The random states are put back when the first step begins, after the data's iterator was made.
        """
        _same_keys("models", self.models, state.get("models"))
        _same_keys("optimizers", self.optimizers, state.get("optimizers"))
        for key, model_state in state.get("models", {}).items():
            self.models[key].load_state_dict(model_state)
        for key, optimizer_state in state.get("optimizers", {}).items():
            self.optimizers[key].load_state_dict(optimizer_state)
        for key, ema in self.ema.items():
            if key in state.get("ema", {}):
                ema.load_state_dict(state["ema"][key])
        self.step = int(state["step"])
        self.resumed = True
        if isinstance(self.data, Stateful):
            if state.get("data") is not None:
                self.data.load_state_dict(state["data"])
        elif not isinstance(self.data, Iterator):  # an iterator stands where its owner left it
            self._skip_batches = self.step * self._batches_per_step
        self._random = state.get("random")
        self._unclaimed = dict(state.get("states", {}))
        for name, stateful in self._states.items():
            if name in self._unclaimed:
                stateful.load_state_dict(self._unclaimed.pop(name))

    def batches(self) -> Iterator[Any]:
        """The data's iterator at the run's position; afterwards the random states are as the snapshot had them."""
        iterator = iter(self.data)
        if self._skip_batches:
            print(
                f"the data ({type(self.data).__name__}) has no state_dict: passing over the {self._skip_batches} "
                "batches that were trained on",
                file=sys.stderr,
            )
            for _ in range(self._skip_batches):
                next(iterator, None)
            self._skip_batches = 0
        if self._random is not None:
            set_random_state(self._random)
            self._random = None
        elif self.ranks.rank:
            # Ranks that drew the same noise would train on one batch's noise, as often as there are ranks.
            move_apart(self.ranks.rank)
        return iterator


def _same_keys(what: str, have: Mapping[str, object], given: Mapping[str, object] | None) -> None:
    if given is not None and set(have) != set(given):
        raise ValueError(f"the run has the {what} {sorted(have)}, the state was saved with {sorted(given)}")


# What a restored model's next `train` has to take up: random states, data position, moving average and the like.
_restored: "WeakKeyDictionary[nn.Module, dict[str, Any]]" = WeakKeyDictionary()


def keep_for_training(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Leave the rest of a restored state to the next `train` of this model."""
    _restored[model] = {key: value for key, value in state.items() if key not in ("models", "optimizers")}


def take_restored(model: nn.Module, step: int) -> dict[str, Any] | None:
    """What `keep_for_training` left for this model, once.

    Raises:
        ValueError: training would begin at another step than the one that was restored.
    """
    state = _restored.get(model)
    if state is None:
        return None
    if state["step"] != step:
        raise ValueError(
            f"step ({step}) must be the restored step {state['step']}: pass step={state['step']}; "
            "to start afresh from restored weights, load them with model.load_state_dict"
        )
    del _restored[model]
    return copy.copy(state)
