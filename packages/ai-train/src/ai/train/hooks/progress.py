"""A progress bar in a terminal or a notebook: rate, time left, loss; silent where neither is there."""

import sys
from math import isfinite
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ai.train.engine.run import Run

_REDRAW_S = 0.1
_READ_S = 1.0  # reading a loss waits for the device


class Progress:
    """A tqdm bar over the run's steps; it is touched only so often that it costs nothing.

    Args:
        run: gives the first step and the step limit.
    """

    def __init__(self, run: "Run") -> None:
        self._bar: Any = _bar_class()(
            initial=run.step,
            total=None if run.last_step is None else run.last_step + 1,
            unit="step",
            dynamic_ncols=True,
            disable=None,  # on where the output is a terminal or a notebook
            file=sys.stderr,
        )
        self._time = run.time
        self._stride = 1
        self._shown = run.step
        self._next = run.step + 1
        self._last_time = self._read_time = run.time()
        self._losses = run.recent_losses

    @property
    def is_shown(self) -> bool:
        """Whether there is a terminal or a notebook to show it."""
        return not self._bar.disable

    def step(self, step: int) -> None:
        """Move the bar if it is time for it."""
        if step < self._next:
            return
        now = self._time()
        passed = now - self._last_time
        if passed < _REDRAW_S / 2:
            self._stride *= 2
        elif passed > _REDRAW_S * 2:
            self._stride = max(1, self._stride // 2)
        self._bar.update(step - self._shown)
        self._shown, self._last_time, self._next = step, now, step + self._stride
        if now - self._read_time >= _READ_S:
            self._read_time = now
            if losses := self._losses():
                self.show(losses)

    def show(self, numbers: dict[str, float]) -> None:
        """Put the losses and accuracy beside the bar."""
        chosen = {k: f"{v:.4g}" for k, v in numbers.items() if k.startswith(("loss", "accuracy")) and isfinite(v)}
        self._bar.set_postfix(chosen, refresh=False)

    def close(self, step: int) -> None:
        """Leave the bar at the step that was reached."""
        self._bar.update(step - self._shown)
        self._bar.close()


def _bar_class() -> Any:
    # tqdm.auto warns when a notebook lacks widgets; ask for what it needs first.
    if "ipykernel" in sys.modules:
        try:
            import ipywidgets  # type: ignore[import-not-found]  # noqa: F401
            from tqdm.notebook import tqdm as notebook_tqdm  # type: ignore[import-untyped]
        except ImportError:
            pass
        else:
            return notebook_tqdm
    from tqdm import tqdm  # type: ignore[import-untyped]

    return tqdm
