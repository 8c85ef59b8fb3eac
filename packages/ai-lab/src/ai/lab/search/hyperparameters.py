"""Hyper-parameters, defined where they are used: `trial.hp.log('lr', 1e-4, 1e-1)` names, bounds and chooses one."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ai.lab.arguments import as_choices, check_switch, check_text, is_whole

if TYPE_CHECKING:
    from optuna import Trial as OptunaTrial

T = TypeVar("T")


class HyperParameters:
    """What a trial of an experiment chooses from. The same name always means the same value within a trial.

    Args:
        trial: Optuna's trial, which chooses.

    Attributes:
        chosen: The values so far, by name.
    """

    def __init__(self, trial: "OptunaTrial") -> None:
        self._trial = trial
        self.chosen: dict[str, object] = {}

    def lin(self, name: str, low: float, high: float, *, step: float | None = None) -> float:
        """Returns a number from `low` to `high`, both included, on a linear scale (or in steps of `step`).

        Raises:
            ValueError: `low` exceeds `high`, or `step` is not positive.
        """
        _check_range(name, low, high, step=1 if step is None else step)
        if step is not None and step <= 0:
            raise ValueError(f"step of {name!r} must be positive, got {step}")
        return self._keep(name, self._trial.suggest_float(name, float(low), float(high), step=step))

    def log(self, name: str, low: float, high: float) -> float:
        """Returns a number from `low` to `high`, both included, on a logarithmic scale.

        Raises:
            ValueError: `low` exceeds `high` or is not positive.
        """
        _check_range(name, low, high)
        if low <= 0:
            raise ValueError(f"low of {name!r} must be positive on a logarithmic scale, got {low}")
        return self._keep(name, self._trial.suggest_float(name, float(low), float(high), log=True))

    def int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """Returns a whole number from `low` to `high`, both included.

        Raises:
            ValueError: `low` exceeds `high`, `step` is below 1, or `log` is asked for with `low` below 1 or a `step`.
        """
        _check_range(name, low, high, whole=True, step=step)
        check_switch(log=log)
        if step < 1:
            raise ValueError(f"step of {name!r} must be at least 1, got {step}")
        if log and (low < 1 or step != 1):
            raise ValueError(f"log of {name!r} needs low >= 1 and step 1, got low {low} and step {step}")
        return self._keep(name, self._trial.suggest_int(name, low, high, step=step, log=log))

    def lst(self, name: str, choices: Sequence[T]) -> T:
        """Returns one of `choices`, which may be anything; other than plain values are told apart by their `repr`.

        Of an array the choice is a plain number. What is no plain value stands in `best_hparams` as its text.

        Raises:
            ValueError: there is no choice, or two have the same `repr`.
        """
        check_text(name=name)
        choices = as_choices(f"choices of {name!r}", choices)
        if not choices:
            raise ValueError(f"choices of {name!r} must not be empty")
        labels = as_labels(choices)
        if len(set(map(repr, labels))) != len(labels):
            raise ValueError(f"choices of {name!r} must differ, got {labels}")
        chosen = self._trial.suggest_categorical(name, cast("Any", labels))
        self._keep(name, chosen)
        return next(choice for choice, label in zip(choices, labels, strict=True) if repr(label) == repr(chosen))

    def _keep(self, name: str, value: T) -> T:
        self.chosen[name] = value
        return value


def as_labels(choices: Sequence[Any]) -> list[Any]:
    """Returns what Optuna chooses from, and a journal can hold: plain values as they are, a text for any other.

    >>> as_labels([8, None, (8, 8), len])
    [8, None, '(8, 8)', 'len']
    """
    return [choice if _is_plain(choice) else _label(choice) for choice in choices]


def _check_range(name: str, low: float, high: float, *, step: Any = 1, whole: bool = False) -> None:
    check_text(name=name)
    for part, value in {"low": low, "high": high, "step": step}.items():
        what = f"{part} of {name!r} must be a {'whole ' * whole}number, got {value!r}"
        if isinstance(value, bool) or not (is_whole(value) if whole else hasattr(value, "__float__")):
            raise TypeError(what)
        try:
            finite = whole or math.isfinite(value)
        except TypeError:  # of an array of several
            raise TypeError(what) from None
        except OverflowError:  # of more digits than a float has
            finite = False
        if not finite:
            raise ValueError(what)
    if not low <= high:
        raise ValueError(f"low of {name!r} must not exceed high, got {low} and {high}")


def _is_plain(value: object) -> bool:
    return value is None or isinstance(value, bool | int | float | str)


def _label(value: object) -> str:
    # A function's or class's repr holds an address, which differs in each process.
    return str(getattr(value, "__name__", None) or repr(value))
