"""The stopper of a hook: asked where what it watches was measured, and named where that can never be."""

import copy
import sys
from collections.abc import Callable, Mapping
from typing import Any

from ai.train.hooks.duties import Metrics
from ai.train.state.stateful import Stateful

Stopper = Callable[[int, Metrics], bool]


class Stopping:
    """Whether a run is to stop, by what was measured.

    Args:
        stopper: (step, metrics) -> bool; one with a `key` is asked where that was measured. None: never.

    >>> stopping = Stopping(lambda step, metrics: metrics['val_loss'] < 0.5)
    >>> stopping.wants_end(10, {'val_loss': 0.6}), stopping.wants_end(20, {'val_loss': 0.4}), stopping.wants_end(30, {})
    (False, True, False)
    """

    def __init__(self, stopper: Stopper | None) -> None:
        self._stopper = stopper
        # Where it stood when it was given: each new run begins with it there.
        self._fresh = copy.deepcopy(stopper.state_dict()) if isinstance(stopper, Stateful) else None

    @property
    def key(self) -> str | None:
        """The metric that it watches, where it says so."""
        return getattr(self._stopper, "key", None)

    def begin_anew(self) -> None:
        """Stand where it stood when it was given."""
        self.load_state_dict(copy.deepcopy(self._fresh))

    def wants_end(self, step: int, measured: Metrics) -> bool:
        """What it says to the metrics of a step; it is not asked where there are none of its own."""
        if self._stopper is None or not measured or (self.key is not None and self.key not in measured):
            return False
        return self._stopper(step, measured)

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

    def state_dict(self) -> Any:
        """The stopper's own, where it has one."""
        return self._stopper.state_dict() if isinstance(self._stopper, Stateful) else None

    def load_state_dict(self, state: Any) -> None:
        """Put it back."""
        if isinstance(self._stopper, Stateful) and state is not None:
            self._stopper.load_state_dict(state)
