"""Heartbeats of trials through a database: machines that share no folder see each other alive by them.

A process counts up an attribute of its trial. Who looks compares it with what it saw before, by its own clock, as for
the locks of a shared folder; clocks of two machines are never compared.
"""

import contextlib
import secrets
import threading
import time
from collections.abc import Iterator

import optuna
from optuna.trial import FrozenTrial

BEAT_S = 10.0
"""Seconds between two beats; four of them without one mean that the process is dead."""
_KEY = "beat"


@contextlib.contextmanager
def beating(asked: optuna.Trial) -> Iterator[None]:
    """Has a trial's beat counted up meanwhile."""
    ended, who = threading.Event(), secrets.token_hex(4)

    def beat() -> None:
        count = 0
        while True:
            with contextlib.suppress(Exception):  # a database that is away for a while, or for good
                asked.study._storage.set_trial_user_attr(asked._trial_id, _KEY, [who, count])
            if ended.wait(BEAT_S):
                return
            count += 1

    thread = threading.Thread(target=beat, name="ai-lab beat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class Watch:
    """Remembers the beats that were seen, and when they last moved."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[object, float]] = {}

    def has_stopped(self, trial: FrozenTrial) -> bool:
        """Whether a trial's beat has stood still for too long since it was first seen so; one without tells nothing."""
        beat = trial.user_attrs.get(_KEY)
        if beat is None:
            return False
        known, since = self._seen.get(trial.number, (None, 0.0))
        if known != beat:
            self._seen[trial.number] = beat, time.monotonic()
            return False
        return time.monotonic() - since > 4 * BEAT_S
