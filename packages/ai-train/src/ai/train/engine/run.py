"""One training run as its hooks see it: what is trained, where it stands, and everything that resuming needs."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from itertools import count
from typing import Any

from torch import nn
from torch.optim import Optimizer

from ai.model.state import check_fits
from ai.train.ema import Ema
from ai.train.engine.evaluate import evaluating
from ai.train.engine.ranks import Ranks
from ai.train.state.beside_models import load_beside
from ai.train.state.data_position import DataPosition
from ai.train.state.optimizer_state import check_settings, kind_of, load_optimizer
from ai.train.state.random_state import move_apart, random_state
from ai.train.state.stateful import Stateful as Stateful

Metrics = dict[str, float]


class StopTraining(Exception):  # noqa: N818  (it asks for an end; it reports no error)
    """Raise it from anywhere inside a step or a hook to end the run in good order; `train` then returns the step."""


class Interrupted(Exception):  # noqa: N818  (as StopTraining)
    """A signal asked for an end in the middle of an evaluation."""


class NonFiniteError(FloatingPointError):
    """The loss, a gradient, a parameter or a buffer became NaN or infinite."""


class Run:
    """What a trainer hands to `hook.setup`.

    Attributes:
        models: the user's own modules by name; `Trainer` calls its single one `'model'`.
        optimizers: the optimisers under the same names.
        data: the object the trainer was given.
        step: how many updates have been made.
        steplimit: the step at which the run ends, or None.
        position: where it stands in its data; `epoch` is the number of passes that were completed.
        ema: moving averages by model name; empty without.
        ranks: what the processes of this run decide together; `ranks.rank` is 0 in a single process.
        outcome: None while running; then `'finished'` (step limit, time limit or end of the data), `'stopped'` (a
            hook or `StopTraining`), `'interrupted'` (a signal) or `'error'`. Set before `hook.done`.
        error: the exception behind the outcome `'error'`.
        saved: where the last snapshot was put, for the message at the end.
        restored_from: the snapshot that the user restored before the run; None where none was, or a hook did it.
        line: the name of the run in its snapshots, which a resumed one shares; None where no hook saves it.
        to_go_on: what continues the run from there, for the same message.
        exit_status: of the process, where a signal ended the run and it is saved.

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
        epoch: int = 0,
    ) -> None:
        self.models = dict(models)
        self.optimizers = dict(optimizers)
        self.data = data
        self.step = step
        self.steplimit = steplimit
        self.position = DataPosition(data, epoch)
        self.ema = dict(ema or {})
        self.ranks = ranks or Ranks()
        self.time = self.ranks.time
        self.outcome: str | None = None
        self.error: BaseException | None = None
        self.saved: str | None = None
        self.to_go_on = ""
        self.exit_status = 0
        self.recent_losses: Callable[[], Metrics] = dict  # means since the last logged step, of this rank
        self.keeps_sums = False  # whether the row of this step leaves the mean loss of the next as it would be
        self.resumed = False
        self.restored_from: str | None = None
        self.line: str | None = None
        self.specs: dict[str, Any] = {}
        self.sharded = False
        self.outside: list[nn.Module] = []  # modules besides the models: an environment's
        self.at_end = ExitStack()  # what is undone when the run is over, however it ends
        self.on_nan = on_nan
        self.interrupted: Callable[[], bool] = lambda: False  # whether a signal has asked for an end
        self.gives_up: Callable[[], bool] = lambda: False  # whether a wait for data is to end: no time, or a signal
        self._validate = validate
        self._batches_per_step = batches_per_step
        self._states: dict[str, Stateful] = {}
        self._unclaimed: dict[str, Any] = {}
        self._restored: dict[str, Any] | None = None
        self._begun_averages: set[str] = set()
        self._finite_checks: list[Callable[[], str | None]] = []
        self._observers: list[Callable[[int, Mapping[str, float]], object]] = []
        self._followed: set[str] = set()
        self._measured: set[str] = set()

    # -- what a hook asks for

    @property
    def epoch(self) -> int:
        """How many passes over the data were completed; of data that never ends, by its length where it has one."""
        per_epoch = self.steps_per_epoch
        if getattr(self.data, "train", None) is True and per_epoch:
            return int(self.step // per_epoch)
        # Where the last batch of a pass was taken, only its length tells that the pass is over.
        is_over = per_epoch is not None and 0 < per_epoch * self._batches_per_step <= self.position.batch
        return self.position.epoch + is_over

    @property
    def last_step(self) -> int | None:
        """The index of the last step, where the step limit or the length of the data tells it."""
        limits = [] if self.steplimit is None else [self.steplimit]
        per_epoch, at = self.steps_per_epoch, self.position
        if per_epoch is not None and getattr(self.data, "train", None) is not True and at.is_plain:
            batches = (at.end - at.epoch) * per_epoch * self._batches_per_step - at.batch
            limits.append(self.step + math.ceil(batches / self._batches_per_step))
        return min(limits) - 1 if limits else None

    @property
    def steps_per_epoch(self) -> float | None:
        """How many steps a pass over the data has; None where the data does not tell its length."""
        try:
            return len(self.data) / self._batches_per_step  # type: ignore[arg-type]
        except TypeError:
            return None

    def validate(self, data: Iterable[Any]) -> Metrics:
        """The mean loss over `data` under `'loss'` and whatever else the environment logged.

        The models are in evaluation mode, without gradients, with their moving averages swapped in, on their own
        random seed; training continues as if it had not happened.
        """
        if self._validate is None:
            raise RuntimeError("this run has no validate: it was made without a trainer")
        with self.evaluating():
            if self.ranks.rank:
                move_apart(self.ranks.rank)  # each rank has its own part of the data, and noise of its own
            return self._validate(data)

    def evaluating(self, seed: int = 0) -> AbstractContextManager[None]:
        """Evaluation mode, no gradients, moving averages swapped in, own random seed; all undone afterwards."""
        return evaluating([*self.models.values(), *self.outside], self.ema.values(), seed)

    def report(self, metrics: Mapping[str, float]) -> None:
        """Tell of metrics that were measured at this step, as a schedule that follows one needs; hooks do."""
        self._measured |= metrics.keys()
        for observe in self._observers:
            observe(self.step, metrics)

    def add_observer(self, observe: Callable[[int, Mapping[str, float]], object], keys: Iterable[str] = ()) -> None:
        """Have `observe(step, metrics)` called with what is measured: once, however often it is added.

        Args:
            observe: what is called.
            keys: the metrics that it follows.
        """
        if observe not in self._observers:
            self._observers.append(observe)
        self._followed |= set(keys)

    @property
    def never_measured(self) -> list[str]:
        """The metrics that an observer follows and that were not reported in this run."""
        return sorted(self._followed - self._measured)

    @property
    def measured(self) -> list[str]:
        """The metrics that were reported in this run."""
        return sorted(self._measured)

    def check_finite(self) -> None:
        """Wait for the device and apply `on_nan` if a loss, a parameter or a buffer is not finite on any rank.

        Call it before anything is saved; under several ranks all of them call it.

        Raises:
            NonFiniteError: under `on_nan='raise'`, and under `'skip'`, where a parameter or a buffer is meant.
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

    def free_name(self, name: str) -> str:
        """`name`, or with a number where a state has it already: several hooks of a run keep theirs apart."""
        names = (name if not n else f"{name}.{n}" for n in count())
        return next(one for one in names if one not in self._states)

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
            "optimizer_kinds": self.optimizer_kinds(),
            "data": self.data.state_dict() if isinstance(self.data, Stateful) else None,
            "position": self.position.state_dict(),
            # A state that nobody has asked for yet is carried along rather than lost.
            "states": self._unclaimed | {key: stateful.state_dict() for key, stateful in self._states.items()},
            "random": random_state(),
        }

    def state_dict(self) -> dict[str, Any]:
        """Everything that a bit-identical continuation needs; tensors are the live ones, not copies."""
        return {
            "step": self.step,
            **self.state_of_tensors(),
            **self.state_of_rank(),
        }

    def optimizer_kinds(self) -> dict[str, str]:
        """The class of each optimiser."""
        return {key: kind_of(optimizer) for key, optimizer in self.optimizers.items()}

    def load_state_dict(self, state: Mapping[str, Any], *, settings: str = "snapshot") -> None:
        """Put back what `state_dict` gave; parts that it lacks (`models`, `optimizers`) are left as they are.

        The random states are put back when the first step begins, after the data's iterator was made.

        Args:
            state: what `state_dict` gave.
            settings: whose learning rates and other settings of the optimisers hold from here: `'snapshot'` or
                `'script'`. Where they differ it is said.

        Raises:
            ValueError: the names of models or optimisers differ, or an optimiser is of another class.
        """
        check_settings(settings)
        _same_keys("models", self.models, state.get("models"))
        _same_keys("optimizers", self.optimizers, state.get("optimizers"))
        for key, model_state in state.get("models", {}).items():
            check_fits(self.models[key], model_state, f"the snapshot's {key!r}")
        kinds = state.get("optimizer_kinds", {})
        for key, model_state in state.get("models", {}).items():
            self.models[key].load_state_dict(model_state)
        for key, optimizer_state in state.get("optimizers", {}).items():
            load_optimizer(key, self.optimizers[key], optimizer_state, kinds.get(key), settings)
        for key, average in state.get("ema", {}).items():
            if key in self.ema:
                self.ema[key].load_state_dict(average)
                self._begun_averages.add(key)
        self.step = int(state["step"])
        self.resumed = True
        self.line = state.get("line")
        self.restored_from = state.get("restored_from")
        if isinstance(self.data, Stateful) and state.get("data") is not None:
            load_beside(self.models.values(), self.data, state["data"])
        self.position.go_to(state.get("position"), state.get("random"), self.step * self._batches_per_step)
        self._restored = {key: value for key, value in state.items() if key not in ("models", "optimizers")}
        self._unclaimed = dict(state.get("states", {}))
        for name, stateful in self._states.items():
            if name in self._unclaimed:
                stateful.load_state_dict(self._unclaimed.pop(name))

    def rest_of_untrained(self) -> dict[str, Any] | None:
        """Of a run that was restored and ended without an update, what its model's next run is to put back."""
        return self._restored

    def stand_at_end(self) -> None:
        """Put the random states back of a restored run that has nothing left to train, as its end had left them.

        What its script draws next is then what it would have drawn; `rest_of_untrained` no longer holds them.
        """
        if self._restored is not None:
            self.position.settle(self.ranks.rank)
            self._restored.pop("random", None)

    def begin_averages(self) -> None:
        """Begin the moving averages that were not restored, at the weights as they are when training begins."""
        for key, ema in self.ema.items():
            if key not in self._begun_averages:
                ema.begin()
                self._begun_averages.add(key)

    def keep_average(self, key: str) -> None:
        """Have `begin_averages` leave this one as it is: it goes on."""
        self._begun_averages.add(key)

    def batches(self) -> Iterator[Any]:
        """The data from the run's position on; afterwards the random states are as the snapshot had them."""
        self._restored = None
        return self.position.batches(self.ranks.rank, self.ranks.world)


def _same_keys(what: str, have: Mapping[str, object], given: Mapping[str, object] | None) -> None:
    if given is not None and set(have) != set(given):
        raise ValueError(f"the run has the {what} {sorted(have)}, the state was saved with {sorted(given)}")
