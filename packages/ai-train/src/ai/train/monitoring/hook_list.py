"""Several hooks as one."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from ai.train.monitoring.hook_interface import HookInterface

if TYPE_CHECKING:
    from ai.train.engine.run import Run


class HookList(HookInterface):
    """Calls each of several hooks; those that resume a run are set up first, so that the others see where it stands.

    Args:
        hooks: in the order in which they are called.

    >>> class Stop(HookInterface):
    ...     def step(self, step):
    ...         return step == 3
    >>> hooks = HookList([HookInterface(), Stop()])
    >>> hooks.step(2), hooks.step(3)
    (False, True)
    """

    def __init__(self, hooks: Sequence[HookInterface]) -> None:
        self.hooks = list(hooks)
        self._set_up: list[HookInterface] = []
        self._logging: list[HookInterface] = []

    def setup(self, run: "Run") -> None:
        """Set each one up; of those after one that fails none."""
        self._set_up = []
        for hook in sorted(self.hooks, key=lambda one: not getattr(one, "resumes", False)):
            self._set_up.append(hook)
            hook.setup(run)

    def step(self, step: int) -> bool:
        """Whether one of them says stop; each is asked."""
        stop = False
        for hook in self.hooks:
            if hook.step(step):
                stop = True
        return stop

    def wants_log(self, step: int) -> bool:
        """Whether one of them does; only to these the numbers go."""
        self._logging = [hook for hook in self.hooks if hook.wants_log(step)]
        return bool(self._logging)

    def log(self, key: str, value: float) -> None:
        """A number, to each that asked for it."""
        for hook in self._logging:
            hook.log(key, value)

    def done(self) -> None:
        """Each one's, in order, also where one before has failed; then the error is raised."""
        with ExitStack() as stack:
            for hook in reversed(self.hooks):
                if hook in self._set_up:
                    stack.callback(hook.done)
