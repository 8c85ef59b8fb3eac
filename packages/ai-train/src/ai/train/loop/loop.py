"""The loop that all trainers share: hook, stop, update, log."""

import math
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter

from ai.train.engine.log import Apart, Nowhere, Record, Waiting, record_into, recording
from ai.train.engine.ranks import INTERRUPT, STOP
from ai.train.engine.run import Interrupted, Run, StopTraining
from ai.train.engine.update import Update
from ai.train.hook import Hook, HookInterface
from ai.train.hooks.hook_list import HookList
from ai.train.loop.signals import StopSignals

Advance = Callable[[int, Record | None], bool]
Hooks = HookInterface | Sequence[HookInterface] | None


def loop(
    run: Run,
    hook: Hooks,
    start: Callable[[], Advance],
    updates: Mapping[str, Update],
    timelimit: float | None = None,
) -> int:
    """Advance `run` step by step until its step limit, its time limit, the end of its data, a hook or a signal.

    Args:
        run: what is trained.
        hook: asked at the start of every step; its `done` runs whatever happens. None shows a bar in a terminal or
            notebook, and does nothing else; an empty list does nothing at all.
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
    watch = _as_one(hook, run)
    first = run.step
    with run.at_end, recording(None), StopSignals(watch=hook is not None) as signals:
        run.interrupted = lambda: signals.requested is not None
        run.recent_losses = lambda: _means(updates)
        try:
            with recording(Nowhere("a hook's setup")):
                watch.setup(run)
            run.begin_averages()
            _bind_gradients(watch, updates)
            first = run.step
            run.outcome = "finished"
            if watch is _NO_HOOK and (unseen := run.never_measured):
                raise ValueError(
                    f"the schedule follows {unseen[0]!r}, which only a hook measures: give one with val_data"
                )
            if _has_something_to_train(run):
                until = math.inf if timelimit is None else perf_counter() + timelimit  # while a batch is waited for
                lone = run.ranks.world == 1
                run.gives_up = lambda: perf_counter() >= until or (lone and signals.requested is not None)
                _train(run, watch, start(), updates, signals, timelimit)
            run.check_finite()
        except StopTraining as stop:
            run.outcome = "stopped"
            _say(f"stopped at step {run.step}: {stop}")
        except Interrupted:
            run.outcome = "interrupted"
        except BaseException as error:
            run.outcome, run.error = "error", error
            run.ranks.explain(error)
            raise
        finally:
            _end(run, watch, signals)
    if run.outcome == "interrupted":
        _exit(run, signals.requested, made_updates=run.step != first)
    return run.step


def _train(
    run: Run,
    hook: HookInterface,
    advance: Advance,
    updates: Mapping[str, Update],
    signals: StopSignals,
    timelimit: float | None,
) -> None:
    """Step after step; sets `run.outcome` where it is not the data or a limit that ends it."""
    poll, limit, step = run.ranks.poll, run.steplimit, run.step
    is_there, waiting, stop = hook is not _NO_HOOK, Waiting(), None
    own = [
        "skipped",
        "steps_per_s",
        *_loss_names(updates).values(),
        *(name for update in updates.values() for name in update.names),
    ]
    deadline = math.inf if timelimit is None else run.time() + timelimit
    while limit is None or step < limit:
        if is_there:
            record_into(waiting)
            stop = hook.step(step)
            record_into(None)
        wish = poll(step, STOP if stop else INTERRUPT if signals.requested else 0)
        if wish:
            run.outcome = "stopped" if wish == STOP else "interrupted"
            return
        if timelimit is not None and run.time() >= deadline:
            return
        record = Record(own) if is_there and hook.wants_log(step) else None
        if waiting.given:
            waiting.hand_over(record)
        if record is not None:
            record_into(Apart(record, "data_"))  # until the update sends it to the record itself
        if not advance(step, record):
            if run.gives_up():
                run.outcome = "finished" if signals.requested is None else "interrupted"
                return
            if limit is not None:
                _say(
                    f"the data ended at step {step}, before steplimit ({limit}): pass epochs= for more passes over it, "
                    "or a loader with train=True"
                )
            return
        step += 1
        run.step = step
        if record is not None:
            with recording(Nowhere("a hook's log")):
                _publish(run, hook, updates, record)


def _end(run: Run, hook: HookInterface, signals: StopSignals) -> None:
    """The hook's `done`, which a signal cuts short as it does an evaluation before."""
    try:
        with recording(Nowhere("a hook's done")):
            hook.done()
    except Interrupted:
        run.outcome = "interrupted"
    if run.outcome == "finished" and run.step > 0 and (unseen := run.never_measured):
        _say(f"the schedule followed {unseen[0]!r}, which was never measured; the metrics were {run.measured}")
    if signals.requested and run.outcome in ("finished", "stopped"):  # it came with the last step, or after it
        run.outcome = "interrupted"


