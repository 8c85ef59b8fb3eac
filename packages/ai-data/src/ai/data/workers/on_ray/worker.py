"""A worker on a Ray cluster, seen from the trainer: what is sent to it, and a thread that receives what it says."""

import os
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import numpy as np

from ai.data.workers.message import split
from ai.data.workers.on_ray import actor as ray_actor
from ai.data.workers.on_ray import pieces
from ai.data.workers.on_ray.joining import head
from ai.data.workers.on_ray.membership import Membership
from ai.data.workers.versions import installed
from ai.data.workers.worker import EXITED

# One that says nothing for so long while this process runs (a machine that hangs) counts as dead.
_SILENT_S = 60.0
_TURN_S = 1.0


class Shared:
    """A value in Ray's store, to be an element of messages.

    Args:
        reference: Ray's.
    """

    def __init__(self, reference: Any) -> None:
        self.reference = reference


class RayWorker:
    """A worker on some machine of the cluster.

    Args:
        membership: tells whether Ray may be asked anything.
        actor: Ray's handle of a `ray_actor.Actor`.
        needs: what the worker takes of a machine, for errors.
        start_timeout_s: how long it may wait for one, as of `Ray`.
        on_message: as of `Engine.start`; so is the other.
        on_exit: as above.
    """

    def __init__(
        self,
        membership: Membership,
        actor: Any,
        needs: str,
        start_timeout_s: float | None,
        on_message: Callable[[Any], None],
        on_exit: Callable[[str], None],
    ) -> None:
        self._ray = membership.ray
        self._membership = membership
        self._needs = needs
        self._start_timeout_s = start_timeout_s
        self._actor = actor
        self._on_message = on_message
        self._on_exit = on_exit
        self._where = ("", 0)
        self._sending = threading.Lock()
        membership.workers.add(self)
        self._receiving = threading.Thread(target=self._receive, name="ai.data.RayWorker", daemon=True)
        self._receiving.start()

    @property
    def where(self) -> tuple[str, int]:
        """The node's host name and the process id there."""
        return self._where

    def wait(self, timeout_s: float) -> None:
        """Waits until nothing more is received."""
        if self._receiving is not threading.current_thread():
            self._receiving.join(timeout_s)

    def send(self, message: Any) -> bool:
        """Sends a message without waiting; `Shared` elements of a tuple go by reference."""
        shared: list[Any] = []
        if isinstance(message, tuple):
            parts = list(message)
            for i, part in enumerate(parts):
                if isinstance(part, Shared):
                    parts[i] = ray_actor.Slot(len(shared))
                    shared.append(part.reference)
            message = tuple(parts)
        body, buffers = split(message)
        arrays = [np.asarray(buffer) for buffer in buffers]
        try:
            with self._sending, self._membership.asking() as is_joined:
                if not is_joined:
                    return False
                self._actor.put.options(concurrency_group="in").remote(bytes(body), arrays, *shared)
        except self._ray.exceptions.PendingCallsLimitExceeded:  # it takes nothing any more
            self.close()
            return False
        except self._ray.exceptions.RayError:
            return False
        return True

    def close(self) -> None:
        """Ends the worker, whatever it is doing, or the wait for room."""
        # After `ray.shutdown` there is nothing to end, and Ray ends a process that asks for it; a forked copy of this
        # process ends nothing either.
        # Without a head nothing can be ended but with this process.
        if os.getpid() == self._membership.owner and not self._membership.head_is_gone:
            with self._membership.asking() as is_joined:
                if is_joined:
                    self._ray.kill(self._actor)

    def _receive(self) -> None:
        try:
            how = self._until_gone()
        except self._ray.exceptions.PendingCallsLimitExceeded:
            how = f"{self._place()} took none of the many messages that are under way to it"
        except Exception as error:  # a message that cannot be read here, that nobody can use, or Ray's own trouble
            self._on_message(("failed", error))
            how = "was ended for an error on this side"
        self._membership.workers.discard(self)
        try:
            self.close()
        finally:
            self._on_exit(how)

    def _until_gone(self) -> str:
        """Hands on messages; returns what became of the worker."""
        ray = self._ray
        waited_s, seen = 0.0, time.monotonic()
        beside_s = 0.0  # that others had room, and this one had not
        reply = _Reply(ray, self._actor, 1)
        while True:
            self._membership.raise_if_head_is_gone()
            if not self._membership.is_joined:  # the next question would join or start a cluster
                return f"{self._place()} was left: this process has left the cluster"
            try:
                messages = reply.messages(_TURN_S)
            except TimeoutError:
                # A process that was stopped itself has not waited all that time.
                turn_s, seen = min(time.monotonic() - seen, 2 * _TURN_S), time.monotonic()
                if not self._where[1] and self._membership.n_running:
                    waited_s, beside_s = 0.0, self._warned(beside_s + turn_s)
                else:
                    waited_s += turn_s
                if how := self._overdue(waited_s):
                    return how
                continue
            except ray.exceptions.RayActorError as error:
                return self._died(error)
            except ray.exceptions.RayError as error:  # a reply that was in the store of a machine that is gone
                return f"{self._place()} lost what it had made: {head(error)}"
            waited_s, seen = 0.0, time.monotonic()
            if not self._membership.is_joined:
                continue
            # Before the messages are dealt with, so that the next ones, likely as large, travel meanwhile.
            reply = _Reply(ray, self._actor, reply.n_pieces)
            if how := self._take(messages):
                return how

    def _take(self, messages: Iterator[Any]) -> str | None:
        """Takes messages, and keeps none; returns how the worker ended, if it says so."""
        for message in messages:
            if message[0] == ray_actor.RUNNING:
                self._where = message[1], message[2]
            elif message[0] == ray_actor.WARNED:
                warnings.warn(message[1], stacklevel=1)
            elif message[0] == EXITED:
                return f"{self._place()} {message[1]}"
            else:
                self._on_message(message)
        return None

    def _overdue(self, waited_s: float) -> str | None:
        """Returns how a worker ended that is waited for too long."""
        limit_s = self._start_timeout_s
        if self._where[1]:
            return f"{self._place()} said nothing for {_SILENT_S:g} s" if waited_s > _SILENT_S else None
        if limit_s is None or waited_s < limit_s:
            return None
        raise TimeoutError(self._no_room(limit_s)) from None

    def _warned(self, beside_s: float) -> float:
        """Returns how long a worker has waited for room beside others, from 0 again once that was said."""
        limit_s = self._start_timeout_s
        if limit_s is None or beside_s < limit_s:
            return beside_s
        warnings.warn(f"{self._no_room(limit_s)}; {self._membership.n_running} others run", stacklevel=1)
        return 0.0

    def _no_room(self, limit_s: float) -> str:
        has = sorted(self._ray.cluster_resources().items())
        there = ", ".join(f"{name} {amount:g}" for name, amount in has if ":" not in name and "memory" not in name)
        return (
            f"no machine of the Ray cluster has had room for a worker ({self._needs}) for {limit_s:g} s; the "
            f"cluster has in all: {there}"
        )

    def _died(self, error: Exception) -> str:
        if not self._where[1] and "No module named 'ai" in str(error):
            address = re.search(r"\bip=([^,)\s]+)", str(error))
            raise ImportError(
                f"the node {address[1] if address else 'of a worker'} of the Ray cluster has no ai.data: install "
                f"ai-data {installed().get('ai-data', '')} on every node"
            ) from error
        return f"{self._place()} died: {head(error)}"

    def _place(self) -> str:
        return f"on the node {self._where[0]}" if self._where[1] else "that had not begun"


