"""A Ray cluster of simulated machines in this one: `with simulated(2) as cluster`."""

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

STORE_BYTES = 100 << 20


@contextlib.contextmanager
def simulated(nodes: int) -> Iterator[Any]:
    """Joins a cluster of a head without room for work and `nodes` nodes with room for one worker each; ends all of it.

    Its `nodes` are those to lose; `add()` of it adds one.
    """
    import ray
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    at_sigterm = signal.getsignal(
        signal.SIGTERM
    )  # the head's own would turn it into a test that fails by SystemExit(1)
    made = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": STORE_BYTES, "include_dashboard": False},
    )
    try:
        made.add = lambda: made.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
        made.nodes = [made.add() for _ in range(nodes)]
        made.wait_for_nodes()
        ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
        yield made
    finally:
        ray.shutdown()
        made.shutdown()
        signal.signal(signal.SIGTERM, at_sigterm)
