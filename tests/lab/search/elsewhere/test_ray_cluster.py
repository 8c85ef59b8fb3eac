"""A search on a real Ray cluster of simulated machines: a lost machine, and a driver that is killed."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ai.data import Ray
from ai.lab import Experiment, Record
from tests.lab.search.trained import OPTIONS, train
from tests.ray_cluster import START_S, simulated

pytest.importorskip("ray", reason="ray, the extra `ray` of ai-data, is not installed: no cluster to test on")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(2 * START_S),
    # Of Ray itself: sockets and processes of nodes that a test ended.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
]
QUIET = {"progress": False}


@pytest.fixture(scope="module")
def cluster():
    with simulated(2) as made:
        yield made


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Returns the rows of a search of this process."""
    return [row[:4] for row in Experiment(tmp_path_factory.mktemp("whole") / "e", **OPTIONS).run(3, train).trials()]


def wait_for(condition, limit_s=START_S):
    deadline = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def saved(folder, step):
    """Returns the process that runs a trial, once the copy here has the snapshot."""
    if not (folder / "snapshots" / f"{step:09d}").exists():
        return None
    return json.loads((folder / "meta.json").read_text())["sessions"][-1]["pid"]


def children(node):
    raylet = node.all_processes["raylet"][0].process.pid
    found = subprocess.run(["pgrep", "-P", str(raylet)], capture_output=True, text=True).stdout
    return [int(pid) for pid in found.split()]


def is_gone(pid):
    try:
        return "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2]
    except FileNotFoundError:
        return True


def check(experiment, whole):
    assert [row[:4] for row in experiment.trials()] == whole
    record = Record(experiment.trial_path(1))
    assert record.meta["started_step"] == 20
    assert len({session["pid"] for session in record.meta["sessions"]} - {os.getpid()}) == 2
    steps = record.metrics()["loss"].steps.tolist()
    assert steps == sorted(set(steps))
    assert sorted(record.snapshots()) == [10, 20, 30]


def test_a_trial_of_a_lost_machine_goes_on_elsewhere_bit_for_bit(cluster, tmp_path, whole):
    flag, experiment = tmp_path / "flag", Experiment(tmp_path / "e", **OPTIONS)

    def lose():
        pid = wait_for(lambda: saved(experiment.trial_path(1), 20))
        node = next(node for node in cluster.nodes if pid in children(node))
        cluster.nodes.remove(node)
        cluster.remove_node(node, allow_graceful=False)
        wait_for(lambda: is_gone(pid))  # it outlives its node for a moment, and may end its trial in it
        flag.touch()

    thread = threading.Thread(target=lose)
    thread.start()
    experiment.run(3, lambda trial: train(trial, (flag, None)), n_jobs=2, engine=Ray(cluster.address), **QUIET)
    thread.join()
    check(experiment, whole)
    cluster.nodes.append(cluster.add())


SCRIPT = """
import pathlib, sys
sys.path.insert(0, {root!r})
import ray
from ai.data import Ray
from ai.lab import Experiment
from trained import OPTIONS, train
ray.init(address={address!r}, log_to_driver=False, logging_level="ERROR")
flag = pathlib.Path({flag!r})
Experiment({path!r}, **OPTIONS).run(3, lambda trial: train(trial, (flag, None)), n_jobs=2, engine=Ray())
"""


def test_a_killed_driver_leaves_no_process_and_the_next_one_goes_on(cluster, tmp_path, whole):
    path, flag = tmp_path / "e", tmp_path / "flag"
    root = str(Path(__file__).parents[1])
    script = SCRIPT.format(root=root, address=cluster.address, flag=str(flag), path=str(path))
    driver = subprocess.Popen([sys.executable, "-c", script])
    pid = wait_for(lambda: saved(path / "trials" / "00001", 20))
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    killed = time.monotonic()
    wait_for(lambda: is_gone(pid))
    print(f"killed driver: its trial's process was gone after {time.monotonic() - killed:.2f} s")
    flag.touch()
    experiment = Experiment(path, **OPTIONS).run(3, train, n_jobs=2, engine=Ray(), **QUIET)
    check(experiment, whole)
