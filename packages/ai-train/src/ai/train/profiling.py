"""`profile`: where a training step's time goes, and a trace to look at."""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from ai.model.arguments import as_path, check_instance, check_whole
from ai.train.engine.argument_checks import check_model_and_optimizer
from ai.train.engine.run import Run
from ai.train.hook import HookInterface
from ai.train.loop.options import TrainOptions
from ai.train.trainer import Trainer

_PARTS = ("data", "forward", "backward", "optimizer", "hook", "rest")


@dataclass
class Profile:
    """Mean time of a step's parts.

    Attributes:
        parts_s: seconds per step by part: data, forward (with the loss), backward, optimizer, hook, rest.
        steps: how many steps were measured.
        trace: a Chrome trace of them (`chrome://tracing`, Perfetto), or None.
    """

    parts_s: dict[str, float]
    steps: int
    trace: Path | None

    def __str__(self) -> str:
        total = sum(self.parts_s.values())
        lines = [f"{'part':<12}{'us/step':>10}{'share':>8}", "-" * 30]
        lines += [f"{name:<12}{s * 1e6:>10.1f}{s / total:>8.1%}" for name, s in self.parts_s.items()]
        lines += ["-" * 30, f"{'step':<12}{total * 1e6:>10.1f}{self.steps:>5} steps"]
        return "\n".join(lines)


def profile(
    trainer: Trainer,
    model: nn.Module,
    opt: Optimizer,
    hook: HookInterface | None = None,
    *,
    steps: int = 50,
    warmup: int = 10,
    trace: str | Path | None = None,
) -> Profile:
    """Train for `warmup + steps` steps and measure each part of the last `steps`.

    The device is waited for between the parts, so that its time falls where it belongs; the sum is therefore above the
    time of an undisturbed step. The model is trained meanwhile.

    Args:
        trainer: a `Trainer`; its data must last.
        model: as for `Trainer.train`.
        opt: as for `Trainer.train`.
        hook: as for `Trainer.train`.
        steps: how many are measured.
        warmup: how many go before.
        trace: where torch's profiler writes its trace; None leaves the profiler out.

    Raises:
        ValueError: the data ended before the last step.

    >>> from ai.train import Classify, opt
    >>> model = nn.Linear(4, 3)
    >>> batch = (torch.randn(8, 4), torch.zeros(8, dtype=torch.long))
    >>> found = profile(Trainer(Classify(), [batch] * 30), model, opt.sgd(model), steps=20)
    >>> sorted(found.parts_s) == sorted(['data', 'forward', 'backward', 'optimizer', 'hook', 'rest'])
    True
    """
    check_whole(steps=steps, warmup=warmup)
    if not isinstance(trainer, Trainer):
        check_instance(trainer=trainer)
        raise TypeError(f"trainer must be a Trainer, not {type(trainer).__name__}")
    check_model_and_optimizer("model", model, opt)
    if steps < 1 or warmup < 0:
        raise ValueError(f"steps ({steps}) must be at least 1 and warmup ({warmup}) not negative")
    clock = _Clock(next(model.parameters()).device)
    options: TrainOptions = {name: getattr(trainer.options, name) for name in TrainOptions.__annotations__}  # type: ignore[assignment]
    timed = Trainer(clock.around("forward", trainer.env, then="backward"), _TimedData(trainer.data, clock), **options)
    watch = _TimedHook(hook, clock, warmup, trace is not None)
    pre = opt.register_step_pre_hook(lambda *_: clock.turn("optimizer"))
    post = opt.register_step_post_hook(lambda *_: clock.turn("rest"))
    try:
        timed.train(model, opt, watch, steplimit=warmup + steps)
    finally:
        pre.remove()
        post.remove()
    if watch.measured < steps:
        raise ValueError(f"the data ended after {watch.measured} of {steps} measured steps")
    path = None
    if trace is not None and watch.profiler is not None:
        path = as_path(trace, "trace")
        watch.profiler.export_chrome_trace(str(path))
    return Profile({part: clock.spent[part] / steps for part in _PARTS}, steps, path)


class _Clock:
    """Adds up the time since the last turn under the part that was on."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._part = "rest"
        self._since = time.perf_counter()
        self.spent = dict.fromkeys(_PARTS, 0.0)

    def turn(self, part: str) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = time.perf_counter()
        self.spent[self._part] += now - self._since
        self._part, self._since = part, now

    def around(self, part: str, function: Callable[..., Any], then: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            self.turn(part)
            try:
                return function(*args)
            finally:
                self.turn(then)

        return call


class _TimedData:
    def __init__(self, data: Iterable[Any], clock: _Clock) -> None:
        self._data, self._clock = data, clock

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self._data)
        while True:
            self._clock.turn("data")
            try:
                batch = next(batches)
            except StopIteration:
                return
            finally:
                self._clock.turn("rest")
            yield batch


class _TimedHook(HookInterface):
    def __init__(self, hook: HookInterface | None, clock: _Clock, warmup: int, trace: bool) -> None:
        self._hook, self._clock, self._warmup = hook, clock, warmup
        self.measured = 0
        self.profiler: torch.profiler.profile | None = None
        self._trace = trace
        self._run: Run | None = None
        self._first = 0

    def setup(self, run: Run) -> None:
        self._run, self._first = run, run.step
        if self._hook is not None:
            self._hook.setup(run)

    def step(self, step: int) -> bool | None:
        self._clock.turn("hook")
        made = step - self._first - self._warmup
        if made == 0:
            self._clock.spent = dict.fromkeys(_PARTS, 0.0)
            if self._trace:
                activities = [torch.profiler.ProfilerActivity.CPU]
                if torch.cuda.is_available():
                    activities.append(torch.profiler.ProfilerActivity.CUDA)
                self.profiler = torch.profiler.profile(activities=activities)
                self.profiler.start()
        stop = self._hook.step(step) if self._hook is not None else None
        self._clock.turn("rest")
        return stop

    def wants_log(self, step: int) -> bool:
        return self._hook is not None and self._hook.wants_log(step)

    def log(self, key: str, value: float) -> None:
        if self._hook is not None:
            self._hook.log(key, value)

    def done(self) -> None:
        self._clock.turn("rest")
        if self._run is not None:
            self.measured = max(0, self._run.step - self._first - self._warmup)
        if self.profiler is not None:
            self.profiler.stop()
        if self._hook is not None:
            self._hook.done()
