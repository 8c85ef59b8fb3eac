"""How this process is in a Ray cluster, and leaves it before Ray ends who still asks."""

import atexit
import contextlib
import functools
import os
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

from ai.data.workers.on_ray.joining import COPY, REACH_S, reach, session

# A head that does not answer for so long is gone; Ray itself ends this process after 60 s.
_HEAD_S = 40.0
_LOOK_S = 2.0
# So long `ray.shutdown` waits for what is just being asked of Ray.
_LEAVE_S = 10.0


class Membership:
    """Of this process in a Ray cluster, by one `ray.init`: whether Ray may be asked anything, and whether it is.

    Args:
        ray: the module, joined to the cluster.

    Attributes:
        ray: the same.
        owner: the process whose membership it is; not that of its forked copies.
        workers: those that ask.
        head_is_gone: whether the cluster's head has not answered for too long.
    """

    def __init__(self, ray: Any) -> None:
        self.ray = ray
        self.owner = os.getpid()
        self.workers: set[Any] = set()
        self.head_is_gone = False
        self._watching = threading.Lock()
        self._left = False
        self._n_asking = 0
        self._asked = threading.Condition()
        self._session = session(ray)
        leave_first(ray, self)

    @property
    def is_joined(self) -> bool:
        """Whether this process is still in the cluster, by the same `ray.init`: handles of another end the process."""
        return not self._left and bool(self.ray.is_initialized()) and session(self.ray) == self._session

    @contextlib.contextmanager
    def asking(self) -> Iterator[bool]:
        """While something is asked of Ray, which `leave` waits for: whether it may be."""
        if os.getpid() != self.owner:  # the lock may have been held when the copy was made
            yield False
            return
        with self._asked:
            is_joined = self.is_joined
            self._n_asking += 1
        try:
            yield is_joined
        finally:
            with self._asked:
                self._n_asking -= 1
                self._asked.notify_all()

    def leave(self) -> None:
        """Has nothing more asked of Ray: it ends a process that asks during `ray.shutdown`, or after it."""
        with self._asked:
            self._left = True

    def wait_left(self, until: float) -> None:
        """Waits after `leave` until nothing is asked any more, or until `time.monotonic()` is `until`."""
        with self._asked:
            self._asked.wait_for(lambda: self._n_asking == 0, max(0.0, until - time.monotonic()))
        for worker in list(self.workers):
            worker.wait(max(0.0, until - time.monotonic()))

    def check(self, is_joined: bool) -> None:
        """Raises where nothing may be asked: Ray would start or join another cluster by itself."""
        if os.getpid() != self.owner:
            raise RuntimeError(COPY.format(f"process {self.owner}"))
        if not is_joined:
            raise ConnectionError(
                "this process has left the Ray cluster by ray.shutdown: make a new ai.data.Ray() after ray.init"
            )

    @property
    def n_running(self) -> int:
        """How many of its workers have begun and not ended."""
        return sum(worker.where[1] > 0 for worker in list(self.workers))

    def raise_if_head_is_gone(self) -> None:
        """Raises where the head has not answered for too long."""
        if self.head_is_gone:
            raise ConnectionError(
                f"the head of the Ray cluster has not answered for {_HEAD_S:g} s, and Ray will end this process: "
                "start a head again, and resume"
            )

    def watch_head(self) -> None:
        """Looks from now on whether the head answers, while there are workers."""
        if self._watching.acquire(blocking=False):
            threading.Thread(target=self._watch_head, name="ai.data.Ray", daemon=True).start()

    def _watch_head(self) -> None:
        """Tells all workers when the head is gone, before Ray ends this process for it, while there are workers."""
        address, gone_s = self.ray.get_runtime_context().gcs_address, 0.0
        try:
            reach(address)
            while self.workers and gone_s < _HEAD_S:
                begun = time.monotonic()
                time.sleep(_LOOK_S)
                try:
                    reach(address)
                    gone_s = 0.0
                except ConnectionError:
                    # At once, or after a while where the machine is off; a process that was stopped has not waited.
                    gone_s += min(time.monotonic() - begun, _LOOK_S + REACH_S)
            self.head_is_gone = gone_s >= _HEAD_S
        except ConnectionError:  # by another way than this process's own, such as Ray's client: nothing can be told
            pass
        finally:
            self._watching.release()


def leave_first(ray: Any, membership: Membership) -> None:
    """Has `ray.shutdown`, and the end of this process, wait until `membership`, if still used, asks nothing.

    Ray tells nobody that it is about to shut down, so its function is wrapped, once.
    """
    shutdown = ray.shutdown
    known = getattr(shutdown, "leaves_first", None)
    if known is not None:
        known.add(membership)
        return

    memberships: weakref.WeakSet[Membership] = weakref.WeakSet([membership])

    def leave() -> None:
        # A forked copy asks nothing by what it was copied with, and may have been made while a lock was held.
        ours = [each for each in list(memberships) if each.owner == os.getpid()]
        until = time.monotonic() + _LEAVE_S
        for each in ours:
            each.leave()
        for each in ours:
            each.wait_left(until)

    @functools.wraps(shutdown)
    def after_leaving(*arguments: Any, **options: Any) -> Any:
        leave()
        return shutdown(*arguments, **options)

    after_leaving.leaves_first = memberships  # type: ignore[attr-defined]
    ray.shutdown = after_leaving
    atexit.register(leave)  # before Ray's own, which was registered earlier
