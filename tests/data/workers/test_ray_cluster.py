"""Generation on a real Ray cluster of three simulated machines: nothing twice, nothing out of order, deaths, ends."""

import os
import signal
import time
from collections import defaultdict

import numpy as np
import pytest
import torch

from ai.data import Datagen, Ray, ReplayBuffer
from tests.data.helpers_data import wait_until
from tests.ray_cluster import START_S, simulated

ray = pytest.importorskip("ray", reason="ray, the extra `ray` of ai-data, is not installed: no cluster to test on")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(2 * START_S),
    # Of Ray itself: sockets and processes of nodes that a test ended.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
]


@pytest.fixture(scope="module")
def cluster():
    """Returns a cluster of a head without room for work and two nodes with room for one worker each."""
    with simulated(2) as made:
        yield made


class Counting:
    """Numbers its episodes; a worker and its replacement are told apart by their seeds."""

    def start(self, seed, worker):
        self.seed, self.n, self.weight = seed % 2**40, 0, 0.0

    def __next__(self):
        self.n += 1
        return {
            "obs": np.zeros((3, 1), np.float32),
            "action": np.zeros(2, np.int64),
            "who": np.array([self.seed, self.n, 0, 0], np.int64),
            "w": np.float64(self.weight),
        }

    def update_params(self, state_dict, version):
        self.weight = float(state_dict["w"][-1])


def loader(n_workers, **options):
    return Datagen(Counting()).loader(
        16, n_workers=n_workers, buffer=ReplayBuffer(1_000_000), replay_ratio=1.0, **options
    )


def runs_of(made):
    """Returns each worker's episode numbers in order of arrival, and their versions."""
    with made.locked():
        buffer = made.buffer
        who, version = buffer.column("who").numpy()[::3], buffer.column("version").numpy()[::3]
        assert len(who) == made.stats()["episodes"]  # none has been overwritten
        assert torch.equal(buffer.column("w"), buffer.column("version").double())
    runs, versions = defaultdict(list), defaultdict(list)
    for (seed, n, *_), v in zip(who, version, strict=True):
        runs[seed].append(int(n))
        versions[seed].append(int(v))
    return runs, versions


def draw_until(made, condition):
    def drawn():
        next(made)
        time.sleep(0.02)  # what is looked for takes seconds
        return condition()

    wait_until(drawn, START_S)


def test_episodes_come_once_and_in_order_through_deaths_of_workers_and_nodes(cluster):
    with loader(2, engine=Ray(cluster.address)) as made:
        draw_until(made, lambda: len(runs_of(made)[0]) == 2)
        for k in range(1, 4):
            made.update_params({"w": torch.full((1000,), float(k))})
            draw_until(made, lambda k=k: int(made.buffer.column("version")[-1]) == k)
        assert made.stats()["worker_deaths"] == 0

        os.kill(made.pids[0], signal.SIGKILL)
        draw_until(made, lambda: len(runs_of(made)[0]) == 3)
        assert made.stats()["worker_deaths"] == 1
        assert list(runs_of(made)[1].values())[-1][0] == 3  # a replacement begins with the newest parameters

        cluster.remove_node(cluster.nodes.pop(), allow_graceful=False)
        draw_until(made, lambda: made.stats()["worker_deaths"] == 2)
        n = made.stats()["episodes"]
        draw_until(made, lambda: made.stats()["episodes"] > n + 100)  # the other goes on
        assert len(runs_of(made)[0]) == 3
        cluster.nodes.append(cluster.add())
        draw_until(made, lambda: len(runs_of(made)[0]) == 4)

        runs, versions = runs_of(made)
    for numbers in runs.values():
        assert numbers == list(range(1, len(numbers) + 1))
    for seen in versions.values():
        assert seen == sorted(seen)
    wait_until(lambda: ray.available_resources().get("CPU", 0) == 2, START_S)  # every worker is gone


def test_no_room_is_said(cluster):
    engine = Ray(num_gpus=1, start_timeout_s=1.0)
    with loader(1, engine=engine) as made, pytest.raises(TimeoutError, match="no machine of the Ray cluster has had"):
        next(made)


class Broken(Counting):
    def __next__(self):
        raise KeyError("no such thing")


def test_a_source_that_fails_raises_its_error_here(cluster):
    made = Datagen(Broken()).loader(16, n_workers=1, engine=Ray())
    with made, pytest.raises(KeyError, match="no such thing"):
        next(made)
