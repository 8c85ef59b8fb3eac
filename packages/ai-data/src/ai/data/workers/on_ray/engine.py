"""Workers on the machines of a Ray cluster: a second way to start a worker, under the same supervisor."""

import contextlib
import math
import os
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from typing import Any

import numpy as np

from ai.data.arguments import check_at_least, check_real
from ai.data.workers.message import split
from ai.data.workers.on_ray import actor as ray_actor
from ai.data.workers.on_ray import pieces
from ai.data.workers.on_ray.joining import REACH_S, head, joined, leave_first, reach, session
from ai.data.workers.supervisor import MAX_DEATHS
from ai.data.workers.versions import installed
from ai.data.workers.worker import EXITED

# One that says nothing for so long while this process runs (a machine that hangs) counts as dead.
_SILENT_S = 60.0
_TURN_S = 1.0
# Messages on their way to one worker.
_MAX_PENDING = 1000
# A head that does not answer for so long is gone; Ray itself ends this process after 60 s.
_HEAD_S = 40.0
_LOOK_S = 2.0
# So long `ray.shutdown` waits for what we just ask of Ray.
_LEAVE_S = 10.0


class Ray:
    """Starts workers on a Ray cluster, as an `engine`; needs the extra `ray`.

    Joins the cluster that `ray.init` of this process has joined; else the one at `address`; else the one that Ray finds
    by itself (by the variable `RAY_ADDRESS`, or on this machine). It starts none. Every machine needs the same Python
    and the same versions of our distributions. Ray restarts nothing by itself, so nothing runs twice: a worker that
    dies is replaced as one of this machine would be.

    Args:
        address: of the cluster's head, such as `"10.0.0.1:6379"`.
        num_cpus: that Ray keeps free for each worker, which computes with as many threads, unless `OMP_NUM_THREADS`
            was set where Ray was started on its machine: then with so many.
        num_gpus: likewise; a fraction lets workers share a GPU.
        resources: amounts of the cluster's own resources that each worker needs, by name.
        start_timeout_s: no room for so long is an error where no worker runs, and a warning beside others that do (a
            machine may come back); None waits for ever.
        max_deaths: how often workers may die, beyond one each, with no work done in between, and how often one trial of
            a search may be lost with no newer snapshot; more end the run. Raise it where machines come and go faster
            than workers start.

    Raises:
        ImportError: ray is not installed.
        ValueError: an argument out of range, an address of another form, or not that of the cluster joined already.
        ConnectionError: there is no such cluster.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        num_cpus: float = 1,
        num_gpus: float = 0,
        resources: Mapping[str, float] | None = None,
        start_timeout_s: float | None = 600.0,
        max_deaths: int = MAX_DEATHS,
    ) -> None:
        if address is not None and not isinstance(address, str):
            raise TypeError(f"address must be that of a Ray cluster as text, or None, got {address!r}")
        if resources is not None and not isinstance(resources, Mapping):
            raise TypeError(f"resources must be a dict of amounts by name, or None, got {resources!r}")
        check_real(num_cpus=num_cpus, num_gpus=num_gpus)
        check_at_least(0, max_deaths=max_deaths)
        for name, wanted in (resources or {}).items():
            check_real(or_none=False, **{name: wanted})
        check_real(or_none=True, start_timeout_s=start_timeout_s)
        needs = {"num_cpus": num_cpus, "num_gpus": num_gpus, **dict(resources or {})}
        for name, amount in needs.items():
            if not (math.isfinite(amount) and amount >= 0):
                raise ValueError(f"{name} must be a finite number of at least 0, got {amount}")
        if start_timeout_s is not None and not start_timeout_s > 0:
            raise ValueError(f"start_timeout_s must be positive or None, got {start_timeout_s}")
        self.needs = ", ".join(f"{name}={amount:g}" for name, amount in needs.items() if amount) or "nothing"
        self.start_timeout_s = start_timeout_s
        self.max_deaths = max_deaths
        self.workers: set[RayWorker] = set()
        self.head_is_gone = False
        self._watching = threading.Lock()
        self._left = False
        self._n_asking = 0
        self._asked = threading.Condition()
        self._ray = joined(address)
        self._session = session(self._ray)
        self._actor_class = self._ray.remote(
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            resources=dict(resources or {}),
            max_restarts=0,
            max_task_retries=0,
            max_pending_calls=_MAX_PENDING,
            concurrency_groups={"in": 1, "out": 1},
            scheduling_strategy="SPREAD",
        )(ray_actor.Actor)
        leave_first(self._ray, self)

    def start(self, payload: bytes, on_message: Callable[[Any], None], on_exit: Callable[[str], None]) -> "RayWorker":
        """Returns a worker that Ray starts as soon as a machine has room, as `Engine` says.

        Raises:
            ConnectionError: this process has left the cluster since.
        """
        with self.asking() as is_joined:
            self._check(is_joined)
            actor = self._actor_class.remote(payload, installed())
            worker = RayWorker(self._ray, actor, self, on_message, on_exit)
        if self._watching.acquire(blocking=False):
            threading.Thread(target=self._watch_head, name="ai.data.Ray", daemon=True).start()
        return worker

    def share(self, value: Any) -> "Shared":
        """Puts a value into Ray's store, which carries it to each machine once; freed when nobody has the handle.

        Raises:
            ConnectionError: this process has left the cluster since.
        """
        body, buffers = split(value)
        with self.asking() as is_joined:
            self._check(is_joined)
            return Shared(self._ray.put((bytes(body), [np.asarray(buffer) for buffer in buffers])))

    @property
    def is_joined(self) -> bool:
        """Whether this process is still in the cluster, by the same `ray.init`: handles of another end the process."""
        return not self._left and bool(self._ray.is_initialized()) and session(self._ray) == self._session

    @contextlib.contextmanager
    def asking(self) -> Iterator[bool]:
        """While something is asked of Ray, which `leave` waits for: whether it may be."""
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
        until = time.monotonic() + _LEAVE_S
        with self._asked:
            self._left = True
            self._asked.wait_for(lambda: self._n_asking == 0, _LEAVE_S)
        for worker in list(self.workers):
            worker.wait(max(0.0, until - time.monotonic()))

    def _check(self, is_joined: bool) -> None:
        if not is_joined:  # else Ray would start or join another by itself
            raise ConnectionError(
                "this process has left the Ray cluster by ray.shutdown: make a new ai.data.Ray() after ray.init"
            )

    @property
    def n_running(self) -> int:
        """How many of its workers have begun and not ended."""
        return sum(worker.where[1] > 0 for worker in list(self.workers))

    def _watch_head(self) -> None:
        """Tells all workers when the head is gone, before Ray ends this process for it, while there are workers."""
        address, gone_s = self._ray.get_runtime_context().gcs_address, 0.0
        try:
            reach(address)
            while self.workers and gone_s < _HEAD_S:
                begun = time.monotonic()
                time.sleep(_LOOK_S)
                try:
                    reach(address)
                    gone_s = 0.0
                except (
                    ConnectionError
                ):  # at once, or after a while where the machine is off; a stopped process waits not
                    gone_s += min(time.monotonic() - begun, _LOOK_S + REACH_S)
            self.head_is_gone = gone_s >= _HEAD_S
        except ConnectionError:  # by another way than this process's own, such as Ray's client: nothing can be told
            pass
        finally:
            self._watching.release()


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
        ray: the module.
        actor: Ray's handle of a `ray_actor.Actor`.
        engine: tells what the worker needs and how long it may take to start.
        on_message: as of `Engine.start`; so is the other.
        on_exit: as above.
    """

    def __init__(
        self, ray: Any, actor: Any, engine: Ray, on_message: Callable[[Any], None], on_exit: Callable[[str], None]
    ) -> None:
        self._ray = ray
        self._actor = actor
        self._engine = engine
        self._on_message = on_message
        self._on_exit = on_exit
        self._where = ("", 0)
        self._owner = os.getpid()
        self._sending = threading.Lock()
        engine.workers.add(self)
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
            with self._sending, self._engine.asking() as is_joined:
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
        if os.getpid() == self._owner and not self._engine.head_is_gone:
            with self._engine.asking() as is_joined:
                if is_joined:
                    self._ray.kill(self._actor)

    def _receive(self) -> None:
        try:
            how = self._until_gone()
        except Exception as error:  # a message that cannot be read here, that nobody can use, or Ray's own trouble
            self._on_message(("failed", error))
            how = "was ended for an error on this side"
        self._engine.workers.discard(self)
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
            if self._engine.head_is_gone:
                raise ConnectionError(
                    f"the head of the Ray cluster has not answered for {_HEAD_S:g} s, and Ray will end this process: "
                    "start a head again, and resume"
                )
            if not self._engine.is_joined:  # the next question would join or start a cluster
                return f"{self._place()} was left: this process has left the cluster"
            try:
                messages = reply.messages(_TURN_S)
            except TimeoutError:
                # A process that was stopped itself has not waited all that time.
                turn_s, seen = min(time.monotonic() - seen, 2 * _TURN_S), time.monotonic()
                if not self._where[1] and self._engine.n_running:
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
            if not self._engine.is_joined:
                continue
            # Before the messages are dealt with, so that the next ones, likely as large, travel meanwhile.
            reply = _Reply(ray, self._actor, reply.n_pieces)
            for message in messages:
                if how := self._take(message):
                    return how

    def _take(self, message: Any) -> str | None:
        """Takes one message; returns how the worker ended, if it says so."""
        if message[0] == ray_actor.RUNNING:
            self._where = message[1], message[2]
        elif message[0] == EXITED:
            return f"{self._place()} {message[1]}"
        else:
            self._on_message(message)
        return None

    def _overdue(self, waited_s: float) -> str | None:
        """Returns how a worker ended that is waited for too long."""
        limit_s = self._engine.start_timeout_s
        if self._where[1]:
            return f"{self._place()} said nothing for {_SILENT_S:g} s" if waited_s > _SILENT_S else None
        if limit_s is None or waited_s < limit_s:
            return None
        raise TimeoutError(self._no_room(limit_s)) from None

    def _warned(self, beside_s: float) -> float:
        """Returns how long a worker has waited for room beside others, from 0 again once that was said."""
        limit_s = self._engine.start_timeout_s
        if limit_s is None or beside_s < limit_s:
            return beside_s
        warnings.warn(f"{self._no_room(limit_s)}; {self._engine.n_running} others run", stacklevel=1)
        return 0.0

    def _no_room(self, limit_s: float) -> str:
        has = sorted(self._ray.cluster_resources().items())
        there = ", ".join(f"{name} {amount:g}" for name, amount in has if ":" not in name and "memory" not in name)
        return (
            f"no machine of the Ray cluster has had room for a worker ({self._engine.needs}) for {limit_s:g} s; the "
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
        self.n_pieces = max(pieces.n_pieces(sum(p.nbytes for p in parts if p is not None)), self.n_pieces - 1)
        return pieces.read(sizes, parts)