def _publish(run: Run, hook: HookInterface, updates: Mapping[str, Update], record: Record) -> None:
    """Read what the device holds, reduce it over the ranks once, and hand the numbers to the hook."""
    totals: dict[str, tuple[float, float]] = {}
    finite = True
    for key, name in _loss_names(updates).items():
        loss, count = updates[key].read_loss(keep=run.keeps_sums)
        finite = finite and math.isfinite(loss)
        totals[name] = (loss, count)
    for name, (total, weight) in run.ranks.sum_named(record.totals() | totals).items():
        if name in totals and isinstance(hook, HookList):
            hook.log_loss(name, total, weight)
        else:
            hook.log(name, total / weight if weight else math.nan)
    skipped = sum(update.read_skipped() for update in updates.values())
    if skipped:
        hook.log("skipped", skipped)
    run.keeps_sums = False
    if run.ranks.any(not finite):
        run.refuse("the loss")


def _means(updates: Mapping[str, Update]) -> dict[str, float]:
    read = {key: update.read_loss(keep=True) for key, update in updates.items()}
    means = {key: total / count for key, (total, count) in read.items() if count}
    return {name: means[key] for key, name in _loss_names(updates).items() if key in means}


def _loss_names(updates: Mapping[str, Update]) -> dict[str, str]:
    return {key: "loss" if len(updates) == 1 else f"loss_{key}" for key in updates}


def _has_something_to_train(run: Run) -> bool:
    if run.steplimit is not None and run.step >= run.steplimit:
        _say(f"nothing to train: step ({run.step}) has reached steplimit ({run.steplimit}); raise steplimit")
        if run.step == run.steplimit:
            run.stand_at_end()
        return False
    if run.position.at_end:
        _say(
            f"nothing to train: at step {run.step} the data was passed over {run.position.epoch} times, and epochs is "
            f"{run.position.end}; raise epochs"
        )
        if run.position.epoch == run.position.end:
            run.stand_at_end()
        return False
    return True


def _exit(run: Run, requested: str | None, *, made_updates: bool) -> None:
    """End the process as the signal asks, or hand it back to who types."""
    saved = f"; saved in {run.saved}, {run.to_go_on or 'run the same command to go on'}" if run.saved else ""
    _say(f"{requested or 'a signal to another rank'}: stopped at step {run.step}{saved}")
    if requested == "SIGINT" and (run.saved is None or _at_a_prompt()):
        raise KeyboardInterrupt  # the interpreter, and the model in it, must not be lost
    lost = made_updates and run.saved is None
    raise SystemExit(128 + signal.SIGTERM if lost else run.exit_status)


def _as_one(hook: Hooks, run: Run) -> HookInterface:
    if hook is None:
        # Of several ranks none may log on its own.
        seen = run.ranks.world == 1 and ("ipykernel" in sys.modules or (sys.stderr is not None and sys.stderr.isatty()))
        return Hook(progress=True, log_interval="1s") if seen else _NO_HOOK
    if not isinstance(hook, Sequence):
        return hook
    hooks = HookList(hook)
    return hooks.hooks[0] if len(hooks.hooks) == 1 else hooks if hooks.hooks else _NO_HOOK


def _bind_gradients(hook: HookInterface, updates: Mapping[str, Update]) -> None:
    """Have the hooks called that look at gradients; a step costs nothing where there are none."""
    hooks = hook.hooks if isinstance(hook, HookList) else [hook]
    plain = HookInterface.gradients
    calls = [one.gradients for one in hooks if getattr(type(one), "gradients", plain) is not plain]
    for update in updates.values():
        update.on_gradients = calls


def _at_a_prompt() -> bool:
    # ps1 is set where a person types; python -i goes there after its script, which an exit would not let it.
    return hasattr(sys, "ps1") or bool(sys.flags.interactive) or "ipykernel" in sys.modules


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


_NO_HOOK = HookInterface()  # asked at no step
