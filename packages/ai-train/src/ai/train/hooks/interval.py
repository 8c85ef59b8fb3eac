"""When something is due: every n steps, at growing distances, or every so many seconds."""

import re
from collections.abc import Callable
from math import ceil, floor, inf, isfinite

from ai.model.arguments import check_real, check_whole

_UNITS_S = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


class Interval:
    """A rule that says at which steps, or after how many seconds, something is due.

    Made by `every`, `logarithmic`, `seconds` or `epochs`; wherever a hook takes an interval, an int means `every(n)`, a
    string like `'30s'`, `'5m'` or `'1h'` means `seconds`, one like `'1 epoch'` means `epochs`, and None means never.

    Args:
        next_step: step -> the first due step after it, or None when steps do not decide.
        seconds: time between two turns, or None when time does not decide.
        epochs: passes over the data between two turns, or None when these do not decide.

    >>> every(100).next_step(250), logarithmic(4).next_step(10), as_interval('2m').seconds
    (300, 12, 120.0)
    """

    def __init__(
        self,
        next_step: Callable[[int], int] | None = None,
        seconds: float | None = None,
        epochs: float | None = None,
    ) -> None:
        check_real(or_none=True, seconds=seconds, epochs=epochs)
        self._next_step = next_step
        self.seconds = seconds
        self.epochs = epochs

    def in_steps(self, steps_per_epoch: float | None) -> "Interval":
        """The same rule where epochs are counted in steps.

        Raises:
            ValueError: it is one of epochs, and nobody knows how long these are.
        """
        if self.epochs is None:
            return self
        if steps_per_epoch is None:
            raise ValueError(f"an interval of {self.epochs:g} epochs needs data that has a length: give it in steps")
        length = self.epochs * steps_per_epoch
        return Interval(lambda step: ceil(round((floor(step / length + 1e-9) + 1) * length, 6)))

    def next_step(self, step: int) -> float:
        """The first due step after `step`; infinity where only time decides."""
        return inf if self._next_step is None else self._next_step(step)


def every(n: int) -> Interval:
    """Due at each multiple of `n` steps.

    >>> every(10).next_step(10)
    20
    """
    check_whole(n=n)
    if n < 1:
        raise ValueError(f"an interval must be at least 1 step, not {n}")
    return Interval(lambda step: (step // n + 1) * n)


def logarithmic(per_doubling: int = 8) -> Interval:
    """Due at steps that are denser at the start: at most `per_doubling` of them while the step count doubles.

    >>> rule, due, step = logarithmic(2), [], 0
    >>> while step < 32:
    ...     step = rule.next_step(step)
    ...     due.append(step)
    >>> due
    [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]
    """
    check_whole(per_doubling=per_doubling)
    if per_doubling < 1:
        raise ValueError(f"per_doubling must be at least 1, not {per_doubling}")

    def next_step(step: int) -> int:
        if step < 1:
            return 1
        octave = 1 << (step.bit_length() - 1)
        spacing = max(1, octave // per_doubling)
        return step + spacing - (step - octave) % spacing

    return Interval(next_step)


def seconds(value: float) -> Interval:
    """Due when `value` seconds have passed since the last turn.

    >>> seconds(30).seconds
    30.0
    """
    check_real(value=value)
    if not value > 0:
        raise ValueError(f"an interval in seconds must be positive, not {value}")
    return Interval(seconds=float(value))


def epochs(value: float) -> Interval:
    """Due whenever so many passes over the data are over.

    >>> rule = epochs(1).in_steps(2.5)
    >>> [rule.next_step(step) for step in (0, 3, 5)]
    [3, 5, 8]
    """
    check_real(value=value)
    if not value > 0 or not isfinite(value):
        raise ValueError(f"an interval in epochs must be positive and finite, not {value}")
    return Interval(epochs=float(value))


def as_log_interval(value: "Interval | int | str | None") -> Interval | None:
    """`as_interval`, and of every n >= 100 steps also the 10th, 20th and 50th: a run of 60 steps is to show something.

    >>> rule = as_log_interval(100)
    >>> [rule.next_step(step) for step in (0, 10, 20, 50, 100)]
    [10, 20, 50, 100, 200]
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 100:
        return as_interval(value, "log_interval")
    rule = every(value)
    return Interval(lambda step: next((early for early in (10, 20, 50) if early > step), int(rule.next_step(step))))


def as_interval(value: "Interval | int | str | None", name: str = "an interval") -> Interval | None:
    """The interval that `value` stands for: itself, `every(int)`, `seconds('30s')`, or None for never.

    Raises:
        ValueError: the number is below 1, or the string is not a number followed by s, m, min, h or epochs.
        TypeError: any other type.

    >>> as_interval(50).next_step(0)
    50
    """
    if value is None or isinstance(value, Interval):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 1:
            raise ValueError(f"{name} must be at least 1 step, not {value}")
        return every(value)
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|min|m|h|epochs?)\s*", value)
        if match is None:
            raise ValueError(f"{name} must look like '30s', '5m', '1h' or '1 epoch', not {value!r}")
        if match[2].startswith("epoch"):
            return epochs(float(match[1]))
        return seconds(float(match[1]) * _UNITS_S[match[2]])
    raise TypeError(f"{name} must be an int, a string like '30s' or an Interval, not {type(value).__name__}")


class Due:
    """Follows one interval through a run: `at(step, now)` is True when its turn has come.

    Steps that are jumped over (a resume) do not pile up: each turn schedules the next one from where it is.

    Args:
        interval: the rule; None for never.
        step: where the run stands.
        now: its clock.
        steps_per_epoch: where it is known.
    """

    def __init__(self, interval: Interval | None, step: int, now: float, steps_per_epoch: float | None = None) -> None:
        self._interval = None if interval is None else interval.in_steps(steps_per_epoch)
        self.next_step: float = inf
        self.next_time: float = inf
        self.schedule(step, now)

    def schedule(self, step: int, now: float) -> None:
        """Set the next turn, counted from here."""
        if self._interval is not None:
            self.next_step = self._interval.next_step(step)
            if self._interval.seconds is not None:
                self.next_time = now + self._interval.seconds

    def is_due_at(self, step: int) -> bool:
        """Whether steps alone make it due there."""
        return self._interval is not None and self._interval.next_step(step - 1) == step

    def at(self, step: int, now: float) -> bool:
        """Whether the turn has come; if so the next one is scheduled."""
        if step < self.next_step and now < self.next_time:
            return False
        self.schedule(step, now)
        return True
