"""The stopper of a hook: asked where what it watches was measured, and named where that can never be."""

import copy
import sys
from collections.abc import Callable, Mapping
from typing import Any

from ai.train.hooks.duties import Metrics
from ai.train.state.stateful import Stateful

Stopper = Callable[[int, Metrics], bool]


class Stopping:
    """Whether a run is to stop, by what was measured; of a resumed run, whether what had ended it does so again.

    Args:
        stopper: (step, metrics) -> bool; one with a `key` is asked where that was measured. None: never.

    >>> stopping = Stopping(lambda step, metrics: metrics['val_loss'] < 0.5)
    >>> stopping.wants_end(10, {'val_loss': 0.6}), stopping.wants_end(20, {'val_loss': 0.4}), stopping.wants_end(30, {})
    (False, True, False)
    """

    def __init__(self, stopper: Stopper | None) -> None:
        self._stopper = stopper
        # Where it stood when it was given: each new run begins with it there.
        self._fresh = self._state()
        self.told: Metrics | None = None
        """What it answered with an end; a state of it stands before that answer."""
        self._before: Any = None

    @property
    def key(self) -> str | None:
        """The metric that it watches, where it says so."""
        return getattr(self._stopper, "key", None)

    def begin(self, *, anew: bool) -> None:
        """Begin a run, in which it is asked anew; with `anew` it stands where it stood when it was given."""
        self.told = None
        if anew:
            self._load(copy.deepcopy(self._fresh))

    def wants_end(self, step: int, measured: Metrics) -> bool:
        """What it says to the metrics of a step; it is not asked where there are none of its own."""
        if self._stopper is None or not measured or (self.key is not None and self.key not in measured):
            return False
        before = self._state()
        wants_end = self._stopper(step, measured)
        if wants_end:
            self.told, self._before = dict(measured), before
        return wants_end

    def ends_again(self, step: int) -> bool:
        """Whether it gives the answer again that had ended a run which is resumed: more patient by now it may not."""
        told, self.told = self.told, None
        return told is not None and self.wants_end(step, told)

    def check(self, found: Mapping[str, float]) -> None:
        """Refuse what watches a metric that nobody measures.

        Raises:
            KeyError: it does.
        """
        if self.key is not None and self.key not in found:
            raise KeyError(f"the stopper watches {self.key!r}, and the metrics are {sorted(found)}")

    def say_if_blind(self, metrics: Mapping[str, float]) -> None:
        """At the end of a run: that what it watched was never among the metrics."""
        if self.key is not None and self.key not in metrics:
            print(
                f"the stopper watched {self.key!r}, which was never measured; the metrics were {sorted(metrics)}",
                file=sys.stderr,
            )

    def say_nothing_is_left(self, step: int) -> None:
        """At the first step of a resumed run: that it ends there."""
        name = getattr(self._stopper, "__name__", type(self._stopper).__name__)
        print(
            f"nothing to train: at step {step} the stopper ({name}) ends the run; to go on change it, or give none",
            file=sys.stderr,
        )

    def state_dict(self) -> Any:
        """The stopper's own, where it has one; of one that ended the run, as it was before it was asked."""
        return self._state() if self.told is None else self._before

    def load_state_dict(self, state: Any, told: Metrics | None = None) -> None:
        """Put it back, and what it had answered with an end."""
        self._load(state)
        self.told, self._before = told, state

    def _state(self) -> Any:
        return copy.deepcopy(self._stopper.state_dict()) if isinstance(self._stopper, Stateful) else None

    def _load(self, state: Any) -> None:
        if isinstance(self._stopper, Stateful) and state is not None:
            self._stopper.load_state_dict(state)
