"""Whose a trial of a database is: machines that share no folder see each other alive by beats, and take over by them.

Who runs a trial counts up an attribute of it. Who looks compares that with what it saw before, by its own clock, as for
the locks of a shared folder; clocks of two machines are never compared. A beat changes only from the value that its
writer knows: of several who find a trial dead in the same moment one takes it over, and a process that was thought dead
(its machine slept) learns that the trial is another's.
"""

import contextlib
import json
import secrets
import threading
import time
from types import TracebackType
from typing import Any, Self

import optuna
from optuna.trial import FrozenTrial

BEAT_S = 10.0
"""Seconds between two beats; four of them without one mean that the process is dead."""
_KEY = "beat"


class Beat:
    """Counts up a trial's beat inside a `with`.

    Args:
        asked: The trial, which this process has just been given.
    """

    def __init__(self, asked: optuna.Trial) -> None:
        self._asked = asked
        self._last: list[Any] = [secrets.token_hex(4), 0]
        self._ended, self._one_at_a_time = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._run, name="ai-lab beat", daemon=True)

    def __enter__(self) -> Self:
        self._asked.set_user_attr(_KEY, self._last)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def is_ours(self) -> bool:
        """Whether nobody has taken the trial over meanwhile; beats once."""
        storage: Any = self._asked.study._storage
        with self._one_at_a_time:
            who, count = self._last
            following = [who, count + 1]
            if not swap(storage, self._asked._trial_id, self._last, following):
                found = storage.get_trial(self._asked._trial_id).user_attrs.get(_KEY) or [None]
                if found[0] != who:
                    return False
                following = found  # an earlier change came through, though not its answer
            self._last = following
            return True

    def _run(self) -> None:
        while not self._ended.wait(BEAT_S):
            with contextlib.suppress(Exception):  # a database that is away for a while, or for good
                if not self.is_ours():
                    return


def take_over(study: optuna.Study, lost: FrozenTrial) -> bool:
    """Whether a trial whose process is dead is this process's to put back, and no other's that has found the same."""
    return swap(study._storage, lost._trial_id, lost.user_attrs.get(_KEY), [secrets.token_hex(4), -1])


def swap(storage: Any, trial_id: int, seen: object, value: object) -> bool:
    """Changes a trial's beat in a database from what was seen (None for none) to a value; whether it still was that."""
    import sqlalchemy
    from optuna.storages._rdb.models import TrialUserAttributeModel as Attribute

    engine: sqlalchemy.Engine = storage._backend.engine
    if seen is None:
        new = sqlalchemy.insert(Attribute).values(trial_id=trial_id, key=_KEY, value_json=json.dumps(value))
        try:
            with engine.begin() as connection:
                connection.execute(new)
        except sqlalchemy.exc.IntegrityError:  # one of the others was first
            return False
        return True
    change = (
        sqlalchemy.update(Attribute)
        .where(Attribute.trial_id == trial_id, Attribute.key == _KEY, Attribute.value_json == json.dumps(seen))
        .values(value_json=json.dumps(value))
    )
    with engine.begin() as connection:
        return connection.execute(change).rowcount == 1


class Watch:
    """Remembers the beats that were seen, and when they last moved."""

    def __init__(self) -> None:
        self._seen: dict[int, tuple[object, float]] = {}

    def has_stopped(self, trial: FrozenTrial) -> bool:
        """Whether a trial's beat, or its having none, has stood still for too long since it was first seen so."""
        beat = trial.user_attrs.get(_KEY)
        if trial.number not in self._seen or self._seen[trial.number][0] != beat:
            self._seen[trial.number] = beat, time.monotonic()
        return time.monotonic() - self._seen[trial.number][1] > 4 * BEAT_S
