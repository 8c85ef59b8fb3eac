"""A Ray cluster of simulated machines in this one: `with simulated(2) as cluster`."""

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest

STORE_BYTES = 100 << 20
START_S = 600
_PATIENT = {  # on a slow machine, what is slow is neither dead nor lost
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_health_check_timeout_ms": "120000",
    "RAY_worker_register_timeout_seconds": str(START_S),
}


@contextlib.contextmanager
def simulated(nodes: int) -> Iterator[Any]:
    """Joins a cluster of a head without room for work and `nodes` nodes with room for one worker each; ends all of it.

    Its `nodes` are those to lose; `add()` of it adds one. Who looks for a cluster on this machine does not find it.
    Where Ray itself starts none (it gives each node 30 s), the tests are skipped, and say so.
    """
    import ray
    from ray.cluster_utils import Cluster

    at_sigterm = signal.getsignal(
        signal.SIGTERM
    )  # the head's own would turn it into a test that fails by SystemExit(1)
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # a socket's path may have a hundred bytes
    made: Any = Cluster()
    try:
        with mock.patch.dict(os.environ, {**_PATIENT, "RAY_TMPDIR": folder}):
            try:
                head = {"num_cpus": 0, "object_store_memory": STORE_BYTES, "include_dashboard": False}
                made.add_node(wait=False, **head)
                made.add = lambda: made.add_node(wait=False, num_cpus=1, object_store_memory=STORE_BYTES)
                made.nodes = [made.add() for _ in range(nodes)]
                made.wait_for_nodes(START_S)
                ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
            except Exception as error:
                pytest.skip(f"Ray could not start a cluster here: {type(error).__name__}: {error}")
            yield made
    finally:
        ray.shutdown()
        made.shutdown()
        signal.signal(signal.SIGTERM, at_sigterm)
        shutil.rmtree(folder, ignore_errors=True)
