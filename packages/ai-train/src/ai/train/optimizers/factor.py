"""A schedule's factor of the learning rate: looked at where the schedule is given, and whenever it is asked."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ai.model.arguments import check_instance

_FACTORIES = "ai.train.schedule"


def check_schedule(**named: Any) -> None:
    """Raise for what is no function of the step, such as a class or what makes schedules; None passes.

    >>> check_schedule(schedule=lambda step: 0.5)
    """
    check_instance(**named)
    for name, value in named.items():
        if value is not None and not callable(value):
            raise TypeError(
                f"{name} must be a function of the step, such as schedule.cosine(1000), not {type(value).__name__}"
            )
        made_by = getattr(value, "__qualname__", "")
        if getattr(value, "__module__", "") == _FACTORIES and made_by == getattr(value, "__name__", None):
            raise TypeError(f"{name} must be what schedule.{made_by}(...) returns, not schedule.{made_by} itself")


def factor_at(schedule: Callable[[int], Any], step: int) -> Any:
    """What the schedule says.

    Raises:
        TypeError: that is no number.
        ValueError: it is NaN, which would be in every weight.

    >>> factor_at(lambda step: 1 / (step + 1), 3)
    0.25
    """
    factor = schedule(step)
    if type(factor) is not float and not hasattr(factor, "__float__"):
        raise TypeError(f"schedule must give a number, and gave {factor!r} at step {step}")
    if not isinstance(factor, Tensor) and factor != factor:
        raise ValueError(f"schedule must give a number, and gave {factor!r} at step {step}")
    return factor
