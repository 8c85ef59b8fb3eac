"""Several hooks as one."""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from ai.train.hooks.hook_interface import HookInterface

if TYPE_CHECKING:
    from ai.train.engine.run import Run


class HookList(HookInterface):
    """Calls each of several hooks, in order; what stands in a list inside is one of them, too.

    Of those that resume a run the one whose snapshot is furthest does so, before any of them is set up: all see where
    the run stands.

    Args:
        hooks: in the order in which they are called.

    >>> class Stop(HookInterface):
    ...     def step(self, step):
    ...         return step == 3
    >>> hooks = HookList([HookInterface(), [Stop()]])
    >>> hooks.step(2), hooks.step(3)
    (False, True)
    """

    def __init__(self, hooks: Sequence[Any]) -> None:
        self.hooks = list(_flat(hooks))
        self._set_up: list[HookInterface] = []
        self._run: Run | None = None
        self._logging: list[int] = []
        self._keeping: list[int] = []  # whose row, of the last step, leaves the mean of the next as it would be
        # Of each hook, the losses since its last row that rows of others have taken from the run's own sums.
        self._since: list[dict[str, tuple[float, float]]] = [{} for _ in self.hooks]

    def setup(self, run: "Run") -> None:
        """Resume; then set each one up, of those after one that fails none."""
        self._run, self._set_up, self._keeping = run, [], []
        self._since = [{} for _ in self.hooks]
        resuming: list[Any] = [hook for hook in self.hooks if getattr(hook, "resumes", False)]
        if len(resuming) > 1:
            max(resuming, key=lambda hook: int(hook.resume_step)).resume(run)
        elif resuming:
            resuming[0].resume(run)
        run.add_state("hooks", self)
        for hook in self.hooks:
            self._set_up.append(hook)
            hook.setup(run)

    def step(self, step: int) -> bool:
        """Whether one of them says stop; each is asked."""
        stop, run = False, self._run
        for index, hook in enumerate(self.hooks):
            if hook.step(step):
                stop = True
            if run is not None and run.keeps_sums:
                run.keeps_sums = False  # it is kept here, for this one alone
                self._keeping.append(index)
        return stop

    def wants_log(self, step: int) -> bool:
        """Whether one of them does; only to these the numbers go."""
        self._logging = [index for index, hook in enumerate(self.hooks) if hook.wants_log(step)]
        return bool(self._logging)

    def log(self, key: str, value: float) -> None:
        """A number, to each that asked for it."""
        for index in self._logging:
            self.hooks[index].log(key, value)

    def log_loss(self, key: str, total: float, weight: float) -> None:
        """A loss, summed over the `weight` steps since the last row of any: to each the mean since its own last row."""
        for index, since in enumerate(self._since):
            before = since.get(key, (0.0, 0.0))
            sums = (before[0] + total, before[1] + weight)
            if index in self._logging:
                self.hooks[index].log(key, sums[0] / sums[1] if sums[1] else math.nan)
            ends = index in self._logging and index not in self._keeping
            since[key] = (0.0, 0.0) if ends else sums

    def done(self) -> None:
        """Each one's, in order, also where one before has failed; then the error is raised."""
        self._run = None
        with ExitStack() as stack:
            for hook in reversed(self.hooks):
                if hook in self._set_up:
                    stack.callback(hook.done)

    def state_dict(self) -> dict[str, Any]:
        """The losses that are still to go into a row of one of them."""
        return {"since": [dict(since) for since in self._since]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put a state back, unless it is of another number of hooks."""
        if len(state["since"]) == len(self.hooks):
            self._since = [{key: tuple(sums) for key, sums in since.items()} for since in state["since"]]


def _flat(hooks: Sequence[Any]) -> Iterator[HookInterface]:
    for hook in hooks:
        if isinstance(hook, HookList):
            yield from hook.hooks
        elif isinstance(hook, Sequence):
            yield from _flat(hook)
        else:
            yield hook
