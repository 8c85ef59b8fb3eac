"""The loop that all trainers share: hook, stop, update, log."""

import math
import signal
import sys
from collections.abc import Callable

from ai.train.engine import log as record_module
from ai.train.engine.log import Record
from ai.train.engine.ranks import INTERRUPT, STOP
from ai.train.engine.run import Run, StopTraining
from ai.train.engine.update import Update
from ai.train.hook import Hook, HookInterface
from ai.train.loop.signals import StopSignals

Advance = Callable[[int, Record | None], bool]


def loop(
    run: Run,
    hook: HookInterface | None,
    start: Callable[[], Advance],
    updates: dict[str, Update],
    timelimit: float | None = None,
) -> int:
    """Advance `run` step by step until its step limit, its time limit, the end of its data, a hook or a signal.

    Args:
        run: what is trained.
        hook: asked at the start of every step; its `done` runs whatever happens. None shows a bar in a terminal or
            notebook, and does nothing else.
        start: called once after `hook.setup` (which may have moved the run to a snapshot); gives the function
            (step, record or None) -> whether there was data.
        updates: whose losses are read at log steps, by model name.
        timelimit: seconds.

    Returns:
        The step the run has reached.

    Raises:
        KeyboardInterrupt: after Ctrl-C, once `done` has run, at a prompt, in a notebook, and where nothing was saved.
        SystemExit: after another signal, or Ctrl-C of a script, once `done` has run: with status 0 if the run is saved
            or has made no update, else with 143, as of a process that SIGTERM ended.
    """
    watch = hook or _bar_or_nothing(run)
    for update in updates.values():
        run.add_finite_check(update.find_non_finite)
    first = run.step
    with run.at_end, StopSignals(watch=hook is not None) as signals:
        try:
            watch.setup(run)
            first = run.step
            if run.steplimit is not None and run.step >= run.steplimit:
                _say(f"nothing to train: step ({run.step}) has reached steplimit ({run.steplimit}); raise steplimit")
            advance = start()
            poll, limit = run.ranks.poll, run.steplimit
            deadline = math.inf if timelimit is None else run.time() + timelimit
            run.outcome = "finished"
            step = run.step
            while limit is None or step < limit:
                wish = poll(step, STOP if watch.step(step) else INTERRUPT if signals.requested else 0)
                if wish:
                    run.outcome = "stopped" if wish == STOP else "interrupted"
                    break
                if timelimit is not None and run.time() >= deadline:
                    break
                record = Record() if watch.wants_log(step) else None
                if not advance(step, record):
                    break
                step += 1
                run.step = step
                if record is not None:
                    _publish(run, watch, updates, record)
            run.check_finite()
        except StopTraining as stop:
            run.outcome = "stopped"
            _say(f"stopped at step {run.step}: {stop}")
        except BaseException as error:
            run.outcome, run.error = "error", error
            run.ranks.explain(error)
            raise
        finally:
            record_module._current = None
            watch.done()
    if run.outcome == "interrupted":
        saved = f"; saved in {run.saved}, run the same command to go on" if run.saved else ""
        _say(f"{signals.requested or 'a signal to another rank'}: stopped at step {run.step}{saved}")
        if signals.requested == "SIGINT" and (run.saved is None or _at_a_prompt()):
            raise KeyboardInterrupt  # the interpreter, and the model in it, must not be lost
        raise SystemExit(0 if run.saved is not None or run.step == first else 128 + signal.SIGTERM)
    return run.step


def _publish(run: Run, hook: HookInterface, updates: dict[str, Update], record: Record) -> None:
    """Read what the device holds, reduce it over the ranks once, and hand the numbers to the hook."""
    totals: dict[str, tuple[float, float]] = {}
    finite = True
    for key, update in updates.items():
        loss, count = update.read_loss()
        finite = finite and math.isfinite(loss)
        totals["loss" if len(updates) == 1 else f"loss_{key}"] = (loss, count)
    for name, (total, weight) in run.ranks.sum_named(record.totals() | totals).items():
        hook.log(name, total / weight if weight else math.nan)
    skipped = sum(update.read_skipped() for update in updates.values())
    if skipped:
        hook.log("skipped", skipped)
    if run.ranks.any(not finite):
        run.refuse("the loss")


def _bar_or_nothing(run: Run) -> HookInterface:
    # Of several ranks none may log on its own.
    seen = run.ranks.world == 1 and ("ipykernel" in sys.modules or (sys.stderr is not None and sys.stderr.isatty()))
    return Hook(progress=True, log_interval="1s") if seen else _NO_HOOK


def _at_a_prompt() -> bool:
    # ps1 is set where a person types; python -i goes there after its script, which an exit would not let it.
    return hasattr(sys, "ps1") or bool(sys.flags.interactive) or "ipykernel" in sys.modules


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


class _NoHook(HookInterface):
    def step(self, step: int) -> None:
        pass

    def wants_log(self, step: int) -> bool:
        return False


_NO_HOOK = _NoHook()
