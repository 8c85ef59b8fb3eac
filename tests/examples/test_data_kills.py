"""The kills of data workers, parents and builds, in short."""

import subprocess
import types

import pytest

from ai.examples import data_kills
from tests import warm_python


@pytest.mark.slow
def test_one_kill_each_loses_nothing_and_leaves_nothing(monkeypatch):
    # What is killed starts warm, but for the workers.
    started = types.SimpleNamespace(Popen=warm_python.Process, PIPE=subprocess.PIPE, DEVNULL=subprocess.DEVNULL)
    monkeypatch.setattr(data_kills, "subprocess", started)
    numbers = data_kills.reproduce(kills=1, seed=1)
    assert (numbers["worker_kills"], numbers["parent_kills"], numbers["build_kills"]) == (1, 1, 1)
    assert numbers["workers_of_them"] == 4
    assert numbers["batches_lost"] == numbers["packs_wrong"] == numbers["shared_memory_left"] == 0
