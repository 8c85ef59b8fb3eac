"""Learning-rate schedules: pure functions from the step to a factor of the optimiser's learning rate.

Nothing is counted but by `plateau`, so a resumed run, another number of ranks or several optimisers cannot put them
out of step.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ai.model.arguments import check_real, check_whole
from ai.train.early_stopping import EarlyStopping
from ai.train.optimizers.factor import check_schedule

Schedule = Callable[[int], float]


def constant(factor: float = 1.0) -> Schedule:
    """The same factor at every step.

    >>> constant(0.5)(1000)
    0.5
    """
    check_real(factor=factor)
    return lambda step: factor


def linear(steps: float, end: float = 0.0) -> Schedule:
    """From 1 to `end` in a straight line over `steps`, and `end` from then on.

    >>> [linear(4)(step) for step in (0, 1, 4, 9)]
    [1.0, 0.75, 0.0, 0.0]
    """
    _check_steps("steps", steps)
    check_real(end=end)
    return lambda step: 1.0 + (end - 1.0) * min(step / steps, 1.0)


def cosine(steps: float, end: float = 0.0, warmup: float = 0) -> Schedule:
    """Half a cosine from 1 to `end` over `steps`, the first `warmup` of which rise from 0 in a straight line.

    Source: Loshchilov and Hutter 2017, SGDR, equation 5 (one period).

    >>> [round(cosine(10, warmup=2)(step), 3) for step in (0, 1, 6, 10)]
    [0.5, 1.0, 0.5, 0.0]
    """
    _check_steps("steps", steps)
    check_real(end=end, warmup=warmup)
    if not 0 <= warmup < steps:
        raise ValueError(f"warmup ({warmup}) must lie in [0, steps) with steps ({steps})")

    def fall(step: int) -> float:
        progress = min(max(step - warmup, 0) / (steps - warmup), 1.0)
        return end + (1.0 - end) * 0.5 * (1.0 + math.cos(math.pi * progress))

    return warm_up(warmup, fall)


def steps(milestones: Sequence[int], factor: float = 0.1) -> Schedule:
    """Multiplied by `factor` at each milestone.

    >>> [round(steps([10, 20])(step), 3) for step in (9, 10, 25)]
    [1.0, 0.1, 0.01]
    """
    check_whole(**{f"milestones[{index}]": milestone for index, milestone in enumerate(milestones)})
    check_real(factor=factor)
    ordered = sorted(milestones)
    return lambda step: factor ** sum(step >= milestone for milestone in ordered)


def exponential(half_life: float) -> Schedule:
    """Halved every `half_life` steps.

    >>> exponential(10)(20)
    0.25
    """
    check_real(half_life=half_life)
    if not half_life > 0:
        raise ValueError(f"half_life ({half_life}) must be positive")
    return lambda step: 0.5 ** (step / half_life)


def one_cycle(steps: float, rise: float = 0.3, start: float = 0.04, end: float = 1e-5) -> Schedule:
    """Up from `start` to 1 over the share `rise` of the steps, and down to `end`, both half cosines.

    Source: Smith and Topin 2018, Super-convergence; cosine annealing as in fastai.

    >>> [round(one_cycle(100)(step), 2) for step in (0, 30, 100)]
    [0.04, 1.0, 0.0]
    """
    _check_steps("steps", steps)
    check_real(rise=rise, start=start, end=end)
    if not 0 < rise < 1:
        raise ValueError(f"rise ({rise}) must lie in (0, 1)")
    top = steps * rise

    def factor(step: int) -> float:
        if step < top:
            return _half_cosine(start, 1.0, step / top)
        return _half_cosine(1.0, end, min((step - top) / (steps - top), 1.0))

    return factor


def wsd(steps: float, warmup: float, decay: float, end: float = 0.0) -> Schedule:
    """Warm-up, stable, decay: rises over `warmup`, stays at 1, falls to `end` over the last `decay` steps as 1 - sqrt.

    Source: Hägele et al. 2024, Scaling laws and compute-optimal training beyond fixed training durations, section 3.

    >>> [round(wsd(100, 10, 20)(step), 2) for step in (4, 50, 80, 85, 100)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    _check_steps("steps", steps)
    check_real(warmup=warmup, decay=decay, end=end)
    if warmup < 0 or decay < 1 or warmup + decay > steps:
        raise ValueError(f"warmup ({warmup}) and decay ({decay} >= 1) must fit into steps ({steps})")

    def fall(step: int) -> float:
        progress = min(max(step - (steps - decay), 0) / decay, 1.0)
        return end + (1.0 - end) * (1.0 - math.sqrt(progress))

    return warm_up(warmup, fall)


class Plateau:
    """A factor that falls when a metric no longer improves; made by `plateau`."""

    def __init__(self, key: str, factor: float, patience: int, mode: str | None, min_delta: float, end: float) -> None:
        check_real(factor=factor, end=end)
        if not 0 < factor < 1:
            raise ValueError(f"the factor of plateau ({factor}) must lie in (0, 1)")
        self._watch = EarlyStopping(key, patience=patience, mode=mode, min_delta=min_delta)
        self._factor, self._end = factor, end
        self.key, self.value = key, 1.0
        self.keys = (key,)

    def __call__(self, step: int) -> float:
        """The factor as it is now."""
        return self.value

    def observe(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take what a hook has measured."""
        if self._watch(step, metrics):
            self.value, self._watch.waited = max(self.value * self._factor, self._end), 0

    def state_dict(self) -> dict[str, float]:
        """The factor, and what was waited for."""
        return {"value": self.value, **self._watch.state_dict()}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Put a state back."""
        self.value = state["value"]
        self._watch.load_state_dict(state)


def plateau(
    key: str = "val_loss",
    *,
    factor: float = 0.1,
    patience: int = 10,
    mode: str | None = None,
    min_delta: float = 0.0,
    end: float = 0.0,
) -> Plateau:
    """1 until `key` has not improved for `patience` measurements, then times `factor`, and so on down to `end`.

    The one schedule that is no function of the step: a hook of the run measures `key`, and the run saves the factor.
    Make one for each run. `mode` is as `EarlyStopping`'s.

    >>> rate = plateau('val_loss', patience=1)
    >>> for step, loss in enumerate([2.0, 1.0, 1.5, 1.5]):
    ...     rate.observe(step, {'val_loss': loss})
    >>> rate(4)
    0.1
    """
    return Plateau(key, factor, patience, mode, min_delta, end)


class Following:
    """A schedule made of others, of which some follow a metric: what is measured reaches the one that is in use."""

    def __init__(self, factor: Schedule, parts: Sequence[Any], part_at: Callable[[int], Any]) -> None:
        self._factor, self._parts, self._part_at = factor, parts, part_at
        self.keys = tuple(key for part in parts for key in part.keys)

    def __call__(self, step: int) -> float:
        """The factor of the whole."""
        return self._factor(step)

    def observe(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take what a hook has measured."""
        part = self._part_at(step)
        if part in self._parts:
            part.observe(step, metrics)

    def state_dict(self) -> dict[str, Any]:
        """The states of those that follow a metric."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put a state back."""
        for part, its_state in zip(self._parts, state["parts"], strict=True):
            part.load_state_dict(its_state)


def _followed(factor: Schedule, parts: Sequence[Schedule], part_at: Callable[[int], Schedule]) -> Schedule:
    """The schedule that `factor` computes from these parts."""
    following = [part for part in parts if isinstance(part, (Plateau, Following))]
    return Following(factor, following, part_at) if following else factor


def warm_up(steps: float, then: Schedule) -> Schedule:
    """`then`, multiplied by (step + 1) / steps before `steps`: the first update already moves.

    >>> [warm_up(4, constant())(step) for step in (0, 3, 10)]
    [0.25, 1.0, 1.0]
    """
    check_real(steps=steps)
    check_schedule(then=then)
    if steps < 0:
        raise ValueError(f"the steps of warm_up ({steps}) must not be negative")
    return _followed(
        lambda step: then(step) * ((step + 1) / steps if step < steps else 1.0), (then,), lambda step: then
    )


def sequence(*parts: tuple[int, Schedule]) -> Schedule:
    """Schedules one after the other, each for so many steps and counted from its own start; the last one stays.

    >>> [sequence((10, constant(1.0)), (5, linear(5)))(step) for step in (9, 10, 15)]
    [1.0, 1.0, 0.0]
    """
    if not parts:
        raise ValueError("sequence needs at least one (steps, schedule)")
    check_schedule(**{f"schedule {index} of sequence": part for index, (_, part) in enumerate(parts)})

    def at(step: int) -> tuple[int, Schedule]:
        start = 0
        for length, part in parts[:-1]:
            if step < start + length:
                return start, part
            start += length
        return start, parts[-1][1]

    def factor(step: int) -> float:
        start, part = at(step)
        return part(step - start)

    return _followed(factor, [part for _, part in parts], lambda step: at(step)[1])


def _half_cosine(a: float, b: float, progress: float) -> float:
    return b + (a - b) * 0.5 * (1.0 + math.cos(math.pi * progress))


def _check_steps(name: str, value: float) -> None:
    check_real(**{name: value})
    if value < 1:
        raise ValueError(f"{name} must be at least 1, not {value}")
