"""The kills of data workers, parents and builds, in short."""

import pytest

from ai.examples import data_kills


@pytest.mark.slow
def test_one_kill_each_loses_nothing_and_leaves_nothing():
    numbers = data_kills.reproduce(kills=1, seed=1)
    assert (numbers["worker_kills"], numbers["parent_kills"], numbers["build_kills"]) == (1, 1, 1)
    assert numbers["workers_of_them"] == 4
    assert numbers["batches_lost"] == numbers["packs_wrong"] == numbers["shared_memory_left"] == 0
