"""As much of the module `ray` as the engine uses, with actors that are threads of this process."""

import queue
import threading
import types
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError


class RayError(Exception):
    pass


class RayActorError(RayError):
    pass


class GetTimeoutError(RayError, TimeoutError):
    pass


class PendingCallsLimitExceeded(RayError):  # noqa: N818 - Ray's name
    pass


class PretendedRay:
    """A cluster.

    Args:
        room: how many actors it starts; others wait.
        trouble: what an actor dies of before it begins.
    """

    exceptions = types.SimpleNamespace(
        RayError=RayError,
        RayActorError=RayActorError,
        GetTimeoutError=GetTimeoutError,
        PendingCallsLimitExceeded=PendingCallsLimitExceeded,
    )

    def __init__(self, room=100, trouble=None):
        self.room = room
        self.trouble = trouble
        self.initialized = False
        self.job = "01"
        self.actors = []
        self.n_puts = 0
        self.options = {}

    def is_initialized(self):
        return self.initialized

    def init(self, address):
        self.initialized = True

    def init_without_any(self, address):
        raise ConnectionError("Could not find any running Ray instance.")

    def get_runtime_context(self):
        return types.SimpleNamespace(gcs_address="head:6379", get_node_id=lambda: "node", get_job_id=lambda: self.job)

    def cluster_resources(self):
        return {"CPU": 3.0, "memory": 1e9, "node:head": 1.0}

    def remote(self, **options):
        self.options = options
        return lambda actor_class: types.SimpleNamespace(remote=lambda *a: self._made(actor_class, a))

    def put(self, value):
        self.n_puts += 1
        return done(value)

    def get(self, reference, timeout):
        try:
            return reference.result(timeout)
        except FutureTimeoutError:
            if reference.done():
                raise
            raise GetTimeoutError from None

    def kill(self, actor):
        actor.kill("killed by ray.kill")

    def _made(self, actor_class, arguments):
        actor = PretendedActor(
            None if len(self.actors) >= self.room else (lambda: actor_class(*arguments)), self.trouble
        )
        self.actors.append(actor)
        return actor


class PretendedActor:
    """The handle of an actor, whose calls run in a thread for each of its groups.

    Args:
        make: returns the actor itself; None where there is no room.
        trouble: what it dies of.
    """

    def __init__(self, make, trouble):
        self.dead = trouble
        self.full = False
        self.hangs = False
        self._futures = []
        self._groups = {"in": queue.SimpleQueue(), "out": queue.SimpleQueue()}
        if make is not None and not trouble:
            actor = make()
            for calls in self._groups.values():
                threading.Thread(target=self._run, args=(actor, calls), daemon=True).start()

    def __getattr__(self, method):
        return types.SimpleNamespace(
            options=lambda concurrency_group: types.SimpleNamespace(
                remote=lambda *arguments: self._call(concurrency_group, method, arguments)
            )
        )

    def kill(self, why):
        self.dead = why
        for future in self._futures:
            if not future.done():
                future.set_exception(RayActorError(why))

    def _call(self, group, method, arguments):
        if self.full:
            raise PendingCallsLimitExceeded
        future = Future()
        self._futures.append(future)
        if self.dead:
            future.set_exception(RayActorError(self.dead))
        elif not self.hangs:
            arguments = [a.result() if isinstance(a, Future) else a for a in arguments]
            self._groups[group].put((method, arguments, future))
        return future

    def _run(self, actor, calls):
        while True:
            method, arguments, future = calls.get()
            answer = getattr(actor, method)(*arguments)
            if self.dead:
                return
            future.set_result(answer)


def done(value):
    """Returns a reference to what is there already."""
    future = Future()
    future.set_result(value)
    return future