class _Reply:
    """The next messages of a worker, on their way.

    Args:
        ray: the module.
        actor: Ray's handle of a `ray_actor.Actor`.
        n: pieces that they are expected in.

    Attributes:
        n_pieces: to expect the next ones in, once these are here.
    """

    def __init__(self, ray: Any, actor: Any, n: int) -> None:
        self._ray = ray
        self.n_pieces = n
        self._parts = actor.get.options(concurrency_group="out", num_returns=1 + n).remote(n)
        # No thread of ours waits within Ray: `ray.shutdown` in another one would then end the process.
        self._come: futures.Future[Any] = self._parts[0].future()

    def messages(self, timeout_s: float) -> Iterator[Any]:
        """Returns the messages, each read when it is asked for.

        Raises:
            TimeoutError: they have not come within `timeout_s`.
            RayError: Ray's own, of a worker that is gone.
        """
        if not futures.wait([self._come], timeout_s).done:
            raise TimeoutError
        self._come.result()
        try:
            sizes, *parts = self._ray.get(self._parts, timeout=timeout_s)  # here already, but for what is in a store
        except self._ray.exceptions.GetTimeoutError:
            raise TimeoutError from None
        # Pieces too many cost little; with too few all goes through the store.
        self.n_pieces = max(pieces.n_expected(sizes, parts), self.n_pieces - 1)
        return pieces.read(sizes, parts)
