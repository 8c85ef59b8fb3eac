"""Workers on the machines of a Ray cluster: a second way to start a worker, under the same supervisor."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ai.data.arguments import check_at_least, check_real
from ai.data.workers.message import split
from ai.data.workers.on_ray import actor as ray_actor
from ai.data.workers.on_ray.joining import joined
from ai.data.workers.on_ray.membership import Membership
from ai.data.workers.on_ray.pieces import MAX_BYTES
from ai.data.workers.on_ray.worker import RayWorker, Shared
from ai.data.workers.supervisor import MAX_DEATHS
from ai.data.workers.versions import installed

# Messages on their way to one worker.
_MAX_PENDING = 1000
# Of anything that Ray counts.
_LEAST = 1e-4


class Ray:
    """Starts workers on a Ray cluster, as an `engine`; needs the extra `ray`.

    Joins the cluster that `ray.init` of this process has joined; else the one at `address`; else the one that Ray finds
    by itself (by the variable `RAY_ADDRESS`, or on this machine). It starts none. Every machine needs the same Python
    and the same versions of our distributions; other code of one version, as of a checkout that is edited meanwhile, is
    a warning. Ray restarts nothing by itself, so nothing runs twice: a worker that dies is replaced as one of this
    machine would be.

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

    # A reply costs 1 ms of the processor's time whatever it holds, and all that it holds little more.
    message_bytes = MAX_BYTES - (512 << 10)

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
        check_at_least(0, max_deaths=max_deaths)
        check_real(or_none=True, start_timeout_s=start_timeout_s)
        amounts = _amounts({"num_cpus": num_cpus, "num_gpus": num_gpus}, resources or {})
        if start_timeout_s is not None and not start_timeout_s > 0:
            raise ValueError(f"start_timeout_s must be positive or None, got {start_timeout_s}")
        self._needs = ", ".join(f"{name}={amount:g}" for name, amount in amounts.items() if amount) or "nothing"
        self.start_timeout_s = start_timeout_s
        self.max_deaths = max_deaths
        self._versions = installed()
        self._ray = joined(address)
        self._membership = Membership(self._ray)
        self._actor_class = self._ray.remote(
            num_cpus=amounts.pop("num_cpus"),
            num_gpus=amounts.pop("num_gpus"),
            resources=amounts,
            max_restarts=0,
            max_task_retries=0,
            max_pending_calls=_MAX_PENDING,
            concurrency_groups={"in": 1, "out": 1},
            scheduling_strategy="SPREAD",
        )(ray_actor.Actor)

    def start(self, payload: bytes, on_message: Callable[[Any], None], on_exit: Callable[[str], None]) -> RayWorker:
        """Returns a worker that Ray starts as soon as a machine has room, as `Engine` says.

        Raises:
            ConnectionError: this process has left the cluster since.
        """
        with self._membership.asking() as is_joined:
            self._membership.check(is_joined)
            actor = self._actor_class.remote(payload, self._versions)
            worker = RayWorker(self._membership, actor, self._needs, self.start_timeout_s, on_message, on_exit)
        self._membership.watch_head()
        return worker

    def share(self, value: Any) -> Shared:
        """Puts a value into Ray's store, which carries it to each machine once; freed when nobody has the handle.

        Raises:
            ConnectionError: this process has left the cluster since.
        """
        body, buffers = split(value)
        with self._membership.asking() as is_joined:
            self._membership.check(is_joined)
            return Shared(self._ray.put((bytes(body), [np.asarray(buffer) for buffer in buffers])))


def _amounts(ours: Mapping[str, Any], resources: Mapping[str, Any]) -> dict[str, float]:
    """Returns what a worker takes of a machine, by name, as Ray reads it."""
    elsewhere = {"CPU": "num_cpus", "GPU": "num_gpus", **{name: name for name in ours}}
    for name in resources:
        if not isinstance(name, str) or not name or name in ("memory", "object_store_memory"):
            raise ValueError(f"resources must be of the cluster's own, by name, and {name!r} is no such name")
        if name in elsewhere:
            raise ValueError(f"resources must be others than {name!r}, of which {elsewhere[name]} says how many")
    found = {}
    for name, amount in {**ours, **resources}.items():
        check_real(**{name: amount})
        found[name] = float(amount)
        if not (math.isfinite(found[name]) and found[name] >= 0):
            raise ValueError(f"{name} must be a finite number of at least 0, got {found[name]:g}")
        if 0 < found[name] < _LEAST:
            raise ValueError(f"{name} must be 0 or at least {_LEAST:g}, Ray's unit, got {found[name]:g}")
    if found["num_gpus"] > 1 and found["num_gpus"] % 1:
        raise ValueError(f"num_gpus must be at most 1 or a whole number, got {found['num_gpus']:g}")
    return found
