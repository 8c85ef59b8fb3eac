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

    def shutdown(self):
        self.initialized = False

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

    def get(self, references, timeout):
        try:
            return [reference.result(timeout) for reference in references]
        except FutureTimeoutError:
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

    It dies once: as with Ray, whoever kills it again changes nothing, and what was answered before stays answered.

    Args:
        make: returns the actor itself; None where there is no room.
        trouble: what it dies of.
    """

    def __init__(self, make, trouble):
        self.dead = trouble
        self.full = False
        self.hangs = False
        self._living = threading.Lock()  # while it is looked whether it lives, and done what it does only alive
        self._open = set()  # references that nothing has come of yet
        self._groups = {"in": queue.SimpleQueue(), "out": queue.SimpleQueue()}
        if make is not None and not trouble:
            actor = make()
            for calls in self._groups.values():
                threading.Thread(target=self._run, args=(actor, calls), daemon=True).start()

    def __getattr__(self, method):
        return types.SimpleNamespace(
            options=lambda concurrency_group, num_returns=1: types.SimpleNamespace(
                remote=lambda *arguments: self._call(concurrency_group, num_returns, method, arguments)
            )
        )

    def kill(self, why):
        with self._living:
            if self.dead:
                return
            self.dead = why
            self._fail(self._open)
            self._open = set()
        for calls in self._groups.values():
            calls.put(None)

    def _fail(self, references):
        for reference in references:
            reference.set_exception(RayActorError(self.dead))

    def _call(self, group, n, method, arguments):
        if self.full:
            raise PendingCallsLimitExceeded
        references = [Reference() for _ in range(n)]
        arguments = [a.result() if isinstance(a, Future) else a for a in arguments]
        with self._living:
            if self.dead:
                self._fail(references)
            else:
                self._open.update(references)
                if not self.hangs:
                    self._groups[group].put((method, arguments, references))
        return references if n > 1 else references[0]

    def _run(self, actor, calls):
        while call := calls.get():
            method, arguments, references = call
            answer = getattr(actor, method)(*arguments)
            with self._living:
                if self.dead:
                    return
                self._open.difference_update(references)
                for reference, value in zip(references, answer if len(references) > 1 else [answer], strict=True):
                    reference.set_result(value)


class Reference(Future):
    """To what a call returns."""

    def future(self):
        return self


def done(value):
    """Returns a reference to what is there already."""
    future = Future()
    future.set_result(value)
    return future
