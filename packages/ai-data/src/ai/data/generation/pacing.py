"""The trainer's side of generated data: the buffer, what was made and used, and who has to wait for whom."""

import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from ai.data.episodes.packing import Packed
from ai.data.episodes.recent import RecentEpisodes
from ai.data.replay_buffer import ReplayBuffer

# How far workers may run ahead of a replay ratio, in batches.
_LEAD = 4


class Intake:
    """The buffer with its counters, shared by the trainer's thread and the workers' threads.

    Args:
        buffer: takes the episodes.
        batch_size: draws a batch.
        replay_ratio: how often a step is drawn on average; None for no coupling. Steps made before the first batch do
            not count: they would all be paid for at once.
        min_steps: steps to make before the first batch.

    Attributes:
        changed: its lock guards all of this, and whoever waits for a batch waits on it.
        n_used: draws so far.
        hungry: a trainer waits, so that workers must not be held back.
    """

    def __init__(self, buffer: ReplayBuffer, batch_size: int, replay_ratio: float | None, min_steps: int) -> None:
        self.buffer = buffer
        self.replay_ratio = replay_ratio
        self.changed = threading.Condition(threading.RLock())
        self.n_used = 0
        self.n_steps = 0
        self.n_episodes = 0
        self.version = 0
        self.hungry = False
        self.recent = RecentEpisodes()
        self._born: deque[tuple[float, int]] = deque()  # (arrival, rows) of the chunks in the buffer, oldest first
        self._n_born = 0  # rows of all of them
        self._batch_size = batch_size
        self._min_steps = min_steps
        self._last_stats = time.monotonic(), 0

    def put(self, episodes: Packed) -> None:
        """Takes episodes."""
        with self.changed:
            self.buffer.extend(episodes)
            self.n_steps += episodes.n_steps
            self.n_episodes += episodes.n_episodes
            self.recent.add(episodes.finished)
            self._born.append((time.monotonic(), int(episodes.lengths.sum())))
            self._n_born += self._born[-1][1]
            while self._n_born - self._born[0][1] >= self.buffer.capacity:
                self._n_born -= self._born.popleft()[1]
            self.changed.notify_all()

    def copied(self) -> "Intake":
        """Returns an intake of the same buffer, under the same lock, that counts on for itself."""
        other = Intake(self.buffer, self._batch_size, self.replay_ratio, self._min_steps)
        other.changed = self.changed
        other.go_on(self.counters())
        return other

    def counters(self) -> dict[str, Any]:
        """Returns what was made and used so far."""
        return {
            "n_used": self.n_used,
            "n_steps": self.n_steps,
            "n_episodes": self.n_episodes,
            "version": self.version,
            "recent": self.recent.state_dict(),
        }

    def go_on(self, counters: Mapping[str, Any]) -> None:
        """Counts on from `counters`; ages and rates begin anew."""
        self.n_used, self.n_steps, self.n_episodes = (counters[name] for name in ("n_used", "n_steps", "n_episodes"))
        self.version = counters["version"]
        self.recent.load_state_dict(counters.get("recent", {}))  # of an older version: without
        self._born.clear()
        self._n_born = 0
        self._last_stats = time.monotonic(), self.n_episodes

    def notify(self) -> None:
        """Wakes who waits: something changed elsewhere."""
        with self.changed:
            self.changed.notify_all()

    def ready(self, batches: int = 1) -> bool:
        """Returns whether so many batches may be drawn before anything more is made."""
        n_open = len(self.buffer)
        if self.n_steps < self._min_steps or n_open < (
            1 if self.buffer.max_reuse is None else batches * self._batch_size
        ):
            return False
        used = self.n_used + (batches - 1) * self._batch_size
        return self.replay_ratio is None or used <= self.replay_ratio * (self.n_steps - self._min_steps)

    def wants_more(self) -> bool:
        """Returns whether workers may go on: they must not run away from the replay ratio, nor starve a trainer."""
        with self.changed:
            if self.replay_ratio is None or (self.hungry and not self.ready()):
                return True
            used = self.n_used + _LEAD * self._batch_size
            return (self.n_steps - self._min_steps) * self.replay_ratio < used

    def stats(self) -> dict[str, float]:
        """Returns the figures that `DatagenLoader.stats` describes."""
        now = time.monotonic()
        since, n_before = self._last_stats
        self._last_stats = now, self.n_episodes
        versions = self.buffer.column("version")
        return {
            "episodes": self.n_episodes,
            "steps": self.n_steps,
            "episodes_per_s": (self.n_episodes - n_before) / max(now - since, 1e-9),
            "buffer_steps": len(self.buffer),
            "buffer_bytes": self.buffer.n_bytes,
            "age_s": sum((now - at) * rows for at, rows in self._born) / self._n_born if self._born else 0.0,
            "reuse": self.n_used / self.n_steps if self.n_steps else 0.0,
            "version_lag": float(self.version - versions.double().mean()) if len(versions) else 0.0,
            **self.recent.stats(),
        }
